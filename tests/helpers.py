"""Classes and data that several test files use."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import labelwise as lw
from labelwise import ADC, Parameter, SignalModel, per_measurement
from labelwise.io.noise_level import from_repeats, repeated_volumes
from labelwise.io.schemas import SCHEMAS
from labelwise.mapping.request import Request
from labelwise.mapping.run import run
from labelwise.noise import Rician
from labelwise.types import Estimate, Status

_TURN = 2.399963 * np.arange(30)  # golden angle: an even spiral over half a sphere
_HEIGHT = (np.arange(30) + 0.5) / 30
DIRECTIONS = np.stack(
    [
        np.sqrt(1 - _HEIGHT**2) * np.cos(_TURN),
        np.sqrt(1 - _HEIGHT**2) * np.sin(_TURN),
        _HEIGHT,
    ]
)
"""Thirty directions, (3, 30)."""


def valid(schema, text):
    """The record in a JSON text, which must have the entries of its schema and no others."""
    record = json.loads(text)
    SCHEMAS[schema].validate_python(record, extra="forbid")
    return record


def shells(*b, zeros=2):
    """The settings of thirty directions at each b, after measurements at b = 0."""
    g = np.concatenate([np.zeros((3, zeros)), *[DIRECTIONS] * len(b)], axis=1)
    settings = {"b": np.concatenate([np.zeros(zeros), np.repeat(b, 30)])}
    return settings | dict(zip(("gx", "gy", "gz"), g, strict=True))


MODELS = [
    lw.ADC([0, 0.1, 0.5, 1.0]),
    lw.IVIM([0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.2, 0.4, 0.8]),
    lw.Kurtosis([0, 0.5, 1.0, 2.0, 2.5]),
    lw.T1InversionRecovery([0, 50, 400, 1100, 2500]),
    lw.T1SignedInversionRecovery([0, 50, 400, 1100, 2500]),
    lw.T2([0, 20, 40, 80, 160]),
    lw.T2Biexponential(10.0 * np.arange(33)),
    lw.T2EPG(10.0 * np.arange(1, 17)),
    lw.T2Star([1.1, 2.3, 4.0, 8.0, 16.0, 30.0]),
    lw.T1VariableFlipAngle([2, 4, 8, 15, 25], tr=10),
    lw.T1InversionRecoveryGeneral([50, 400, 1100, 2500], tr=4000),
    lw.T1LookLocker([30, 150, 400, 800, 1500, 3000]),
    lw.StretchedExponential([0, 0.2, 0.5, 1.0, 2.0]),
    lw.IVIMKurtosis([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0]),
    lw.IVIMSimplified([0, 0.2, 0.4, 0.8]),
    lw.IVIMTriexponential([0, 0.003, 0.006, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.5, 0.9]),
    lw.ADCFloor([0, 0.3, 1.0, 2.0, 4.0]),
    lw.T2MultiEcho(10.0 * np.arange(1, 17)),
    lw.T2MultiEchoB1(10.0 * np.arange(1, 17), b1=0.8),
    lw.DTI(**shells(1.0)),
    lw.DKI(**shells(1.0, 2.0)),
    lw.Verdict([0, 0.09, 0.5, 1.5, 2.0, 3.0], [12] * 3 + [20] * 3, [32] * 3 + [40] * 3),
]
"""Each built-in model with an acquisition that determines its parameters; a new one joins them."""

# A small series: tissue with S0 500 and ADC 1.2 µm²/ms in air.
SHAPE = (9, 8, 2)
B = np.array([0, 0, 0, 0, 100, 400, 400, 800]) / 1000
SIGMA = 10.0
TRUTH = (500.0, 1.2)


def noise_of_repeats(signal, b):
    """Sigma of (N, V) signals from the images at b = 0, and the mean of these."""
    volumes = repeated_volumes({"b": b}, 0.0)
    repeated = signal[:, volumes]
    return from_repeats(repeated, Rician()).sigma, repeated.mean(axis=1, dtype=float)


def inside():
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2] = True
    return mask


class BlackBox(SignalModel):
    """ADC in NumPy."""

    b: Float[Array, " M"] = per_measurement()
    differentiable = False
    vectorized = True
    parameters = ADC.parameters

    def signal(self, s0, adc):
        return s0 * np.exp(-self.b * adc)


class Offset(SignalModel):
    """A model that no parameter scales."""

    b: Float[Array, " M"] = per_measurement()
    parameters = (Parameter("A", "a.u.", (0.1, 1)), Parameter("B", "a.u.", (0.1, 1)))

    def signal(self, a, b):
        return a + b * self.b


class Drift(SignalModel):
    """A decay or a rise: a rate of either sign."""

    t: Float[Array, " M"] = per_measurement()
    parameters = (
        Parameter("A", "a.u.", (0.0, np.inf)),
        Parameter("R", "1/ms", (-1.0, 2.0), typical=(-0.8, 0.6)),
    )

    def signal(self, a, r):
        return a * jnp.exp(-r * self.t)


class Fixed:
    """A source that says what it is told, and counts how often it is asked."""

    def __init__(self, values, status=Status.CONVERGED, name="fixed", **stats):
        self.values = np.array(values, np.float32)
        self.status = np.broadcast_to(np.asarray(status, np.uint8), len(self.values)).copy()
        self.stats = stats
        self.name = name
        self.calls = 0

    def __call__(self, voxels):
        self.calls += 1
        return Estimate(self.values, self.status, self.stats)

    def describe(self):
        return {"kind": self.name}


def assert_same(a, b):
    assert a.values.tobytes() == b.values.tobytes()
    assert (a.values.dtype, a.values.shape) == (b.values.dtype, b.values.shape)
    assert (a.status.tobytes(), a.status.dtype) == (b.status.tobytes(), b.status.dtype)
    assert a.stats.keys() == b.stats.keys()
    for name, rows in a.stats.items():
        assert (rows.tobytes(), rows.dtype) == (b.stats[name].tobytes(), b.stats[name].dtype)
        assert rows.shape == b.stats[name].shape


@dataclass(frozen=True)
class Job:
    """A request and a method, run as `fit_image` and `map_image` run them."""

    request: Request
    method: Any

    @classmethod
    def of(cls, method, **options):
        return cls(Request(**options), method)

    def replaced(self, **options):
        """The same with other options of the request or of the method."""
        own = {field.name for field in fields(self.method)}
        theirs = {name: value for name, value in options.items() if name in own}
        rest = {name: value for name, value in options.items() if name not in own}
        return Job(replace(self.request, **rest), replace(self.method, **theirs))

    @property
    def folder(self):
        return self.request.folder

    @property
    def image(self):
        return self.request.image

    @property
    def mask(self):
        return self.request.mask

    def run(self, progress=None):
        return run(self.request, self.method, progress)
