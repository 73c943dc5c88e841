"""Networks beside fits, by noise level."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import labelwise as lw
from labelwise.fitting import MaximumLikelihood
from labelwise.networks.network import blend
from labelwise.networks.verification import advice_on_alpha, verified, verify
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate, has_values

MODEL, NOISE = lw.ADC([0.0, 0.2, 0.5, 1.0]), lw.Rician()


@pytest.fixture(scope="module")
def voxels():
    prior = Uniform({"S0": (1.0, 1.0), "ADC": (0.5, 2.0)})
    return simulate(MODEL, NOISE, prior, (1 / 500, 1 / 3), 8000, jax.random.key(0))


@pytest.fixture(scope="module")
def fits(voxels):
    return MaximumLikelihood(MODEL, NOISE)(voxels.signal, voxels.sigma)


class Approximate:
    """A network as precise as the fit, but for an approximation error of a few percent."""

    names = ("S0", "ADC")

    def __init__(self, fits, size):
        wave = 1 + size * np.sin(40 * fits.values[:, 1:])
        self.found = Estimate(fits.values * wave, fits.status)
        self.members = [SimpleNamespace(scaling=SimpleNamespace(reference=(0,)))]

    def without_errors(self):
        return self

    def __call__(self, signal, sigma):
        return self.found


def test_the_fit_itself_passes_at_every_level(voxels, fits):
    found = verify(Approximate(fits, 0.0), voxels, fits)
    assert len(found) == min(20, has_values(fits.status).sum() // 400)  # 400 voxels, or more
    assert all(level["passed"] and level["ratio"]["ADC"] == 1 for level in found)
    ends = np.array([level["noise"] for level in found])
    assert np.all(np.diff(ends.ravel()) >= 0)
    assert ends[0, 0] == pytest.approx(1 / 500, rel=0.1)
    assert ends[-1, 0] < 1 / 3 < ends[-1, 1]  # noise of the reference widens the range


def test_an_error_that_noise_hides_passes_where_it_is_hidden(voxels, fits):
    """2 % are hidden at SNR 10, and many standard errors at SNR 300."""
    found = verify(Approximate(fits, 0.02), voxels, fits)
    for level in found:
        snr = 1 / np.mean(level["noise"])
        assert level["passed"] or snr > 30
        assert not level["passed"] or snr < 150
        if level["passed"]:
            assert np.all(np.array(list(level["error"].values())) < 0.2)


def test_too_few_voxels_say_nothing(voxels, fits):
    few = lw.Voxels(*(rows[:100] for rows in vars(voxels).values()))
    network = Approximate(Estimate(fits.values[:100], fits.status[:100]), 0.5)
    assert verify(network, few, Estimate(fits.values[:100], fits.status[:100])) == []


def test_a_network_without_a_record_is_verified_when_it_is_used(random_network):
    """A file of an older version; a random network is worse than any fit."""
    net = random_network(lw.ADC([0.0, 0.2, 0.5, 1.0]), ((0,), (1,), (2,), (3,)))
    assert net.card.verification is None
    found = verified(net, MODEL, NOISE)
    assert found.card.verification
    assert not found.card.verification[0]["passed"]
    assert verified(found, MODEL, NOISE) is found
    single = dataclasses.replace(net.members[0].scaling, conditioned=False)
    member = dataclasses.replace(net.members[0], scaling=single)
    plain = dataclasses.replace(net, members=(member,))
    assert verified(plain, MODEL, NOISE) is plain


def test_rmse_and_slope_are_those_of_the_estimates(voxels, fits):
    """Halfway to the middle of the prior: a slope of one half."""
    middle = 0.5 * fits.values + 0.5 * np.array([1.0, 1.25], np.float32)
    network = Approximate(fits, 0.0)
    network.found = Estimate(middle, fits.status)
    lowest = verify(network, voxels, fits)[0]  # hardly any noise
    assert lowest["slope"]["ADC"] == pytest.approx(0.5, abs=0.02)
    assert lowest["slope"]["S0"] is None  # S0 is the same in all voxels
    assert lowest["rmse"]["ADC"] == pytest.approx(0.5 * 1.5 / 12**0.5, rel=0.05)


def record(rmse, slope, noise=(0.01, 0.1)):
    numbers = {"rmse": {"S0": 0.1, "ADC": rmse}, "slope": {"S0": 1.0, "ADC": slope}}
    return {"noise": list(noise), "passed": True, **numbers}


@pytest.fixture
def dial(random_network):
    def make(first, second):
        groups = ((0,), (1,), (2,), (3,))
        pair = (random_network(MODEL, groups, verification=each) for each in (first, second))
        return blend(*pair)

    return make


def test_alpha_is_advised_on_where_it_matters(dial):
    noisy = (0.1, 0.5)
    network = dial(
        [record(0.1, 1.0), record(0.9, 1.0, noisy)], [record(0.09, 0.9), record(0.3, 0.4, noisy)]
    )
    assert advice_on_alpha(network, 0.05) == ""  # 0.1 and 0.09
    advice = advice_on_alpha(network, 0.2)
    assert "median SNR of the image, 5, " in advice
    assert "relative to that of alpha 0 is ADC 3; --alpha 0 is recommended" in advice
    assert "a difference of 1 in ADC becomes 0.4" in advice
    assert advice_on_alpha(network.ends[0], 0.2) == ""
    assert advice_on_alpha(dial([], []), 0.2) == ""
