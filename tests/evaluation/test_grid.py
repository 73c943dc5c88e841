"""Evaluation against estimators whose bias, spread and information are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jaxtyping import Array, Float
from scipy import integrate, stats

import labelwise as lw
from labelwise.evaluation.grid import evaluate, marginal, summary
from labelwise.evaluation.information import mutual_information
from labelwise.priors import Grid
from labelwise.types import Estimate, Status

B = np.array([0.0, 0.5, 1.0])
ADC = lw.ADC(B)
SIGMA = 0.01
GRID = Grid({"S0": [1.0], "ADC": np.linspace(0.5, 2.0, 10)})
KEY = jax.random.key(7)
MLE = lw.MaximumLikelihood(ADC, lw.Gaussian())


class Straight(lw.SignalModel):
    """S = a + b t: each measurement is a linear function of the parameters."""

    t: Float[Array, " M"] = lw.per_measurement()
    parameters = (lw.Parameter("a", "1", (-9, 9)), lw.Parameter("b", "1", (-9, 9)))

    def signal(self, a, b):
        return a + b * self.t


LINE = Straight([0.0, 1.0])
LINE_GRID = Grid({"a": np.linspace(0, 1, 5), "b": np.linspace(0, 2, 4)})


class Affine:
    """Estimates a and b of the line from its two points, then maps them."""

    parameters = Straight.parameters

    def __init__(self, slope=1.0, offset=0.0, noise=0.0, fails_below=-np.inf):
        self.slope, self.offset, self.noise, self.fails_below = slope, offset, noise, fails_below

    def __call__(self, signal, sigma):
        signal = np.asarray(signal, float)
        exact = np.stack([signal[:, 0], signal[:, 1] - signal[:, 0]], axis=1)
        exact = exact + self.noise * np.random.default_rng(3).normal(size=exact.shape)
        values = exact @ np.atleast_2d(self.slope * np.eye(2)) + self.offset
        bad = signal[:, 0] < self.fails_below
        values[bad] = np.nan
        status = np.where(bad, Status.NOT_CONVERGED, Status.CONVERGED)
        return Estimate(values, status)


class Constant(Affine):
    def __call__(self, signal, sigma):
        values = np.full((len(signal), 2), 0.5)
        return Estimate(values, np.full(len(signal), Status.PREDICTED))


class Truth:
    """A label source: the truth plus noise of its own."""

    def __init__(self, std):
        self.std = std

    def __call__(self, voxels):
        noise = np.random.default_rng(1).normal(size=voxels.params.shape) * self.std
        return Estimate(voxels.params + noise, np.full(len(voxels), Status.CONVERGED))

    def describe(self):
        return {"kind": "truth", "std": self.std}


def line(estimators=None, *, repeats=400, labels=None, **options):
    return evaluate(
        estimators or {},
        LINE,
        lw.Gaussian(),
        0.1,
        LINE_GRID,
        repeats,
        KEY,
        labels=labels,
        **options,
    )


@pytest.fixture(scope="module")
def known():
    """Exact least squares (std 0.1 and 0.1 √2), shrunk by half, mixed, and none at all."""
    return line(
        {
            "exact": Affine(),
            "shrunk": Affine(0.5, 0.25),
            "noisier": Affine(noise=0.1),
            "constant": Constant(),
        },
        repeats=1000,
    )


def test_mean_square_is_bias_squared_and_variance(known):
    assert np.allclose(known.rmse**2, known.bias**2 + known["std"] ** 2, rtol=1e-12, atol=1e-24)
    diagonal = np.stack([known.covariance.sel(parameter=p, other=p) for p in ("a", "b")], axis=1)
    assert np.allclose(diagonal, known["std"] ** 2, rtol=1e-12, atol=1e-24)


def test_dimensions_are_named_after_the_parameters(known):
    assert known.bias.dims == ("estimator", "parameter", "a", "b")
    assert known.covariance.dims == ("estimator", "parameter", "other", "a", "b")
    assert known.failed.dims == ("estimator", "a", "b")
    assert known.b.values == pytest.approx(LINE_GRID.axes["b"])
    assert known.b.attrs["unit"] == "1"


@pytest.mark.parametrize(
    ("name", "slope"), [("exact", 1.0), ("shrunk", 0.5), ("constant", 0.0), ("noisier", 1.0)]
)
def test_a_known_affine_estimator_has_its_bias_and_spread(known, name, slope):
    some = known.sel(estimator=name)
    for p in ("a", "b"):
        expected = (slope - 1) * some[p] + (0.25 if name == "shrunk" else 0.0)
        if name == "constant":
            expected = 0.5 - some[p]
        off = (some.bias.sel(parameter=p) - expected) / (some.bias_error.sel(parameter=p) + 1e-9)
        assert abs(off).max() < 4
        std = slope * np.hypot(0.1 * {"a": 1, "b": np.sqrt(2)}[p], 0.1 * (name == "noisier"))
        off = (some["std"].sel(parameter=p) - std) / (some.std_error.sel(parameter=p) + 1e-9)
        assert abs(off).max() < 4
    cross = slope**2 * -0.01
    assert float(some.covariance.sel(parameter="a", other="b").mean()) == pytest.approx(
        cross, abs=3e-4
    )


@pytest.mark.parametrize("name", ["bias", "std", "rmse"])
def test_standard_errors_say_how_runs_differ(name):
    runs = [
        evaluate({"x": Affine(0.8)}, LINE, lw.Gaussian(), 0.1, LINE_GRID, 50, jax.random.key(n))
        for n in range(60)
    ]
    spread = np.std([run[name] for run in runs], axis=0)
    error = np.mean([run[f"{name}_error"] for run in runs], axis=0)
    assert np.median(spread / error) == pytest.approx(1, abs=0.07)


def test_blocks_change_nothing():
    alone = line({"exact": Affine(), "shrunk": Affine(0.5)}, block=1)
    together = line({"exact": Affine(), "shrunk": Affine(0.5)}, block=10**6)
    uneven = line({"exact": Affine(), "shrunk": Affine(0.5)}, block=3 * 400)
    xr.testing.assert_allclose(alone, together, rtol=1e-9, atol=1e-12)
    xr.testing.assert_allclose(uneven, together, rtol=1e-9, atol=1e-12)


def test_same_key_same_numbers_other_key_others():
    first, again = line({"x": Affine()}), line({"x": Affine()})
    xr.testing.assert_identical(first, again)
    other = evaluate({"x": Affine()}, LINE, lw.Gaussian(), 0.1, LINE_GRID, 400, jax.random.key(8))
    assert np.all(other.bias != first.bias)


def test_failed_estimates_are_counted_and_left_out():
    result = line({"x": Affine(fails_below=0.25)}, repeats=500)
    share = stats.norm.cdf((0.25 - LINE_GRID.axes["a"]) / 0.1)
    assert np.allclose(result.failed.sel(estimator="x").mean("b"), share, atol=0.03)
    never = result.sel(estimator="x", a=1.0)
    assert np.all(never.failed == 0)
    assert np.all(np.isfinite(never.bias))


def test_a_point_without_any_estimate_is_nan_and_left_out_of_averages():
    result = line({"x": Affine(fails_below=0.6)}, repeats=100)
    assert np.isnan(result.bias.sel(estimator="x", parameter="a", a=0.0)).all()
    assert np.isnan(result.retained.sel(estimator="x", parameter="a", a=0.0)).all()
    curve = marginal(result, "b").sel(estimator="x", parameter="a")
    assert np.all(np.isfinite(curve.bias))
    assert np.all(np.isfinite(curve.bias_error))


def test_a_label_source_is_told_the_truth():
    result = line({"exact": Affine()}, labels={"truth": Truth(0.0)})
    assert abs(result.rmse.sel(estimator="truth")).max() < 1e-6
    assert list(result.estimator.values) == ["exact", "truth"]


def test_a_black_box_model_works():
    class Black(Straight):
        t: Float[Array, " M"] = lw.per_measurement()
        parameters = Straight.parameters
        differentiable = False

        def signal(self, a, b):
            return np.asarray(a + b * self.t)

    black = evaluate({"x": Affine()}, Black([0.0, 1.0]), lw.Gaussian(), 0.1, LINE_GRID, 100, KEY)
    white = evaluate({"x": Affine()}, LINE, lw.Gaussian(), 0.1, LINE_GRID, 100, KEY)
    assert np.allclose(black.bias, white.bias, atol=1e-6)
    assert np.allclose(black.retained, white.retained, atol=1e-4)


def test_survives_netcdf_with_names_intact(known, tmp_path):
    known = known.assign_coords(estimator=["MLE, α = ½", "b", "c", "d"])
    known.to_netcdf(tmp_path / "it.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "it.nc", engine="scipy") as back:
        xr.testing.assert_equal(back.load(), known)
        assert back.bias.dims == known.bias.dims
        assert back.attrs["noise"] == "Gaussian"
        assert back.a.attrs == known.a.attrs


def test_units_of_time_survive_netcdf(tmp_path):
    model = lw.T2([10.0, 20.0, 40.0])
    grid = Grid({"S0": [1.0], "T2": [30.0, 60.0]})
    fit = lw.MaximumLikelihood(model, lw.Gaussian())
    result = evaluate({"MLE": fit}, model, lw.Gaussian(), 0.01, grid, 20, KEY)
    result.to_netcdf(tmp_path / "it.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "it.nc", engine="scipy") as back:
        assert back.T2.values.tolist() == [30.0, 60.0]
        assert back.T2.attrs["unit"] == "ms"


# ---- averages and summaries


def test_marginal_is_the_mean_over_the_other_dimensions(known):
    curve = marginal(known, "a")
    assert curve.bias.dims == ("estimator", "parameter", "a")
    assert np.allclose(curve.rmse, known.rmse.mean("b"))
    assert np.allclose(curve.bias_error, np.sqrt((known.bias_error**2).sum("b")) / 4)
    assert curve.mutual_information.dims == ("estimator", "parameter")


def test_marginal_of_an_unknown_parameter_says_so(known):
    with pytest.raises(ValueError, match="has a, b, got 'c'"):
        marginal(known, "c")


@pytest.mark.parametrize(("name", "slope"), [("exact", 0.0), ("shrunk", -0.5), ("constant", -1.0)])
def test_summary_finds_slope_and_top(known, name, slope):
    it = summary(known).sel(estimator=name)
    for p, top in (("a", 1.0), ("b", 2.0)):
        here = it.sel(parameter=p)
        assert abs(here.slope - slope) < 4 * here.slope_error + 1e-6
        offset = {"exact": 0.0, "shrunk": 0.25, "constant": 0.5}[name]
        assert abs(here.top - (slope * top + offset)) < 4 * here.top_error + 1e-6
    assert it.abs_bias.dims == ("parameter",)
    assert np.all(it.abs_bias <= it.abs_bias_grid + 1e-12)


def test_a_fixed_parameter_has_no_slope():
    result = evaluate({"MLE": MLE}, ADC, lw.Gaussian(), SIGMA, GRID, 100, KEY)
    it = summary(result).sel(estimator="MLE")
    assert np.isnan(it.slope.sel(parameter="S0"))
    assert np.isfinite(it.slope.sel(parameter="ADC"))
    assert it.mutual_information.sel(parameter="S0") == 0


# ---- information


def test_an_efficient_estimator_retains_all(known):
    assert known.retained.sel(estimator="exact").min() > 0.9999


def test_maximum_likelihood_at_high_snr_retains_nearly_all():
    result = evaluate({"MLE": MLE}, ADC, lw.Gaussian(), SIGMA, GRID, 500, KEY)
    assert result.retained.min() > 0.97
    assert np.allclose(1 + summary(result).slope.sel(parameter="ADC"), 1, atol=0.01)


def test_noise_of_an_estimators_own_loses_what_it_adds(known):
    """C doubles to [[.02, -.01], [-.01, .03]] from [[.01, -.01], [-.01, .02]]; J stays."""
    it = summary(known).sel(estimator="noisier")
    for p, expected in (("a", 0.5), ("b", 2 / 3)):
        here = it.sel(parameter=p)
        assert abs(here.retained - expected) < 4 * here.retained_error + 0.005
        assert here.retained_error < 0.01


def test_shrinking_changes_the_slope_but_loses_no_information(known):
    """An affine map can be undone: slope and information are different things."""
    exact, shrunk = known.sel(estimator="exact"), known.sel(estimator="shrunk")
    assert np.allclose(exact.retained, shrunk.retained, rtol=1e-6)
    assert np.allclose(exact.mutual_information, shrunk.mutual_information, atol=1e-6)


def test_a_constant_says_nothing(known):
    constant = known.sel(estimator="constant")
    assert np.all(constant.retained == 0)
    assert np.all(constant.mutual_information == 0)
    assert np.all(constant["std"] < 1e-12)
    assert np.all(constant.std_error < 1e-12)


def test_the_jackknife_says_how_runs_differ():
    runs = [
        evaluate(
            {"x": Affine(noise=0.1)}, LINE, lw.Gaussian(), 0.1, LINE_GRID, 200, jax.random.key(n)
        )
        for n in range(40)
    ]
    spread = np.std([run.retained for run in runs], axis=0)
    error = np.sqrt(np.mean([run.retained_error**2 for run in runs], axis=0))
    assert 0.85 < np.median(error / spread) < 1.35


def test_noise_alone_retains_nothing_however_few_the_repeats():
    """Without the adjustment of R², 40 repeats would seem to retain about 2 / 39."""
    result = line({}, labels={"noise": Truth(1.0)}, repeats=40)
    assert float(result.retained.mean()) < 0.02


def bits_of(std, truths):
    """I(truth; truth + std N(0, 1)) of equally likely truths, integrated numerically."""

    def mixture(x):
        return np.mean(stats.norm.pdf(x, truths, std))

    def surprise(x):
        p = mixture(x)
        return -p * np.log2(p) if p > 0 else 0.0

    low, high = min(truths) - 8 * std, max(truths) + 8 * std
    total = integrate.quad(surprise, low, high, limit=500)[0]
    return total - 0.5 * np.log2(2 * np.pi * np.e * std**2)


@pytest.mark.parametrize("std", [0.02, 0.1, 0.25, 1.0])
def test_bits_of_the_truth_plus_noise(std):
    result = line({}, labels={"truth": Truth(std)}, repeats=2000)
    for p in ("a", "b"):
        here = result.sel(estimator="truth", parameter=p)
        expected = bits_of(std, LINE_GRID.axes[p])
        assert here.mutual_information == pytest.approx(
            expected, abs=4 * float(here.mutual_information_error) + 0.01
        )
        assert here.mutual_information <= np.log2(len(LINE_GRID.axes[p])) + 1e-9


def test_few_estimates_do_not_look_like_information():
    """Uncorrected, 200 estimates of each of 5 truths in 20 bins show 0.055 bits of nothing."""
    rng = np.random.default_rng(0)
    tables = rng.multinomial(200, np.full(20, 0.05), size=(200, 5))
    bits = [mutual_information(table)[0] for table in tables]
    assert np.mean(bits) < 0.008


def test_bits_of_a_truth_without_estimates_are_unknown():
    assert np.isnan(mutual_information(np.array([[5, 5], [0, 0]]))[0])


# ---- what is refused


def test_rician_scores_agree_with_the_derivative_of_the_log_density():
    from labelwise.evaluation.grid import _Simulator

    points = np.array([[1.0, 0.5], [1.0, 3.0]])
    simulator = _Simulator(ADC, lw.Rician(), 0.2, points, KEY)
    _, voxels, score = next(simulator.blocks(np.arange(2), 50, 1000))

    def log_density(params, data):
        return jnp.sum(lw.Rician().log_density(ADC.signal(*params), data, 0.2))

    expected = jax.vmap(jax.grad(log_density))(jnp.asarray(voxels.params), voxels.signal)
    assert np.allclose(score.reshape(-1, 2), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimators": {}}, "at least one"),
        ({"estimators": {"MLE": MLE}}, "estimates S0, ADC, but the model has a, b"),
        ({"labels": {"x": Truth(0.0)}}, "name of an estimator too"),
        ({"grid": GRID}, "has S0, ADC, but the model's parameters are a, b"),
        ({"sigma": 0.0}, "one positive number"),
        ({"repeats": 1}, "from 2 to"),
    ],
)
def test_refuses(change, message):
    arguments = {
        "estimators": {"x": Affine()},
        "model": LINE,
        "noise": lw.Gaussian(),
        "sigma": 0.1,
        "grid": LINE_GRID,
        "repeats": 10,
        "key": KEY,
    }
    with pytest.raises(ValueError, match=message):
        evaluate(**(arguments | change))


def test_progress_is_told_after_each_block():
    told = []
    line({"x": Affine()}, repeats=10, block=60, progress=lambda *it: told.append(it))
    assert told == [(60, 200), (120, 200), (180, 200), (200, 200)]


class Fixed:
    """Estimates 1 everywhere, with the same interval."""

    parameters = lw.ADC.parameters

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, signal, sigma):
        ones = np.ones((len(signal), 2))
        stats = {"low": self.low * ones, "high": self.high * ones}
        return Estimate(ones, np.full(len(signal), Status.PREDICTED), stats, self.parameters)


def test_coverage_and_interval_score_are_those_of_the_intervals():
    model, grid = lw.ADC([0.0, 0.5, 1.0]), lw.Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
    fit = lw.MaximumLikelihood(model, lw.Gaussian())
    given = {"fixed": Fixed(0.8, 1.2), "MLE": fit}
    result = evaluate(given, model, lw.Gaussian(), 0.05, grid, 40, jax.random.key(0))
    adc = result.sel(parameter="ADC", S0=1.0)
    assert adc.coverage.sel(estimator="fixed").values.tolist() == [0, 1, 0]
    score = adc.interval_score.sel(estimator="fixed").values
    np.testing.assert_allclose(score, [0.4 + 40 * 0.3, 0.4, 0.4 + 40 * 0.8])
    assert adc.coverage.sel(estimator="MLE").isnull().all()
    means = summary(result).sel(estimator="fixed", parameter="ADC")
    assert float(means.coverage_least) == 0
    assert float(means.coverage) == pytest.approx(1 / 3)
    alone = evaluate({"MLE": fit}, model, lw.Gaussian(), 0.05, grid, 4, jax.random.key(0))
    assert "coverage" not in alone


def test_intervals_of_fits_hold_the_truth_in_95_percent_of_repeats():
    model, grid = lw.ADC([0.0, 0.5, 1.0]), lw.Grid({"S0": [1.0], "ADC": [0.7, 1.5]})
    fit = lw.MaximumLikelihood(model, lw.Rician(), intervals=0.95)
    result = evaluate({"fit": fit}, model, lw.Rician(), 0.05, grid, 4000, jax.random.key(0))
    assert (abs(result.coverage - 0.95) < 4 * 0.0035).all()


def test_points_for_which_the_equation_does_not_hold_are_left_out():
    model = lw.Kurtosis([0.0, 0.5, 1.0, 2.0])
    grid = lw.Grid({"S0": [1.0], "D": [0.5, 1.0, 2.0], "K": [0.5, 1.0, 2.0]})
    fits = {"MLE": lw.MaximumLikelihood(model, lw.Gaussian())}
    found = lw.evaluate(fits, model, lw.Gaussian(), 0.02, grid, 30, jax.random.key(0))
    good = np.isfinite(found["rmse"].sel(estimator="MLE", parameter="K").values[0])
    assert good.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert np.isfinite(found.failed.values[0, 0][good]).all()
    assert np.isfinite(summary(found).slope.sel(parameter=["D", "K"])).all()
    # values without a point do not count, and the others by their points
    wide = lw.Grid({"S0": [1.0], "D": [0.5, 1.0, 3.4], "K": [0.5, 1.0, 2.0]})
    found = lw.evaluate(fits, model, lw.Gaussian(), 0.02, wide, 30, jax.random.key(0))
    means = summary(found).sel(estimator="MLE", parameter=["D", "K"])
    for name in ("abs_bias", "slope", "top", "mutual_information", "rmse"):
        assert np.isfinite(means[name]).all()
        assert np.isfinite(means[f"{name}_error"]).all()
    assert (means.abs_bias <= means.rmse).all()
    none = lw.Grid({"S0": [1.0], "D": [2.0], "K": [2.0]})
    with pytest.raises(lw.InputError, match="grid: the equation of Kurtosis holds at no point"):
        lw.evaluate(fits, model, lw.Gaussian(), 0.02, none, 30, jax.random.key(0))
