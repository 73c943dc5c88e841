import numpy as np
import pytest
from scipy.stats import rice

import labelwise as lw
from labelwise.fitting.goodness import goodness

B = np.array([0, 0, 10, 20, 50, 100, 200, 400, 800]) / 1000
SIGMA = 20.0


def noisy(model, truth, noise, sigma=SIGMA, count=300):
    import jax

    clean = np.asarray(model.signal(*truth)) * np.ones((count, 1))
    return np.asarray(noise.sample(jax.random.key(0), clean, np.float32(sigma)), np.float32)


CASES = [
    (lw.IVIM(B), lw.Rician(), (500.0, 0.3, 1.0, 40.0)),
    (lw.IVIM(B), lw.Gaussian(), (500.0, 0.3, 1.0, 40.0)),
    (lw.Kurtosis(B[B != 0.02]), lw.Rician(), (300.0, 1.2, 0.8)),
]


@pytest.mark.parametrize(("model", "noise", "truth"), CASES)
def test_it_is_what_the_fitter_reports(model, noise, truth):
    data = noisy(model, truth, noise)
    fit = lw.MaximumLikelihood(model, noise)(data, SIGMA)
    nll, residual = goodness(model, noise, data, SIGMA, fit.values)
    # float32 there, float64 here
    np.testing.assert_allclose(nll, fit.stats["nll"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(residual, fit.stats["residual"], rtol=1e-4)


def test_the_nll_is_that_of_scipy_up_to_what_does_not_depend_on_the_estimate():
    model, truth = lw.IVIM(B), np.array([500.0, 0.3, 1.0, 40.0])
    data = noisy(model, truth, lw.Rician())
    values = truth * np.random.default_rng(1).uniform(0.8, 1.2, (len(data), 4))
    other = truth * np.ones_like(values)
    ours = [goodness(model, lw.Rician(), data, SIGMA, each)[0] for each in (values, other)]
    theirs = [
        -rice.logpdf(data, np.stack([model.signal(*row) for row in each]) / SIGMA, scale=SIGMA)
        for each in (values, other)
    ]
    np.testing.assert_allclose(
        ours[0] - ours[1], theirs[0].sum(1) - theirs[1].sum(1), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_the_images_does_not_matter(scale):
    model, truth = lw.IVIM(B), np.array([500.0, 0.3, 1.0, 40.0])
    data = noisy(model, truth, lw.Rician())
    plain = goodness(model, lw.Rician(), data, SIGMA, truth * np.ones((len(data), 1)))
    truth[0] *= scale
    scaled = goodness(
        model, lw.Rician(), data * scale, SIGMA * scale, truth * np.ones((len(data), 1))
    )
    np.testing.assert_allclose(scaled, plain, rtol=1e-4)


def test_a_strong_signal_keeps_its_residual():
    """SNR 10,000, where the Rician variance is a difference of numbers that agree to 8 digits."""
    model, truth, sigma = lw.ADC(B), (1e4, 0.8), 1.0
    clean = np.asarray(model.signal(*truth))
    data = clean + np.random.default_rng(0).normal(0, sigma, (4000, len(B)))
    _, residual = goodness(model, lw.Rician(), data, sigma, np.tile(truth, (len(data), 1)))
    assert np.mean(residual**2) == pytest.approx(len(B) / (len(B) - 2), rel=0.02)


@pytest.mark.parametrize("what", ["signal", "sigma", "values"])
def test_a_bad_voxel_is_nan_and_changes_no_other(what):
    model, truth = lw.ADC(B), (500.0, 1.0)
    arrays = {
        "signal": noisy(model, truth, lw.Rician(), count=50),
        "sigma": np.full(50, SIGMA),
        "values": np.tile(truth, (50, 1)),
    }
    before = goodness(model, lw.Rician(), **arrays)
    arrays[what] = arrays[what].copy()
    arrays[what][7] = np.nan
    after = goodness(model, lw.Rician(), **arrays)
    for was, now in zip(before, after, strict=True):
        assert np.isnan(now[7])
        np.testing.assert_array_equal(np.delete(now, 7), np.delete(was, 7))


def test_a_voxel_s_neighbours_and_place_change_no_byte():
    model, truth = lw.ADC(B), (500.0, 1.0)
    data = noisy(model, truth, lw.Rician(), count=5000)  # more than one block
    values = np.tile(truth, (5000, 1))

    def judged(order):
        return np.array(goodness(model, lw.Rician(), data[order], SIGMA, values[order]))

    everywhere = judged(np.arange(5000))
    shuffled = np.random.default_rng(0).permutation(5000)
    for order in (shuffled, np.arange(4000, 5000), np.array([4999]), np.arange(4095, 4110)):
        np.testing.assert_array_equal(judged(order), everywhere[:, order])


def test_a_black_box_is_judged_as_well_and_never_called_with_nan():
    class Box(lw.SignalModel):
        """S = A exp(-b R), in NumPy."""

        b: np.ndarray = lw.per_measurement()
        parameters = (lw.Parameter("A", "a.u.", (0, 1e4)), lw.Parameter("R", "µm²/ms", (0, 5)))
        differentiable = False

        def signal(self, a, r):
            if not np.isfinite(a):
                raise FloatingPointError
            return a * np.exp(-self.b * r)

    truth = np.array([[500.0, 1.0], [np.nan, 1.0], [400.0, 2.0]])
    data = noisy(lw.ADC(B), (500.0, 1.0), lw.Rician(), count=3)
    ours = goodness(Box(B), lw.Rician(), data, SIGMA, truth)
    theirs = goodness(lw.ADC(B), lw.Rician(), data, SIGMA, truth)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_nothing_is_nothing():
    nothing = goodness(lw.ADC(B), lw.Rician(), np.empty((0, len(B))), 1.0, np.empty((0, 2)))
    assert [len(part) for part in nothing] == [0, 0]


@pytest.mark.parametrize(
    ("sigma", "columns", "words"),
    [
        (np.ones(2), 2, r"sigma: expected a number or \(3,\), got \(2,\)"),
        (np.ones(3), 3, r"expected shapes \(3, 9\) and \(3, 2\), got \(3, 9\) and \(3, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(sigma, columns, words):
    with pytest.raises(ValueError, match=words):
        goodness(lw.ADC(B), lw.Rician(), np.ones((3, 9)), sigma, np.ones((3, columns)))
