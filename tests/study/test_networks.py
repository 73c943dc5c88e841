"""Which networks a study trains."""

import dataclasses

import numpy as np
import pytest

import labelwise as lw
from labelwise.evaluation.methods import Method, methods_of
from labelwise.networks.labels import Mix
from labelwise.study import methods
from labelwise.study.config import Study, paper
from labelwise.study.evaluation import fits
from labelwise.study.networks import mle_of_the_noise, network_sets, points, train_all
from labelwise.study.stages import opened
from study.conftest import tiny


def labels(study):
    return {name: label for group in network_sets(study) for name, label in group.labels.items()}


def test_the_papers_networks_are_all_there():
    known = labels(paper())
    assert {
        methods.GT,
        methods.SELF,
        methods.MLE_RICIAN,
        methods.MLE_GAUSSIAN,
        methods.HYBRID,
    } <= set(known)
    assert {methods.own_weight(name) for name in ("f", "D_slow", "D_fast")} <= set(known)
    assert {methods.GT_ABSOLUTE, methods.MLE_ABSOLUTE} <= set(known)
    assert isinstance(known[methods.HYBRID], Mix)


def test_one_parameter_weighs_a_million_times_more():
    (network_set,) = (c for c in network_sets(paper()) if c.weights)
    row = np.array(network_set.weights[methods.own_weight("D_slow")])
    middles = paper().prior.ranges.mean(axis=1)
    assert np.allclose(row * middles, [1, 1, 1e6, 1])


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"hybrid": 0}, methods.HYBRID),
        ({"own_weight": 0}, methods.own_weight("f")),
        ({"absolute_loss": False}, methods.GT_ABSOLUTE),
        ({"labels": ("gt",)}, methods.MLE_RICIAN),
    ],
)
def test_what_is_not_wanted_is_not_trained(changes, gone):
    assert gone in labels(paper())
    assert gone not in labels(paper(**changes))


def test_variants_have_their_own_shape():
    found = {(c.wide, c.deep): set(c.labels) for c in network_sets(paper(wide=150, deep=10))}
    bases = methods.GT, methods.MLE_RICIAN
    assert found[150, 0] == {methods.larger(name, 150, 0)[0] for name in bases}
    assert found[0, 10] == {methods.larger(name, 0, 10)[0] for name in bases}


def test_labels_follow_the_simulated_noise():
    gaussian = paper(noise=lw.Gaussian())
    assert mle_of_the_noise(paper()) == methods.MLE_RICIAN
    assert mle_of_the_noise(gaussian) == methods.MLE_GAUSSIAN


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    study = tiny(trainings=1, wide=12, deep=4)
    with opened(tmp_path_factory.mktemp("nets"), lambda *words: None) as stages:
        return study, train_all(study, stages, 0), [stage.stage for stage in stages.stage_times]


def test_all_networks_begin_with_the_chosen_weights(trained):
    study, networks, stage_times = trained
    assert stage_times == ["first weights, SNR 30", "networks, SNR 15", "networks, SNR 30"]
    chosen = networks[30.0][methods.GT]
    assert len(chosen.card.validation["restarts"]) == study.recipe.restarts
    for snr in study.snrs:
        larger = methods.larger(methods.GT, 12, 4) + methods.larger(methods.MLE_RICIAN, 12, 4)
        others = [n for name, n in networks[snr].items() if not n.is_blend and name not in larger]
        assert all(len(n.card.validation["restarts"]) == 1 for n in others if n is not chosen)


def test_names_follow_from_what_the_networks_are(trained):
    study, networks, _ = trained
    here = {**fits(study), **networks[15.0]}
    assert [Method.from_json(text).name for text in methods_of(here)[1]] == list(here)


def test_the_blend_is_of_the_two_ends(trained):
    _, networks, _ = trained
    blend = networks[15.0][methods.blend(0.5)]
    assert blend.members == (
        *networks[15.0][methods.MLE_RICIAN].members,
        *networks[15.0][methods.GT].members,
    )
    assert set(points(networks[15.0])) == set(networks[15.0])


def test_one_set_of_networks_serves_all_levels(tmp_path):
    study = tiny(
        trainings=1, levels=(1 / 40, 1 / 10), normalise=True, absolute_loss=False, own_weight=0
    )
    study = dataclasses.replace(study, recipe=dataclasses.replace(study.recipe, shared_start=False))
    assert isinstance(study, Study)
    with opened(tmp_path, lambda *words: None) as stages:
        networks = train_all(study, stages, 0)
    assert networks[15.0] is networks[30.0]
    assert networks[15.0][methods.GT].members[0].scaling.conditioned
