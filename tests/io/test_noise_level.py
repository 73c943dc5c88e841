import numpy as np
import pytest

from labelwise.io.noise_level import (
    NoiseLevel,
    from_background,
    from_repeats,
    over_repeats,
    repeated_volumes,
)

SIGMA = 7.0


@pytest.fixture
def rng():
    return np.random.default_rng(20240131)


def rician(rng, signal, shape):
    noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return np.abs(signal + SIGMA * noise)


def estimate(volumes):
    return from_repeats(*over_repeats([volumes.T]), len(volumes))


@pytest.mark.parametrize("repeats", [2, 3, 6, 20])
@pytest.mark.parametrize("snr", [(0, 5), (0, 40), (20, 60)], ids=["floor", "mixed", "high"])
def test_repeats_recover_sigma_of_rician_data_at_any_snr(rng, repeats, snr):
    voxels = 40_000
    signal = SIGMA * rng.uniform(*snr, voxels)
    level = estimate(rician(rng, signal, (repeats, voxels)))
    assert level.sigma == pytest.approx(SIGMA, rel=0.02)
    assert level.method == "repeats"


def test_repeats_shrug_off_a_few_pulsating_voxels(rng):
    voxels = 40_000
    volumes = rician(rng, SIGMA * rng.uniform(5, 40, voxels), (6, voxels))
    volumes[:, : voxels // 50] += rng.normal(0, 30 * SIGMA, (6, voxels // 50))
    assert estimate(volumes).sigma == pytest.approx(SIGMA, rel=0.02)


def test_repeats_leave_out_voxels_without_signal_and_say_how_many(rng):
    volumes = rician(rng, np.repeat([0.0, 20 * SIGMA], 5_000), (6, 10_000))
    level = estimate(volumes)
    assert level.voxels == pytest.approx(5_000, rel=0.02)
    assert f"{level.voxels} of 10000 voxels" in level.note


def test_repeats_ignore_voxels_that_are_not_finite(rng):
    volumes = rician(rng, 20 * SIGMA, (6, 10_000))
    clean = estimate(volumes[:, 100:])
    volumes[:, :50], volumes[:, 50:100] = np.nan, 0.0
    assert estimate(volumes).sigma == clean.sigma


def test_repeats_scale_with_the_unit_of_the_signal(rng):
    volumes = rician(rng, 20 * SIGMA, (4, 5_000))
    assert estimate(1e-6 * volumes).sigma == pytest.approx(1e-6 * estimate(volumes).sigma)


@pytest.mark.parametrize("repeats", [0, 1])
def test_repeats_need_two_volumes(repeats):
    with pytest.raises(ValueError, match=f"at least 2 volumes .* got {repeats}"):
        from_repeats(np.ones(100), np.ones(100), repeats)


@pytest.mark.parametrize(
    ("variance", "mean"),
    [
        (np.zeros(100), np.full(100, 50.0)),
        (np.ones(100), np.zeros(100)),
        (np.ones(100), np.full(100, 1.2)),
        (np.ones(5), np.full(5, 50.0)),
        (np.full(100, np.nan), np.full(100, np.nan)),
        (np.zeros(0), np.zeros(0)),
    ],
    ids=["constant", "zero", "noise only", "few voxels", "NaN", "empty"],
)
def test_repeats_without_usable_voxels_are_refused(variance, mean):
    with pytest.raises(ValueError, match=r"expected at least 20 voxels .* got"):
        from_repeats(variance, mean, 4)


@pytest.mark.parametrize(
    ("settings", "tolerance", "volumes"),
    [
        ({"b": np.array([0.8, 0.0, 0.8, 0.8, 0.0])}, 0.0, [1, 4]),
        ({"b": np.array([0.0, 0.005, 0.8, 0.005])}, 0.01, [0, 1, 3]),
        ({"te": np.array([20.0, 10.0, 20.0, 10.0])}, 0.0, [1, 3]),
        ({"te": np.array([20.0, 10.0, 20.0, 10.0, 20.0])}, 0.0, [0, 2, 4]),
    ],
    ids=["b = 0", "nearly b = 0", "shortest", "most often"],
)
def test_volumes_of_one_measurement(settings, tolerance, volumes):
    assert repeated_volumes(settings, tolerance).tolist() == volumes


@pytest.mark.parametrize("name", ["b", "te"])
def test_a_series_without_repeats_is_refused(name):
    with pytest.raises(ValueError, match=r"at least 2 volumes .*, got"):
        repeated_volumes({name: np.array([0.0, 0.8, 1.0])}, 0.0)


def test_blocks_of_voxels_change_no_variance(rng):
    signal = rng.normal(100, 5, (1000, 3)).astype(np.float32)
    whole, parts = over_repeats([signal]), over_repeats(np.split(signal, [1, 400]))
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_allclose(whole[0], np.var(signal.astype(float), axis=1, ddof=1))


def background(rng, kind):
    noise = rng.rayleigh(SIGMA, 50_000)
    extra = {
        "pure": np.zeros(0),
        "tissue": rician(rng, SIGMA * rng.uniform(3, 30, 25_000), 25_000),
        "bright tissue": rician(rng, SIGMA * rng.uniform(5, 500, 25_000), 25_000),
        "ghosts": rician(rng, SIGMA * rng.uniform(0, 5, 2_500), 2_500),
        "blanked": np.zeros(200_000),
        "not finite": np.full(100, np.nan),
    }
    return np.concatenate([noise, extra[kind]])


@pytest.mark.parametrize(
    "kind", ["pure", "tissue", "bright tissue", "ghosts", "blanked", "not finite"]
)
def test_background_recovers_sigma(rng, kind):
    level = from_background(background(rng, kind))
    assert level.sigma == pytest.approx(SIGMA, rel=0.02)
    assert level.method == "background"


@pytest.mark.parametrize("sigma", [1.5, 3.0, 10.0])
def test_background_of_integers_with_their_zeros_left_out(rng, sigma):
    stored = np.round(rng.rayleigh(sigma, 50_000))
    assert from_background(0.37 * stored).sigma == pytest.approx(0.37 * sigma, rel=0.02)


def test_background_cut_below_a_threshold(rng):
    noise = rng.rayleigh(SIGMA, 50_000)
    noise[noise < SIGMA] = 0
    assert from_background(noise).sigma == pytest.approx(SIGMA, rel=0.02)


def test_background_is_what_the_maximum_of_the_likelihood_says_for_pure_noise(rng):
    noise = rng.rayleigh(SIGMA, 50_000)
    assert from_background(noise).sigma == pytest.approx(np.sqrt(np.mean(noise**2) / 2), rel=0.01)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(1000), np.full(1000, np.nan), np.ones(1000), np.arange(1.0, 11.0), np.zeros(0)],
    ids=["blanked", "NaN", "constant", "few", "empty"],
)
def test_background_without_noise_is_refused(samples):
    with pytest.raises(ValueError, match=r"sigma from the background: .* got \d+ of \d+ non-zero"):
        from_background(samples)


def test_a_noise_level_cannot_be_changed():
    level = NoiseLevel(1.0, "repeats", 10, "")
    with pytest.raises(AttributeError):
        level.sigma = 2.0  # type: ignore[misc]
