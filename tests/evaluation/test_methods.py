"""What an estimator is, as data."""

import json

import jax
import numpy as np
import pytest

import labelwise as lw
from labelwise.evaluation.methods import Method, methods_of
from labelwise.evaluation.posterior import PosteriorMean
from labelwise.networks.labels import MLE, GroundTruth, Mix
from labelwise.networks.plan import SelfSupervised, TrainingPlan
from labelwise.networks.train import train_networks

MODEL = lw.ADC([0.0, 0.5, 1.0])
PRIOR = lw.Uniform({"S0": (0.8, 1.2), "ADC": (0.5, 2.5)})
MLE_LABEL = MLE(MODEL, lw.Rician())


def trained(*labels, weights=None, **changes):
    recipe = {"signals": 400, "batch": 50, "epochs": 1, "restarts": 1, "warmup": 1, **changes}
    plan = TrainingPlan(
        MODEL, lw.Rician(), PRIOR, 0.1, labels, lw.Recipe.fast(**recipe), weights=weights
    )
    return train_networks(plan)


def found(**estimators):
    dimension, texts = methods_of(estimators)
    assert dimension == "estimator"
    return [Method.from_json(text) for text in texts]


@pytest.fixture(scope="module")
def networks():
    return trained(GroundTruth(), MLE_LABEL, Mix(0.25, MLE_LABEL, GroundTruth()))


def test_networks_by_their_labels(networks):
    gt, mle, mix = found(a=networks[0], b=networks[1], c=networks[2])
    assert gt == Method("ground truth")
    assert mle == Method("maximum likelihood", noise="Rician")
    assert mix == Method("mix", alpha=0.25)
    assert found(a=trained(SelfSupervised())[0]) == [Method("self-supervised")]


def test_a_blend_by_its_alpha(networks):
    blend = lw.blend(networks[1], networks[0], alpha={"S0": 1.0, "ADC": 0.5})
    assert found(a=blend, b=blend.with_alpha(0)) == [
        Method("blend", alpha=0.75),
        Method("blend", alpha=0.0),
    ]


def test_fits_by_their_starts():
    middle = PRIOR.ranges.mean(axis=1).tolist()
    estimators = {
        "search": lw.MaximumLikelihood(MODEL, lw.Rician()),
        "too": MLE(MODEL, lw.Rician(), "search"),
        "truth": MLE_LABEL,
        "mean": MLE(MODEL, lw.Rician(), middle),
    }
    starts = ["", "", "truth", "mean"]
    assert found(**estimators) == [Method("fit", start=start) for start in starts]


def test_others():
    mean = PosteriorMean(MODEL, lw.Rician(), PRIOR, draws=100)
    assert found(a=mean, b=lambda signal, sigma: None) == [Method("posterior mean"), Method()]


def test_a_network_is_wide_or_deep_beside_smaller_ones_only(networks):
    (wide,), (deep,) = trained(GroundTruth(), width=7), trained(GroundTruth(), depth=4)
    assert found(a=networks[0], b=wide, c=deep) == [
        Method("ground truth"),
        Method("ground truth", wide=7),
        Method("ground truth", deep=4),
    ]
    assert found(a=wide) == found(a=deep) == [Method("ground truth")]


@pytest.mark.parametrize(("factors", "weighed"), [((1, 1e6), "ADC"), ((9, 1), "S0"), ((1, 1), "")])
def test_the_parameter_that_the_loss_weighs_most(factors, weighed):
    weights = np.array(factors) / PRIOR.ranges.mean(axis=1)
    (network,) = trained(MLE_LABEL, weights=tuple(weights))
    assert found(a=network)[0].weighed == weighed


def test_an_evaluation_has_its_methods(networks, tmp_path):
    grid = lw.Grid({"S0": [1.0], "ADC": [0.5, 1.0, 2.0]})
    result = lw.evaluate(
        {"gt": networks[0]},
        MODEL,
        lw.Rician(),
        0.1,
        grid,
        10,
        jax.random.key(0),
        labels={"fit": MLE_LABEL},
    )
    result.to_netcdf(tmp_path / "evaluation.nc", engine="scipy")
    kinds = [json.loads(text)["kind"] for text in result.method.values]
    assert kinds == ["ground truth", "fit"]
