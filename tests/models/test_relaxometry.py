"""Relaxation times against their equations in NumPy, and against Bloch's equations in steps."""

import numpy as np
import pytest

from labelwise import (
    T2,
    T2EPG,
    Gaussian,
    MaximumLikelihood,
    Status,
    T1InversionRecovery,
    T1InversionRecoveryGeneral,
    T1LookLocker,
    T1VariableFlipAngle,
    T2Biexponential,
    T2MultiEcho,
    T2MultiEchoB1,
    T2Star,
)
from labelwise.models.evaluate import signals
from labelwise.models.t2_epg import epg
from labelwise.types import InputError

TE = np.array([0.0, 10.0, 35.0, 80.0, 200.0])
TI = np.array([0.0, 50.0, 400.0, 1100.0, 2500.0, 9000.0])


@pytest.mark.parametrize("t2", [1.0, 45.0, 2000.0])
def test_t2_equation(t2):
    np.testing.assert_allclose(T2(TE).signal(9.0, t2), 9 * np.exp(-TE / t2), rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("f", [0.0, 0.15, 1.0])
def test_biexponential_equation(f):
    expected = 5 * (f * np.exp(-TE / 20) + (1 - f) * np.exp(-TE / 80))
    np.testing.assert_allclose(T2Biexponential(TE).signal(5.0, f, 20.0, 80.0), expected, rtol=2e-5)


def test_biexponential_pools_cannot_be_exchanged():
    *_, short, long = T2Biexponential.parameters
    assert short.bounds[1] <= long.bounds[0]


@pytest.mark.parametrize(("t1", "k"), [(900.0, 2.0), (300.0, 1.0), (4500.0, 1.8)])
def test_inversion_recovery_equation(t1, k):
    expected = 7 * np.abs(1 - k * np.exp(-TI / t1))
    np.testing.assert_allclose(
        T1InversionRecovery(TI).signal(7.0, t1, k), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("tr", [2550.0, 6000.0, 20_000.0])
def test_a_finite_repetition_time_is_another_s0_and_k(tr):
    t1 = 1200.0
    recovered = np.exp(-tr / t1)
    expected = np.abs(1 - 2 * np.exp(-TI / t1) + recovered)
    signal = T1InversionRecovery(TI).signal(1 + recovered, t1, 2 / (1 + recovered))
    np.testing.assert_allclose(signal, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("angle", [180.0, 160.0, 120.0, 90.0])
@pytest.mark.parametrize("tr", [2500.0, 1e9])
def test_every_physical_inversion_has_k_between_1_and_2(angle, tr):
    """By iterating the magnetisation along z to its steady state, one 90° read-out each TR."""
    t1, ti = 1000.0, np.array([0.0, 500.0, 2000.0])
    before = np.full(3, 1.0)
    for _ in range(60):
        inverted = before * np.cos(np.deg2rad(angle))
        read = 1 + (inverted - 1) * np.exp(-ti / t1)
        before = 1 - np.exp(-(tr - ti) / t1)
    s0, slope = np.linalg.solve(np.stack([np.ones(2), -np.exp(-ti[:2] / t1)], axis=1), read[:2])
    k = slope / s0
    assert 1 - 1e-6 <= k <= 2 + 1e-6
    np.testing.assert_allclose(T1InversionRecovery(ti).signal(s0, t1, k), np.abs(read), atol=1e-5)


TE_STAR = np.array([1.0, 2.5, 5.0, 12.0, 30.0])


@pytest.mark.parametrize("t2_star", [0.8, 25.0, 400.0])
def test_t2_star_equation_and_rate(t2_star):
    model = T2Star(TE_STAR)
    expected = 9 * np.exp(-TE_STAR / t2_star)
    np.testing.assert_allclose(model.signal(9.0, t2_star), expected, rtol=2e-5, atol=1e-12)
    assert model.derived[0].function(9.0, t2_star) == pytest.approx(1000 / t2_star)


ANGLES, TR = np.array([2.0, 5.0, 10.0, 20.0, 35.0]), 8.0


@pytest.mark.parametrize("t1", [80.0, 900.0, 4000.0])
def test_variable_flip_angle_is_the_steady_state_of_blochs_equation(t1):
    """By repeating pulse, spoiling and recovery until nothing changes."""
    angle, recovery = np.deg2rad(ANGLES), np.exp(-TR / t1)
    along = np.ones_like(angle)
    for _ in range(20_000):
        along = 1 + (along * np.cos(angle) - 1) * recovery
    signal = T1VariableFlipAngle(ANGLES, tr=TR).signal(5.0, t1)
    np.testing.assert_allclose(signal, 5 * along * np.sin(angle), rtol=2e-5)


def test_the_largest_variable_flip_angle_signal_is_at_the_ernst_angle():
    t1, angles = 1000.0, np.linspace(4, 15, 1101)
    signal = np.asarray(T1VariableFlipAngle(angles, tr=TR).signal(1e4, t1))
    ernst = np.rad2deg(np.arccos(np.exp(-TR / t1)))
    assert angles[signal.argmax()] == pytest.approx(ernst, abs=0.1)


QIBA = np.array(
    [
        [0.0003536, 1475, 1276, 981, 644, 406, 276],
        [0.0007071, 1885, 2053, 1746, 1217, 798, 551],
        [0.0014142, 2196, 2953, 2858, 2227, 1541, 1084],
        [0.0028284, 2384, 3773, 4197, 3812, 2878, 2091],
        [0.0056569, 2497, 4386, 5470, 5915, 5068, 3925],
        [0.011314, 2556, 4779, 6453, 8164, 8180, 6981],
    ]
)
"""R1 in 1/ms and the signals of voxels of QIBA's T1 object (v03, noise 2, S0 = 50,000, TR = 5 ms),
as in OSIPI's DCE-DSC-MRI_CodeCollection, test/T1_mapping."""


def test_variable_flip_angle_gives_the_values_of_a_public_reference_object():
    model = T1VariableFlipAngle([3, 6, 9, 15, 24, 35], tr=5.0)
    found = MaximumLikelihood(model, Gaussian())(QIBA[:, 1:], 2.0)
    errors = found.values - np.stack([np.full(len(QIBA), 50_000), 1 / QIBA[:, 0]], axis=1)
    assert (np.abs(errors) < 4 * found.stats["standard_error"]).all()
    np.testing.assert_allclose(found.values[:, 1] * QIBA[:, 0], 1, rtol=0.01)


def test_two_flip_angles_give_the_closed_form():
    """Of the ratio Q of two signals, by Fram et al. 1987."""
    model = T1VariableFlipAngle([5, 20], tr=15)
    one, two = signals(model, np.array([[100.0, 1200.0]]))[0]
    (a, b), q = np.deg2rad([5, 20]), one / two
    e = (q * np.sin(b) - np.sin(a)) / (q * np.sin(b) * np.cos(a) - np.sin(a) * np.cos(b))
    assert -15 / np.log(e) == pytest.approx(1200, rel=1e-9)


@pytest.mark.parametrize("tr", [0.0, -5.0, np.nan])
def test_variable_flip_angle_needs_a_repetition_time(tr):
    with pytest.raises(InputError, match=r"T1VariableFlipAngle\.tr: expected a"):
        T1VariableFlipAngle(ANGLES, tr=tr)


@pytest.mark.parametrize("tr", [2600.0, 6000.0])
@pytest.mark.parametrize("angle", [180.0, 150.0, 90.0])
def test_general_inversion_recovery_is_the_steady_state(angle, tr):
    """By iterating the magnetisation along z, one 90° read-out each TR."""
    t1, ti = 1100.0, np.array([30.0, 400.0, 2500.0])
    before = np.ones(3)
    for _ in range(60):
        read = 1 + (before * np.cos(np.deg2rad(angle)) - 1) * np.exp(-ti / t1)
        before = 1 - np.exp(-(tr - ti) / t1)
    efficiency = (1 - np.cos(np.deg2rad(angle))) / 2
    signal = T1InversionRecoveryGeneral(ti, tr=tr).signal(3.0, t1, efficiency)
    np.testing.assert_allclose(signal, 3 * np.abs(read), atol=1e-5)


def test_general_inversion_recovery_is_the_usual_one_with_another_s0_and_k():
    model, t1, e = T1InversionRecoveryGeneral(TI, tr=9500.0), 900.0, 0.9
    s0 = 1 + (2 * e - 1) * np.exp(-9500 / t1)
    expected = T1InversionRecovery(TI).signal(s0, t1, 2 * e / s0)
    np.testing.assert_allclose(model.signal(1.0, t1, e), expected, atol=1e-6)


def test_general_inversion_recovery_refuses_a_short_repetition_time():
    with pytest.raises(InputError, match=r"tr: expected .* longest inversion time \(9000 ms\)"):
        T1InversionRecoveryGeneral(TI, tr=5000)


@pytest.mark.parametrize("angle", [3.0, 8.0])
def test_look_locker_is_a_train_of_small_pulses(angle):
    """By applying the pulses one by one after a perfect inversion."""
    t1, spacing = 1000.0, 10.0
    along, seen = -1.0, []
    for _ in range(400):
        seen.append(along)
        along = 1 + (along * np.cos(np.deg2rad(angle)) - 1) * np.exp(-spacing / t1)
    t1_star = 1 / (1 / t1 - np.log(np.cos(np.deg2rad(angle))) / spacing)
    model = T1LookLocker(spacing * np.arange(400))
    signal = model.signal(1.0, t1, t1_star / t1)
    assert np.abs(np.asarray(signal) - np.abs(seen)).max() < 0.005
    assert model.derived[0].function(1.0, t1, t1_star / t1) == pytest.approx(t1_star)


def test_look_locker_obeys_the_usual_correction():
    """T1 = T1* (B / A - 1) for |A - B exp(-TI / T1*)|."""
    t1, r = 1200.0, 0.7
    a, b, t1_star = 5 * r, 5 * (1 + r), r * t1
    expected = np.abs(a - b * np.exp(-TI / t1_star))
    np.testing.assert_allclose(T1LookLocker(TI).signal(5.0, t1, r), expected, atol=1e-5)
    assert t1_star * (b / a - 1) == pytest.approx(t1)


@pytest.mark.parametrize("b1", [0.5, 0.63, 0.8, 1.0])
@pytest.mark.parametrize("t2", [12.0, 80.0, 900.0])
@pytest.mark.parametrize("t1", [400.0, 1000.0])
def test_multi_echo_is_the_extended_phase_graph_of_numpy(b1, t2, t1):
    te = 9.5 * np.arange(1, 25)
    expected = epg(np.array([t2]), np.array([b1]), spacing=9.5, echoes=24, t1=t1)[0]
    voxel = signals(T2MultiEcho(te, t1=t1), np.array([[3.0, t2, b1]]))[0]
    np.testing.assert_allclose(voxel, 3 * np.abs(expected), rtol=0, atol=1e-12)
    known = signals(T2MultiEchoB1(te, b1=b1, t1=t1), np.array([[3.0, t2]]))[0]
    np.testing.assert_allclose(known, voxel, rtol=0, atol=1e-12)


def test_multi_echo_and_the_dictionary_fit_the_same():
    """Same noisy signals: T2 and B1 differ by less than a tenth of a standard error."""
    te = 10.0 * np.arange(1, 17)
    rng = np.random.default_rng(0)
    params = np.stack([np.ones(60), rng.uniform(30, 150, 60), rng.uniform(0.6, 0.9, 60)], axis=1)
    signal = signals(T2MultiEcho(te), params) + rng.normal(0, 0.01, (60, 16))
    ours, looked_up = (
        MaximumLikelihood(model, Gaussian())(signal, 0.01) for model in (T2MultiEcho(te), T2EPG(te))
    )
    inside = (ours.status == Status.CONVERGED) & (looked_up.status == Status.CONVERGED)
    assert inside.mean() > 0.9
    difference = np.abs(ours.values - looked_up.values)[inside]
    assert np.all(difference < 0.1 * ours.stats["standard_error"][inside])


def test_multi_echo_refuses_what_is_no_train():
    with pytest.raises(InputError, match=r"T2MultiEcho\.te: expected equally spaced echoes"):
        T2MultiEcho([10, 20, 40])
    with pytest.raises(InputError, match=r"T2MultiEchoB1\.b1: expected a share of 180°"):
        T2MultiEchoB1([10, 20, 30], b1=160)
