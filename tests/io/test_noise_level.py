import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from labelwise.io.noise_level import (
    NoiseLevel,
    from_background,
    from_repeats,
    repeated_volumes,
)
from labelwise.noise import Gaussian, NoncentralChi, Rician

SIGMA = 7.0


@pytest.fixture
def rng():
    return np.random.default_rng(20240131)


def rician(rng, signal, shape):
    noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return np.abs(signal + SIGMA * noise)


def estimate(volumes, noise=None):
    return from_repeats(volumes.T, noise or Rician())


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
        from_repeats(np.ones((100, repeats)), Rician())


@pytest.mark.parametrize(
    "volumes",
    [
        np.full((100, 4), 50.0),
        np.zeros((100, 4)),
        np.tile([0.0, 2.0, 1.0, 0.5], (100, 1)),
        np.tile([49.0, 50.0, 51.0, 50.0], (5, 1)),
        np.full((100, 4), np.nan),
        np.zeros((0, 4)),
    ],
    ids=["constant", "zero", "noise only", "few voxels", "NaN", "empty"],
)
def test_repeats_without_usable_voxels_are_refused(volumes):
    with pytest.raises(ValueError, match=r"expected at least 20 voxels .* got"):
        from_repeats(volumes, Rician())


def test_gaussian_repeats_are_not_corrected_for_a_noise_floor(rng):
    """Real-valued data at SNR 3 to 5 scatter by sigma; Rician ones by less."""
    signal = SIGMA * rng.uniform(3.2, 5, 40_000)
    real = signal + SIGMA * rng.standard_normal((6, 40_000))
    assert estimate(real, Gaussian()).sigma == pytest.approx(SIGMA, rel=0.01)
    assert estimate(real, Rician()).sigma > 1.02 * SIGMA


def test_repeats_of_several_coils(rng):
    noise = SIGMA * rng.standard_normal((16, 4, 20_000))
    noise[0] += SIGMA * rng.uniform(0, 30, 20_000)
    volumes = np.sqrt((noise**2).sum(axis=0))
    level = estimate(volumes, NoncentralChi(8))
    assert level.sigma == pytest.approx(SIGMA, rel=0.02)
    assert level.doubt == ""


@pytest.mark.parametrize("noise", [Rician(), Gaussian(), NoncentralChi(1)], ids=repr)
@pytest.mark.parametrize("repeats", [2, 4, 12])
@pytest.mark.parametrize("voxels", [100, 5_000])
def test_repeats_that_differ_by_noise_pass(rng, noise, repeats, voxels):
    volumes = rician(rng, SIGMA * rng.uniform(8, 40, voxels), (repeats, voxels))
    assert estimate(volumes, noise).doubt == ""


def spoiled(rng, how, repeats, voxels=4_000):
    signal = SIGMA * rng.uniform(10, 60, voxels)
    clean = np.tile(signal, (repeats, 1))
    if how == "b is not 0":  # 10 to 50 s/mm² written as 0: perfusion has decayed
        clean *= np.linspace(1, 0.8, repeats)[:, None]
    elif how == "drift":
        clean *= np.linspace(1, 1.06, repeats)[:, None]
    elif how == "one of another scale":
        clean[-1] *= 0.9
    elif how == "pulsation":
        clean *= 1 + 0.06 * rng.standard_normal(clean.shape)
    elif how == "motion":  # at a fifth of the voxels, the edges
        clean[:, ::5] *= 1 + 0.2 * rng.standard_normal(clean[:, ::5].shape)
    return rician(rng, clean, clean.shape)


@pytest.mark.parametrize("repeats", [2, 3, 6, 30])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("b is not 0", "median of a repeat differs"),
        ("drift", "median of a repeat differs"),
        ("one of another scale", "median of a repeat differs"),
        ("pulsation", "grows"),
        ("motion", "in a tenth of the voxels"),
    ],
)
def test_repeats_that_are_none_are_doubted(rng, how, words, repeats):
    assert words in estimate(spoiled(rng, how, repeats)).doubt


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


VOLUMES = 6
DECAY = np.exp(-np.linspace(0, 3, VOLUMES))


def air(rng, voxels=5_000, volumes=VOLUMES, sigma=SIGMA):
    return rng.rayleigh(sigma, (voxels, volumes))


def tissue(rng, voxels, low=5.0, high=60.0):
    """Voxels whose signal decays over the volumes, as with b or an echo time."""
    signal = SIGMA * rng.uniform(low, high, (voxels, 1)) * DECAY ** rng.uniform(0.3, 2, (voxels, 1))
    return rician(rng, signal, signal.shape)


def coils(rng, number, voxels=5_000):
    return SIGMA * np.sqrt(rng.chisquare(2 * number, (voxels, VOLUMES)))


def background(rng, kind):
    noise = air(rng)
    extra = {
        "pure": np.zeros((0, VOLUMES)),
        "as much tissue": tissue(rng, 5_000),
        "faint tissue": tissue(rng, 5_000, low=2, high=20),
        "12 % of air": tissue(rng, 36_667),
        "3 % of air": tissue(rng, 161_667),
        "ghosts": rician(rng, SIGMA * rng.uniform(0, 5, (500, 1)), (500, VOLUMES)),
        "blanked": np.zeros((20_000, VOLUMES)),
        "a defaced head": np.concatenate([np.zeros((9_000, VOLUMES)), tissue(rng, 9_000)]),
        "not finite": np.full((100, VOLUMES), np.nan),
    }
    return rng.permutation(np.concatenate([noise, extra[kind]]))


