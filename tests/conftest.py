"""What several test files need."""

import jax
import numpy as np
import pytest

from helpers import SIGMA, TRUTH, B, inside
from labelwise import ADC, Rician
from labelwise.models.find import describe_model
from labelwise.networks.card import Card
from labelwise.networks.mlp import Architecture, Scaling
from labelwise.networks.network import Member, Network
from labelwise.noise import describe_noise


@pytest.fixture
def random_network():
    """Makes networks with random weights, for four groups of measurements, b = 0 the first."""

    def make(model, groups, seed=0, conditioned=True, **card):
        architecture = Architecture(5, 2, 8)
        scaling = Scaling(
            groups=groups,
            reference=groups[0],
            scale=0,
            conditioned=conditioned,
            centre=(0.5,) * 4 + (-4.0,),
            spread=(0.3,) * 4 + (1.0,),
            unit=(1.0, 1.5),
        )
        record = {
            "model": describe_model(model),
            "noise": describe_noise(Rician()),
            "prior": {"kind": "uniform"},
            "sigma": [0.001, 0.5],
            "label": {"kind": "random"},
            "label_report": None,
            "label_range": [[0.8, 1.2], [0.0, 100.0]],
            "ranges": [[0.8, 1.2], [0.0, 100.0]],
            "noise_range": [0.001, 0.5],
            "normalised": True,
            "on_bound": "drop",
            "weights": None,
            "recipe": {},
            "seed": seed,
            "validation": {"loss": 0.1, "epoch": 1, "restarts": [0.1], "ended": []},
            "versions": {"labelwise": "0"},
        }
        weights = architecture.initial(np.random.default_rng(seed))
        member = Member(architecture, scaling, weights, Card(**record | card))
        return Network((member,), model.parameters, Rician(), (1.0,) * len(model.parameters))

    return make


@pytest.fixture(scope="session")
def data():
    """The small series of `helpers`, with Rician noise."""
    signal = np.asarray(ADC(b=B).signal(*TRUTH)) * inside()[..., None]
    noisy = Rician().sample(jax.random.key(3), signal, np.float32(SIGMA))
    return np.asarray(noisy, np.float32)
