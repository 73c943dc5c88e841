"""The exported graph, run by ONNX's own runtime, says what the network says."""

import json
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from labelwise import IVIM, Rician
from labelwise.networks.intervals import Heads, IntervalNetwork
from labelwise.networks.labels import GroundTruth
from labelwise.networks.mlp import ACTIVATIONS
from labelwise.networks.network import blend, with_interval
from labelwise.networks.onnx import OPSET, export_onnx
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.recipe import Recipe
from labelwise.networks.train import train_networks
from labelwise.priors import Uniform
from labelwise.simulation import simulate
from labelwise.types import Estimate

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

NOISE = Rician()
MODEL = IVIM([0.0, 0.8, 0.0, 0.01, 0.05, 0.2, 0.4, 0.05, 0.0])  # with repeats
VOXELS = simulate(MODEL, NOISE, Uniform.paper(), (1 / 50, 1 / 10), 5000, jax.random.key(7))
RECIPE = Recipe.fast(signals=2500, batch=50, epochs=4, restarts=1, warmup=10)


class Squeezed:
    """A label other than the truth, without a fit."""

    def __call__(self, voxels):
        truth = GroundTruth()(voxels)
        return Estimate(0.5 * truth.values + np.float32(0.1), truth.status)

    def describe(self):
        return {"kind": "squeezed"}


def taught(sigma, normalise, *labels):
    return train_networks(
        TrainingPlan(
            *(MODEL, NOISE, Uniform.paper(), sigma, labels, RECIPE),
            normalise=normalise,
            intervals=True,
        )
    )


@pytest.fixture(scope="module")
def ends():
    """A dial's two networks: repeats averaged, normalised, told the noise level."""
    return taught((1 / 50, 1 / 10), True, Squeezed(), GroundTruth())


@pytest.fixture(scope="module")
def networks(ends):
    return {
        "conditioned": ends[1],
        "dial": blend(*ends, alpha={"f": 0.3, "D_slow": 0.0}),
        "end of the dial": blend(*ends, alpha=0.0),
        "one level": taught(1 / 20, False, GroundTruth())[0],
    }


def run(path, signal, sigma):
    (params,) = runtime.InferenceSession(path).run(
        ["params"], {"signal": signal, "sigma": np.reshape(sigma, (-1, 1))}
    )
    return params


def assert_agree(network, path):
    """To 1e-6 of each parameter's mean, or of its value where that is larger: twice, for a dial."""
    tolerance = 2e-6 if network.is_blend else 1e-6
    expected = network(VOXELS.signal, VOXELS.sigma).values
    error = np.abs(run(path, VOXELS.signal, VOXELS.sigma) - expected)
    assert error.shape == expected.shape
    assert np.all(
        error <= tolerance * np.maximum(np.array(network.members[0].scaling.unit), np.abs(expected))
    )


@pytest.mark.parametrize("name", ["conditioned", "dial", "end of the dial", "one level"])
def test_the_graph_says_what_the_network_says(networks, name, tmp_path):
    network = networks[name]
    export_onnx(network, tmp_path / "net.onnx")
    assert_agree(network, tmp_path / "net.onnx")


@pytest.mark.parametrize("alpha", [0.0, (1.0, 0.0, 0.4, 0.7), 1.0])
def test_the_graph_holds_the_ends_of_intervals(ends, alpha, tmp_path):
    heads = ends[1].members[0].interval.heads
    snapped = Heads(
        "confidence",
        replace(heads.architecture, outputs=12),
        low=(0.5, 0.2, 0.1, -3.0),
        high=(1.5, 1.5, 2.0, 3.0),
        logarithmic=(False, False, False, True),
        snapped=(False, True, True, True),
    )
    weights = jax.tree.map(lambda each: 3 * each, snapped.initial(np.random.default_rng(1)))
    network = blend(with_interval(ends[0], IntervalNetwork(snapped, weights, {})), ends[1], alpha)
    export_onnx(network, tmp_path / "net.onnx")
    expected = network(VOXELS.signal, VOXELS.sigma)
    found = runtime.InferenceSession(tmp_path / "net.onnx").run(
        ["params", "low", "high"],
        {"signal": VOXELS.signal, "sigma": np.reshape(VOXELS.sigma, (-1, 1))},
    )
    several = (expected.values, expected.stats["low"], expected.stats["high"])
    for one, other in zip(found, several, strict=True):
        far = np.abs(one - other) > 1e-4 * np.maximum(np.abs(other), heads.high)
        assert far.mean() < 1e-3  # an end that rounding takes over the limit of a bound
    model = onnx.load(tmp_path / "net.onnx")
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said["intervals"] == network.interval_kinds