@pytest.mark.parametrize(
    "kind",
    [
        *("pure", "as much tissue", "faint tissue", "12 % of air", "3 % of air", "ghosts"),
        *("blanked", "a defaced head", "not finite"),
    ],
)
def test_background_finds_the_air(rng, kind):
    level = from_background(background(rng, kind), Rician())
    assert level.sigma == pytest.approx(SIGMA, rel=0.03)
    assert level.method == "background"
    assert level.voxels == pytest.approx(5_000, rel=0.15)


@pytest.mark.parametrize(
    ("noise", "samples"),
    [
        (Rician(), lambda rng: air(rng)),
        (NoncentralChi(1), lambda rng: air(rng)),
        (NoncentralChi(4), lambda rng: coils(rng, 4)),
        (NoncentralChi(32), lambda rng: coils(rng, 32)),
        (Gaussian(), lambda rng: rng.normal(0, SIGMA, (5_000, VOLUMES))),
        (Gaussian(), lambda rng: np.abs(rng.normal(0, SIGMA, (5_000, VOLUMES)))),
        (Gaussian(), lambda rng: np.maximum(rng.normal(0, SIGMA, (5_000, VOLUMES)), 0)),
    ],
    ids=["Rician", "one coil", "4 coils", "32 coils", "signed", "folded", "negative set to 0"],
)
def test_background_has_the_distribution_of_the_noise_model(rng, noise, samples):
    assert from_background(samples(rng), noise).sigma == pytest.approx(SIGMA, rel=0.03)


@pytest.mark.parametrize(
    ("noise", "samples"),
    [
        (Rician(), lambda rng: tissue(rng, 20_000)),
        (Rician(), lambda rng: tissue(rng, 300)),
        (Rician(), lambda rng: rician(rng, rng.rayleigh(20 * SIGMA, (5_000, 1)), (5_000, 3))),
        (Rician(), lambda rng: rician(rng, SIGMA * rng.uniform(1, 4, (5_000, 1)), (5_000, 12))),
        (Rician(), lambda rng: np.abs(rng.normal(0, SIGMA, (5_000, VOLUMES)))),
        (Gaussian(), lambda rng: air(rng)),
        (Gaussian(), lambda rng: rng.normal(3 * SIGMA, SIGMA, (5_000, VOLUMES))),
        (Rician(), lambda rng: coils(rng, 8)),
        (Rician(), lambda rng: (air(rng) + air(rng)) / 2),
        (Rician(), lambda rng: air(rng) * np.linspace(0.5, 2, VOLUMES)),
        (Rician(), lambda rng: np.floor(air(rng, sigma=0.6))),
        (Rician(), lambda rng: air(rng, 30, 4)),
        (Rician(), lambda rng: np.zeros((1_000, VOLUMES))),
        (Rician(), lambda rng: np.full((1_000, VOLUMES), np.nan)),
        (Rician(), lambda rng: np.ones((1_000, VOLUMES))),
        (Rician(), lambda rng: np.zeros((0, VOLUMES))),
    ],
    ids=[
        *(
            "tissue",
            "little tissue",
            "Rayleigh-distributed tissue",
            "faint tissue",
            "Gaussian as Rician",
            "Rician as Gaussian",
            "an offset",
        ),
        *("coils as Rician", "interpolated", "volumes of other scales", "too coarse", "few"),
        *("blanked", "NaN", "constant", "empty"),
    ],
)
def test_background_that_is_no_noise_is_refused(rng, noise, samples):
    with pytest.raises(ValueError, match=r"without signal: there is no air|at least 500 samples"):
        from_background(samples(rng), noise)


@pytest.mark.parametrize("sigma", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("stored", [np.round, np.floor], ids=["rounded", "cut"])
def test_background_of_integers(rng, sigma, stored):
    samples = 0.37 * stored(air(rng, sigma=sigma))
    assert from_background(samples, Rician()).sigma == pytest.approx(0.37 * sigma, rel=0.02)


def test_background_cut_below_a_threshold(rng):
    noise = air(rng)
    noise[noise < SIGMA] = 0
    assert from_background(noise, Rician()).sigma == pytest.approx(SIGMA, rel=0.02)


def test_background_scales_with_the_unit_of_the_signal(rng):
    noise = air(rng)
    small, large = (from_background(unit * noise, Rician()).sigma for unit in (1e-6, 1e6))
    assert large == pytest.approx(1e12 * small, rel=1e-3)


class Laplace(Gaussian):
    """A noise model of a user's own, whose background no other has."""

    def log_density(self, signal, data, sigma):
        return -jnp.abs(data - signal) / sigma - jnp.log(2 * sigma)


class Offset(Gaussian):
    """A noise model whose width is not proportional to sigma."""

    own: float = eqx.field(default=1.0)

    def log_density(self, signal, data, sigma):
        return super().log_density(signal, data, sigma + self.own)


def test_background_of_a_noise_model_of_ones_own(rng):
    samples = rng.laplace(0, SIGMA, (5_000, VOLUMES))
    assert from_background(samples, Laplace()).sigma == pytest.approx(SIGMA, rel=0.02)
    with pytest.raises(ValueError, match="Offset does not integrate to 1 or does not scale"):
        from_background(samples, Offset())


def test_a_noise_level_cannot_be_changed():
    level = NoiseLevel(1.0, "repeats", 10, "")
    with pytest.raises(AttributeError):
        level.sigma = 2.0  # type: ignore[misc]
