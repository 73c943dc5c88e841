"""Trained networks for those who work elsewhere: an ONNX graph, from signal to parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from labelwise.io.files import write_whole
from labelwise.networks.mlp import Scaling
from labelwise.networks.network import Member, Network
from labelwise.types import InputError

OPSET = 17
"""Of 2022, as is the file format that goes with it: what runs ONNX today reads it."""
_FORMAT = 8
_ACTIVATIONS = {"elu": "Elu", "relu": "Relu", "tanh": "Tanh", "softplus": "Softplus"}


def export_onnx(network: Network, path: str | Path) -> None:
    """Write a network, or a dial as it is set, as one ONNX graph.

    The inputs are `signal` (N, M) and `sigma` (N, 1), noise of one channel in the signal's unit;
    the output is `params` (N, P) in the parameters' units; all are float32, with any N. Reference,
    averaging, scaling and blending are inside; the numbers are those of `network` to within
    rounding, about 1e-6 of a parameter's mean over the training set. A network for one noise level
    has the input `sigma` as well, and does not look at it.

    What stays behind: the input is not checked, and there is neither status nor standard error. A
    voxel with a NaN, a reference that is not positive or a sigma that is not positive gives NaN,
    infinity or a number without meaning, and so does a negative magnitude; no other voxel changes.
    Who calls the graph has to find those voxels.

    The metadata of the file hold, as JSON, `card` (what it was trained for and how), `parameters`
    (name and unit of each column of `params`) and `acquisition` (the settings of each column of
    `signal`, b in ms/µm², times in ms).

    Args:
        network: what to export.
        path: the `.onnx` file, which is whole or not there.

    Raises:
        InputError: if the package `onnx` is missing.
        OSError: if it cannot be written.

    Source: the ONNX specification, https://onnx.ai/onnx/operators.
    """
    try:
        import onnx  # an extra, which few need
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
    within = graph.node("Max", graph.node("Sum", *shares), lower)
    graph.node("Min", within, upper, name="params")
    measurements = network.members[0].scaling.measurements
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "labelwise",
            [graph.array("signal", measurements), graph.array("sigma", 1)],
            [graph.array("params", len(network.parameters))],
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
    }
    onnx.helper.set_model_props(
        model, {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    )
    onnx.checker.check_model(model, full_check=True)
    write_whole(Path(path), model.SerializeToString(deterministic=True))


class _Graph:
    """Nodes and constants, as they are added; names are given on the way."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def array(self, name: str, columns: int) -> Any:
        """What the graph takes or gives: N rows of float32."""
        kind = self.onnx.TensorProto.FLOAT
        return self.onnx.helper.make_tensor_value_info(name, kind, ["N", columns])

    def node(self, kind: str, *inputs: str | np.ndarray, name: str = "", **settings: Any) -> str:
        """Add an operation; arrays become constants. Gives the name of its result."""
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
        """alpha times what one network says, (N, P) in the parameters' units."""
        scaling = network.scaling
        reference = self._reference(scaling)
        hidden = self._inputs(scaling, reference)
        for layer, (matrix, bias) in enumerate(network.weights):
            if layer:
                hidden = self.node(_ACTIVATIONS[network.architecture.activation], hidden)
            # rows are voxels here, columns in labelwise
            hidden = self.node("MatMul", hidden, np.asarray(matrix).T)
            hidden = self.node("Add", hidden, np.asarray(bias).T)
        outputs = self.node("Abs", hidden)
        unit = self._unit(scaling, reference)
        return self.node("Mul", alpha, self.node("Mul", outputs, unit))

    def _reference(self, scaling: Scaling) -> str | None:
        """What a voxel is divided by, (N, 1); None if by nothing."""
        if not scaling.reference:
            return None
        measured = self.node("Gather", "signal", np.array(scaling.reference), axis=1)
        return self.node("ReduceMean", measured, axes=[1], keepdims=1)

    def _inputs(self, scaling: Scaling, reference: str | None) -> str:
        """What the network sees, (N, I); see `Scaling.inputs`."""
        inputs = self.node("MatMul", "signal", scaling.averages.T)
        sigma = "sigma"
        if reference is not None:
            inputs, sigma = (self.node("Div", each, reference) for each in (inputs, sigma))
        if scaling.conditioned:
            inputs = self.node("Concat", inputs, self.node("Log", sigma), axis=1)
        centred = self.node("Sub", inputs, np.array(scaling.centre))
        return self.node("Div", centred, np.array(scaling.spread))

    def _unit(self, scaling: Scaling, reference: str | None) -> str | np.ndarray:
        """What an output of 1 means, (P,) or (N, P)."""
        unit = np.array(scaling.unit)
        if reference is None or scaling.scale is None:
            return unit
        scaled = np.arange(len(unit)) == scaling.scale
        return self.node("Where", scaled, self.node("Mul", unit, reference), unit)
