"""What a graph may be like besides what its nodes compute: names, outputs, defaults of inputs, functions.

Each twist keeps the model valid and what its outputs mean; it is what tools write and passes stumble over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from onnx import helper

from burnish.benchmarks.random_graphs.shrink import read_by
from burnish.benchmarks.random_graphs.writer import graphs_of

Twist = Callable[[onnx.ModelProto, np.random.Generator], None]

_CHANCE: Final = 0.12
_DOMAIN: Final = "local"
_MADE_UP: Final = (
    "_constant", "_stored", "_shape", "_row", "_table", "_folded", "_numbers", "_joined", "_half", "_vector",
    "_cast", "_dims", "_low", "_1",
)  # fmt: skip
"""Endings of the names that passes give to what they make."""
_UNARY: Final = ("Abs", "Neg", "Relu", "Sigmoid", "Tanh")


def twist(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Change a model in some of the ways, in place."""
    for change in TWISTS:
        if rng.random() < _CHANCE:
            change(proto, rng)


def _names_of_others(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Nodes are called as passes would call others: `node_` and the name of a value; some have no name."""
    nodes = [node for graph in graphs_of(proto.graph) for node in graph.node]
    for node, place in zip(nodes, rng.permutation(len(nodes)), strict=True):
        if rng.random() < 0.7:
            node.name = f"node_{nodes[int(place)].output[0]}"


def _names_of_passes(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Values are called what passes would call what they make of others."""
    graphs = list(graphs_of(proto.graph))
    fixed = {info.name for info in (*proto.graph.input, *proto.graph.output)}
    made = [name for graph in graphs for node in graph.node for name in node.output if name not in fixed]
    known = fixed | set(made) | {tensor.name for tensor in proto.graph.initializer}
    new: dict[str, str] = {}
    for name in made:
        wish = f"{made[int(rng.integers(len(made)))]}{_MADE_UP[int(rng.integers(len(_MADE_UP)))]}"
        if rng.random() < 0.5 and wish not in known:
            known.add(wish)
            new[name] = wish
    for graph in graphs:
        for info in (*graph.output, *graph.value_info):
            info.name = new.get(info.name, info.name)
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]


def _outputs_that_are_not_made(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An input, or a constant, is an output too."""
    infos = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
    choices = [*proto.graph.input, *infos]
    known = {info.name for info in proto.graph.output}
    chosen = choices[int(rng.integers(len(choices)))]
    if chosen.name not in known:
        proto.graph.output.append(chosen)


def _an_output_again(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Two outputs are one value, by way of an Identity."""
    source = proto.graph.output[int(rng.integers(len(proto.graph.output)))]
    again = onnx.ValueInfoProto()
    again.CopyFrom(source)
    again.name = f"{source.name}_again_out"
    proto.graph.node.append(helper.make_node("Identity", [source.name], [again.name]))
    proto.graph.output.append(again)


def _defaults(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A float weight is the default of an input: a caller may give another."""
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    if floats:
        tensor = floats[int(rng.integers(len(floats)))]
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _functions(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Some operators are local functions; one takes its constant from the call."""
    opsets, used = list(proto.opset_import), set[str]()
    for node in (node for graph in graphs_of(proto.graph) for node in graph.node):
        if node.op_type in _UNARY and not node.domain and rng.random() < 0.7:
            used.add(node.op_type)
            node.domain, node.op_type = _DOMAIN, f"My{node.op_type}"
    for op_type in sorted(used):
        body = [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node(op_type, ["i"], ["r"]),
            helper.make_node("Identity", ["r"], ["y"]),
        ]
        proto.functions.append(helper.make_function(_DOMAIN, f"My{op_type}", ["x"], ["y"], body, opsets))
    if used:
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _unused(proto: onnx.ModelProto, _: np.random.Generator) -> None:
    """A weight that nothing reads, and shapes of values that are said."""
    proto.graph.initializer.append(
        helper.make_tensor("nobody_reads", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    )
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    made = read_by(proto.graph.node)
    proto.graph.value_info.extend(info for info in inferred.graph.value_info if info.name in made)


TWISTS: Final[tuple[Twist, ...]] = (
    _names_of_passes, _outputs_that_are_not_made, _an_output_again, _defaults,
    _functions, _unused, _names_of_others,
)  # fmt: skip
