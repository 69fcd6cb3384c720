"""A graph of opset 13 as it was written before: axes and sizes that are inputs now were attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from burnish.benchmarks.random_graphs.writer import graphs_of

AXES_ARE_INPUTS: Final = 13
_ATTRIBUTES: Final = {"ReduceSum": "axes", "Split": "split", "Squeeze": "axes", "Unsqueeze": "axes"}
"""What opset 13 made of the second input of an operator."""
_NEW_IN_12: Final = frozenset({"GreaterOrEqual", "LessOrEqual", "Max", "Min"})
"""Ops that came, or took integers from then on."""


def age(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Make a model of opset 13 one of 12 or 11, in place; it stays where an axis is not constant.

    A Softmax means something else then: of all axes from its own on.
    """
    nodes = [node for graph in graphs_of(proto.graph) for node in graph.node]
    if not as_attributes(nodes, _constants(proto.graph, nodes)):
        return
    is_newer = any(node.op_type in _NEW_IN_12 for node in nodes)
    proto.opset_import[0].version = 12 if is_newer else int(rng.integers(11, 13))


def as_attributes(nodes: Iterable[onnx.NodeProto], arrays: Mapping[str, np.ndarray]) -> bool:
    """Write axes and sizes as opset 12 wants them, in place; False where one is not constant."""
    moved = [node for node in nodes if node.op_type in _ATTRIBUTES and len(node.input) > 1]
    if any(node.input[1] not in arrays for node in moved):
        return False
    for node in moved:
        numbers = arrays[node.input.pop(1)].tolist()
        node.attribute.append(helper.make_attribute(_ATTRIBUTES[node.op_type], numbers))
    return True


def _constants(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {node.output[0]: node.attribute[0].t for node in nodes if node.op_type == "Constant"}
    return found | {name: numpy_helper.to_array(tensor) for name, tensor in made.items()}
