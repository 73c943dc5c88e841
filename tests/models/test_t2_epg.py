"""Extended phase graphs against Bloch's equations for many spins; the dictionary against both."""

import numpy as np
import pytest

from labelwise import T2, T2EPG
from labelwise.models.t2_epg import epg
from labelwise.types import InputError

ECHOES = 12
TE = 10.0 * np.arange(1, ECHOES + 1)


def bloch(t2, b1, spacing, echoes, t1):
    """Spins that dephase evenly over a turn between pulse and echo, rotated and relaxed singly."""
    spins = 4 * echoes + 4
    phase = 2 * np.pi * np.arange(spins) / spins
    transverse, along = np.ones(spins, complex), np.zeros(spins)
    decay, recovery = np.exp(-spacing / 2 / t2), np.exp(-spacing / 2 / t1)
    angle, train = np.pi * b1, []
    for _ in range(echoes):
        transverse, along = transverse * decay * np.exp(1j * phase), 1 + (along - 1) * recovery
        y = transverse.imag * np.cos(angle) - along * np.sin(angle)
        along = transverse.imag * np.sin(angle) + along * np.cos(angle)
        transverse = transverse.real + 1j * y
        transverse, along = transverse * decay * np.exp(1j * phase), 1 + (along - 1) * recovery
        train.append(transverse.mean())
    return np.array(train)


@pytest.mark.parametrize("b1", [1.0, 0.95, 0.8, 0.67, 0.5, 1.2])
@pytest.mark.parametrize(("t2", "t1"), [(80.0, 1000.0), (10.0, 1000.0), (500.0, 600.0)])
def test_phase_graphs_are_the_bloch_equations(b1, t2, t1):
    ours = epg(np.array([t2]), np.array([b1]), spacing=10.0, echoes=ECHOES, t1=t1)[0]
    np.testing.assert_allclose(ours, bloch(t2, b1, 10.0, ECHOES, t1), rtol=0, atol=1e-12)


def test_perfect_pulses_give_one_exponential():
    np.testing.assert_allclose(
        T2EPG(TE).signal(3.0, 80.0, 1.0), T2(TE).signal(3.0, 80.0), atol=5e-5
    )


@pytest.mark.parametrize("b1", [0.5, 0.77, 1.0])
def test_first_echo_is_known_in_closed_form(b1):
    expected = np.sin(np.pi * b1 / 2) ** 2 * np.exp(-10 / 60)
    assert T2EPG(TE).signal(1.0, 60.0, b1)[0] == pytest.approx(expected, abs=5e-5)


def test_stimulated_echoes_look_like_a_longer_t2():
    signal = T2EPG(TE).signal(1.0, 80.0, 0.8)
    slope, _ = np.polyfit(TE, np.log(signal), 1, w=signal)
    assert -1 / slope > 85


@pytest.mark.parametrize(("spacing", "echoes"), [(10.0, 32), (5.0, 24), (12.0, 8), (10.0, 48)])
def test_dictionary_is_as_close_as_it_says(spacing, echoes):
    random = np.random.default_rng(0)
    t2 = np.exp(random.uniform(*np.log([5.0, 2000.0]), 3000))
    b1 = random.uniform(0.5, 1.0, 3000)
    train = spacing * np.arange(1, echoes + 1)
    looked_up = T2EPG(train).signal(np.ones((3000, 1)), t2[:, None], b1[:, None])
    exact = np.abs(epg(t2, b1, spacing=spacing, echoes=echoes, t1=1000.0))
    assert np.abs(looked_up - exact).max() < 5e-5


@pytest.mark.parametrize(("inside", "outside"), [((5.0, 0.5), (0.0, -1.0)), ((2000, 1), (9e9, 3))])
def test_beyond_the_bounds_counts_as_on_them(inside, outside):
    model = T2EPG(TE)
    np.testing.assert_array_equal(model.signal(1.0, *outside), model.signal(1.0, *inside))


def test_t1_hardly_matters():
    short, long = (T2EPG(TE, t1=t1).signal(1.0, 80.0, 0.8) for t1 in (800.0, 1500.0))
    assert 0 < np.abs(short - long).max() < 0.01


@pytest.mark.parametrize(
    "te",
    [
        [10, 20, 40],
        [20, 30, 40],
        [20, 10, 30],
        [0, 10, 20],
        [-10, -20, -30],
        [10, 20, 30.5],
        [10, np.nan],
    ],
    ids=str,
)
def test_refuses_echoes_that_are_no_train(te):
    with pytest.raises(ValueError, match="equally spaced echoes"):
        T2EPG(te)


@pytest.mark.parametrize("spacing", [9.67, 10.03, 6.15, 10.0])
def test_times_rounded_to_a_tenth_are_those_of_their_spacing(spacing):
    exact = spacing * np.arange(1, 33)
    rounded, signals = T2EPG(np.round(exact, 1)), T2EPG(exact).signal(1.0, 60.0, 0.8)
    np.testing.assert_allclose(rounded.signal(1.0, 60.0, 0.8), signals, rtol=0, atol=1e-3)


def test_exact_times_are_taken_as_they_are():
    """The first echo is the spacing, to the last bit."""
    np.testing.assert_array_equal(
        T2EPG([9.67, 19.34, 29.01]).signal(1.0, 60.0, 0.8),
        T2EPG(9.67 * np.arange(1, 4)).signal(1.0, 60.0, 0.8),
    )


@pytest.mark.parametrize("te", [[9.7, 19.3, 29.2], [10, 20.2, 30], [9.7, 19.3, 29.0, 48.4]])
def test_what_rounding_cannot_explain_is_refused(te):
    with pytest.raises(InputError, match=r"exact or rounded to 0\.1 ms"):
        T2EPG(te)


@pytest.mark.parametrize("t1", [0.0, -1.0, np.inf, np.nan])
def test_refuses_a_t1_that_is_none(t1):
    with pytest.raises(ValueError, match=r"T2EPG\.t1"):
        T2EPG(TE, t1=t1)
