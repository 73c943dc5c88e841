"""Export of trained networks as ONNX graphs, from signal to parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from labelwise.formatting import json_text
from labelwise.io.files import write_whole
from labelwise.networks.intervals import LEVELS, SNAP
from labelwise.networks.mlp import Architecture, Scaling, Weights
from labelwise.networks.network import Member, Network
from labelwise.types import InputError

OPSET = 17
"""The ONNX operator set, of 2022, which current ONNX runtimes support."""
_FORMAT = 8
_ACTIVATIONS = {"elu": "Elu", "relu": "Relu", "tanh": "Tanh", "softplus": "Softplus"}


def export_onnx(network: Network, path: str | Path) -> None:
    """Write a network, or a blend at its alpha, as one ONNX graph.

    The inputs are `signal` (N, M) and `sigma` (N, 1), noise of one channel in the signal's unit;
    the outputs are `params` (N, P) in the parameters' units, and if the network has intervals their
    ends, `low` and `high` (N, P); all are float32, with any N. The graph contains the reference,
    averaging, scaling and blending. Its outputs equal those of `network` to within rounding, about
    1e-6 of a parameter's mean over the training set. A network for one noise level ignores the
    input `sigma`.

    The graph neither checks its input nor gives a status or standard errors. The output of a voxel
    with a NaN, a negative magnitude, or a reference or sigma that is not positive is NaN, infinite
    or meaningless; other voxels are not affected. The caller has to exclude such voxels.

    The metadata of the file hold, as JSON, `card` (the record of the training), `parameters`
    (name and unit of each column of `params`), `acquisition` (the settings of each column of
    `signal`, b in ms/µm², times in ms) and `intervals` (their kind by parameter).

    Args:
        network: the network to export.
        path: the `.onnx` file, written completely or not at all.

    Raises:
        InputError: if the package `onnx` is missing.
        OSError: if it cannot be written.

    Source: the ONNX specification, https://onnx.ai/onnx/operators.
    """
    try:
        import onnx  # an optional dependency
    except ImportError as error:
        raise InputError(
            "ONNX export needs the package onnx, which is not installed; "
            "pip install 'labelwise[onnx]'"
        ) from error
    graph = _Graph(onnx)
    members = zip(network.members, network.shares, strict=True)
    shares = [graph.share(member, share) for member, share in members if share.any()]
    lower, upper = np.array([p.bounds for p in network.parameters], np.float32).T
    upper = np.minimum(upper, np.finfo(np.float32).max)
    outputs = {"params": graph.node("Sum", *shares)}
    if network.interval_kinds:
        members = zip(network.members, network.shares, strict=True)
        ends = [graph.ends(member, share) for member, share in members if share.any()]
        outputs |= {
            name: graph.node("Sum", *each)
            for name, each in zip(("low", "high"), zip(*ends, strict=True), strict=True)
        }
    ends_of = {"low": ("Min", np.inf), "high": ("Max", -np.inf)}
    for name, value in outputs.items():
        if name in ends_of:  # a confidence interval holds the estimate
            operation, never = ends_of[name]
            kinds = np.array(list(network.interval_kinds.values()))
            free = np.where(kinds == "confidence", 0, np.float32(never))
            value = graph.node(operation, value, graph.node("Add", "params", free))
        graph.node("Min", graph.node("Max", value, lower), upper, name=name)
    measurements = network.members[0].scaling.measurements
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "labelwise",
            [graph.array("signal", measurements), graph.array("sigma", 1)],
            [graph.array(name, len(network.parameters)) for name in outputs],
            graph.constants,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_FORMAT,
        producer_name="labelwise",
        producer_version=network.card.versions["labelwise"],
    )
    metadata = {
        "card": network.card.to_json(),
        "parameters": [{"name": p.name, "unit": p.unit} for p in network.parameters],
        "acquisition": network.card.model["acquisition"],
        "intervals": network.interval_kinds,
    }
    onnx.helper.set_model_props(model, {name: json_text(value) for name, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    write_whole(Path(path), model.SerializeToString(deterministic=True))


class _Graph:
    """The nodes and constants of an ONNX graph under construction."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def array(self, name: str, columns: int) -> Any:
        """An input or output of the graph: N rows of float32."""
        kind = self.onnx.TensorProto.FLOAT
        return self.onnx.helper.make_tensor_value_info(name, kind, ["N", columns])

    def node(self, kind: str, *inputs: str | np.ndarray, name: str = "", **settings: Any) -> str:
        """Add an operation and return the name of its result; arrays become constants."""
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        names = [self._name(each) for each in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], name, **settings))
        return name

    def _name(self, value: str | np.ndarray) -> str:
        if isinstance(value, str):
            return value
        name = f"constant_{len(self.constants)}"
        values = value.astype(np.float32) if value.dtype.kind == "f" else value
        self.constants.append(self.onnx.numpy_helper.from_array(values, name))
        return name

    def share(self, network: Member, alpha: Float[np.ndarray, " P"]) -> str:
        """alpha times the estimate of one network, (N, P) in the parameters' units."""
        raw, unit = self._layers(network.scaling, network.architecture, network.weights)
        outputs = raw if network.architecture.signed else self.node("Abs", raw)
        return self.node("Mul", alpha, self.node("Mul", outputs, unit))

    def ends(self, network: Member, alpha: Float[np.ndarray, " P"]) -> tuple[str, str]:
        """alpha times the low and high ends of one network; see `Heads.quantiles`."""
        assert network.interval is not None
        heads, size = network.interval.heads, len(alpha)
        raw, unit = self._layers(network.scaling, heads.architecture, network.interval.weights)
        raw = self.node("Reshape", raw, np.array([0, size, -1]))
        shares = self.node("CumSum", self.node("Softmax", raw, axis=2), np.array(2))
        low, high = np.array(heads.low), np.array(heads.high)
        ends = []
        for end, bound in ((0, 0.0), (len(LEVELS[heads.kind]) - 1, 1.0)):
            share = self.node("Gather", shares, np.array(end), axis=2)
            share = self.node("Mul", share, np.array(1 + 2 * heads.margin))
            share = self.node("Sub", share, np.array(heads.margin))
            share = self.node("Clip", share, np.array(0.0), np.array(1.0))
            distance = self.node("Abs", self.node("Sub", share, np.array(bound)))
            near = self.node(
                "And", self.node("Less", distance, np.array(SNAP)), np.array(heads.snapped)
            )
            share = self.node("Where", near, np.array(bound), share)
            place = self.node("Add", self.node("Mul", share, high - low), low)
            place = self.node("Where", np.array(heads.logarithmic), self.node("Exp", place), place)
            ends.append(self.node("Mul", alpha, self.node("Mul", place, unit)))
        return ends[0], ends[1]

    def _layers(
        self, scaling: Scaling, architecture: Architecture, weights: Weights
    ) -> tuple[str, str | np.ndarray]:
        """The outputs of the last layer for N voxels, and the parameters at outputs of 1."""
        reference = self._reference(scaling)
        hidden = self._inputs(scaling, reference)
        for layer, (matrix, bias) in enumerate(weights):
            if layer:
                hidden = self.node(_ACTIVATIONS[architecture.activation], hidden)
            # voxels are rows here, columns in labelwise
            hidden = self.node("MatMul", hidden, np.asarray(matrix).T)
            hidden = self.node("Add", hidden, np.asarray(bias).T)
        return hidden, self._unit(scaling, reference)

    def _reference(self, scaling: Scaling) -> str | None:
        """The reference signal (N, 1); None without normalisation."""
        if not scaling.reference:
            return None
        measured = self.node("Gather", "signal", np.array(scaling.reference), axis=1)
        return self.node("ReduceMean", measured, axes=[1], keepdims=1)

    def _inputs(self, scaling: Scaling, reference: str | None) -> str:
        """The inputs of the network (N, I); see `Scaling.inputs`."""
        inputs = self.node("MatMul", "signal", scaling.averages.T)
        sigma = "sigma"
        if reference is not None:
            inputs, sigma = (self.node("Div", each, reference) for each in (inputs, sigma))
        if scaling.conditioned:
            inputs = self.node("Concat", inputs, self.node("Log", sigma), axis=1)
        centred = self.node("Sub", inputs, np.array(scaling.centre))
        return self.node("Div", centred, np.array(scaling.spread))

    def _unit(self, scaling: Scaling, reference: str | None) -> str | np.ndarray:
        """The parameters at outputs of 1, (P,) or (N, P)."""
        unit = np.array(scaling.unit)
        if reference is None or scaling.scale is None:
            return unit
        scaled = np.arange(len(unit)) == scaling.scale
        return self.node("Where", scaled, self.node("Mul", unit, reference), unit)