def test_signed_outputs_keep_their_sign(ends, tmp_path):
    (member,) = ends[0].members
    free = tuple(replace(each, bounds=(-9.0, 9e3)) for each in ends[0].parameters)
    *hidden, (matrix, bias) = member.architecture.initial(np.random.default_rng(3))
    weights, layers = (*hidden, (matrix, bias - 1)), replace(member.architecture, signed=True)
    member = replace(member, architecture=layers, weights=weights)
    network = replace(ends[0], members=(member,), parameters=free)
    values = network(VOXELS.signal, VOXELS.sigma).values
    assert (values < 0).any(axis=0).all()
    export_onnx(network, tmp_path / "net.onnx")
    assert_agree(network, tmp_path / "net.onnx")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_its_node(ends, activation, tmp_path):
    (member,) = ends[0].members
    architecture = replace(member.architecture, activation=activation)
    weights = architecture.initial(np.random.default_rng(3))
    member = replace(member, architecture=architecture, weights=weights)
    network = replace(ends[0], members=(member,))
    export_onnx(network, tmp_path / "net.onnx")
    assert_agree(network, tmp_path / "net.onnx")


def test_the_unit_of_the_signal_is_free(networks, tmp_path):
    export_onnx(networks["conditioned"], tmp_path / "net.onnx")
    usual = run(tmp_path / "net.onnx", VOXELS.signal, VOXELS.sigma)
    louder = run(tmp_path / "net.onnx", 1024 * VOXELS.signal, 1024 * VOXELS.sigma)
    np.testing.assert_allclose(louder, usual * [1024, 1, 1, 1], rtol=1e-6)


def test_a_bad_voxel_is_left_to_the_caller_and_touches_no_other(networks, tmp_path):
    export_onnx(networks["conditioned"], tmp_path / "net.onnx")
    signal, sigma = VOXELS.signal[:9], VOXELS.sigma[:9]
    usual = run(tmp_path / "net.onnx", signal, sigma)
    spoilt = signal.copy()
    spoilt[2, 3] = np.nan
    spoilt[5] = 0
    found = run(tmp_path / "net.onnx", spoilt, sigma)
    assert not np.isfinite(found[[2, 5]]).all(axis=1).any()
    others = [0, 1, 3, 4, 6, 7, 8]
    np.testing.assert_array_equal(found[others], usual[others])


def test_the_graph_takes_any_number_of_voxels_and_says_what_it_is(networks, tmp_path):
    network = networks["dial"]
    export_onnx(network, str(tmp_path / "net.onnx"))
    model = onnx.load(tmp_path / "net.onnx")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"signal": ["N", 9], "sigma": ["N", 1], "params": ["N", 4]}
    assert [known.version for known in model.opset_import] == [OPSET]
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said["card"] == json.loads(json.dumps(network.card.to_json()))
    assert said["parameters"][2] == {"name": "D_slow", "unit": "µm²/ms"}
    assert said["acquisition"]["b"] == MODEL.b.tolist()


def test_a_network_that_has_no_share_is_not_in_the_graph(networks, tmp_path):
    sizes = {}
    for name in ("conditioned", "end of the dial", "dial"):
        export_onnx(networks[name].without_errors(), tmp_path / "net.onnx")
        sizes[name] = len(onnx.load(tmp_path / "net.onnx").graph.node)
    assert sizes["conditioned"] == sizes["end of the dial"] < sizes["dial"]


def test_the_same_network_is_the_same_file_alone_in_its_folder(networks, tmp_path):
    for name in ("one", "two"):
        export_onnx(networks["dial"], tmp_path / f"{name}.onnx")
    one, two = sorted(tmp_path.iterdir())
    assert one.read_bytes() == two.read_bytes()


def test_without_the_package_the_remedy_is_named(networks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'labelwise\[onnx\]'"):
        export_onnx(networks["dial"], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
