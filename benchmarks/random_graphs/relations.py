"""Changes of a graph that must not matter: what they add is to vanish, and the result to stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from burnish.benchmarks.random_graphs.aging import AXES_ARE_INPUTS, as_attributes
from burnish.benchmarks.random_graphs.shrink import read_by

_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
_INTS: Final = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@final
@dataclasses.dataclass(frozen=True)
class _Place:
    """A value that nodes read, with what is known of it."""

    name: str
    dtype: int
    dims: tuple[int | None, ...]


Write = Callable[[_Place, "_Draft"], bool]
"""Appends nodes from the value to the draft's result; False where the value does not suit."""


@final
class _Draft:
    """Nodes and constants that are to be put in."""

    def __init__(self, rng: np.random.Generator, result: str) -> None:
        self.rng, self.result = rng, result
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, list(outputs), **attributes))

    def constant(self, array: np.ndarray) -> str:
        name = f"{self.result}_constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def as_before(self) -> None:
        """Write the nodes as opset 12 wants them."""
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.tensors}
        as_attributes(self.nodes, arrays)
        read = read_by(self.nodes)
        self.tensors = [tensor for tensor in self.tensors if tensor.name in read]


def _identity(place: _Place, draft: _Draft) -> bool:
    draft.add("Identity", [place.name], draft.result)
    return True


def _cast(place: _Place, draft: _Draft) -> bool:
    draft.add("Cast", [place.name], draft.result, to=place.dtype)
    return True


def _transposes(place: _Place, draft: _Draft) -> bool:
    if len(place.dims) < 2:
        return False
    perm = [int(axis) for axis in draft.rng.permutation(len(place.dims))]
    draft.add("Transpose", [place.name], f"{draft.result}_there", perm=perm)
    back = [int(axis) for axis in np.argsort(perm)]
    draft.add("Transpose", [f"{draft.result}_there"], draft.result, perm=back)
    return True


def _plus_zero(kinds: tuple[int, ...]) -> Write:
    def write(place: _Place, draft: _Draft) -> bool:
        zero = np.zeros((), helper.tensor_dtype_to_np_dtype(place.dtype))
        draft.add("Add", [place.name, draft.constant(zero)], draft.result)
        return place.dtype in kinds

    return write


def _split(place: _Place, draft: _Draft) -> bool:
    axes = [axis for axis, size in enumerate(place.dims) if size is not None and size > 1]
    if not axes or place.dtype not in (*_FLOATS, *_INTS):
        return False
    axis = int(draft.rng.choice(axes))
    sizes = draft.constant(np.array([1, (place.dims[axis] or 0) - 1]))
    parts = [f"{draft.result}_first", f"{draft.result}_rest"]
    draft.add("Split", [place.name, sizes], *parts, axis=axis)
    draft.add("Concat", parts, draft.result, axis=axis)
    return True


def _reshape(place: _Place, draft: _Draft) -> bool:
    known = [size for size in place.dims if size is not None]
    if len(known) == len(place.dims) and draft.rng.random() < 0.5:
        shape = draft.constant(np.array([size or 0 for size in place.dims], np.int64))
    else:
        shape = f"{draft.result}_shape"
        draft.add("Shape", [place.name], shape)
    draft.add("Reshape", [place.name, shape], draft.result)
    return True


def _unsqueeze(place: _Place, draft: _Draft) -> bool:
    axis = draft.constant(np.array([int(draft.rng.integers(len(place.dims) + 1))], np.int64))
    draft.add("Unsqueeze", [place.name, axis], f"{draft.result}_wide")
    draft.add("Squeeze", [f"{draft.result}_wide", axis], draft.result)
    return True


def _undone(op: str, kinds: tuple[int, ...]) -> Write:
    def write(place: _Place, draft: _Draft) -> bool:
        draft.add(op, [place.name], f"{draft.result}_undone")
        draft.add(op, [f"{draft.result}_undone"], draft.result)
        return place.dtype in kinds

    return write


RELATIONS: Final[dict[str, Write]] = {
    "Identity": _identity,
    "Cast to the same type": _cast,
    "Add of integer 0": _plus_zero(_INTS),
    "Add of 0.0": _plus_zero(_FLOATS),
    "Transpose there and back": _transposes,
    "Split and Concat": _split,
    "Reshape to the same shape": _reshape,
    "Unsqueeze and Squeeze": _unsqueeze,
    "Neg of Neg": _undone("Neg", (*_FLOATS, *_INTS)),
    "Not of Not": _undone("Not", (onnx.TensorProto.BOOL,)),
}
_LOOPS: Final = frozenset({"Loop", "Scan"})
_DIVIDING: Final = frozenset({"Div", "Pow", "Reciprocal"})
_SIGN_OF_ZERO: Final = "it makes 0.0 of -0.0, which a division by what follows can see"
_NEED_SIZES: Final = ("Add of 0.0", "Add of integer 0", "Reshape to the same shape")
_BEHIND_LOOPS: Final = "the analysis of shapes says nothing of the sizes of what a Loop or Scan gives"


def why_it_stays(relation: str, model: bytes) -> str:
    """Why what is put in may be left; empty where it must vanish."""
    proto = onnx.ModelProto.FromString(model)
    ops = {node.op_type for node in proto.graph.node}
    if relation == "Add of 0.0" and ops & _DIVIDING:
        return _SIGN_OF_ZERO
    return _BEHIND_LOOPS if ops & _LOOPS and relation in _NEED_SIZES else ""


def insert(model: bytes, relation: str, seed: int) -> bytes | None:
    """The model with that put in behind a value; None where there is no value that it suits."""
    proto, rng = onnx.ModelProto.FromString(model), np.random.default_rng([seed, 2])
    places = _places(proto)
    for number in rng.permutation(len(places)):
        place = places[int(number)]
        draft = _Draft(rng, f"{place.name}_again")
        if RELATIONS[relation](place, draft):
            if proto.opset_import[0].version < AXES_ARE_INPUTS:
                draft.as_before()
            return _put_in(proto, place, draft)
    return None


def _places(proto: onnx.ModelProto) -> list[_Place]:
    """Values of known type that a node of the main graph reads; not those of constants."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    read = {name for node in graph.node for name in node.input}
    read -= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    found = []
    for info in (*graph.input, *graph.value_info, *graph.output):
        kind = info.type.tensor_type
        if info.name in read and kind.elem_type and kind.HasField("shape"):
            sizes = (dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            found.append(_Place(info.name, kind.elem_type, tuple(sizes)))
    return found


def _put_in(proto: onnx.ModelProto, place: _Place, draft: _Draft) -> bytes:
    nodes: list[onnx.NodeProto] = []
    if not any(place.name in node.output for node in proto.graph.node):  # an input, or a constant
        nodes.extend(draft.nodes)
    for node in proto.graph.node:
        node.input[:] = [draft.result if name == place.name else name for name in node.input]
        nodes.append(node)
        if place.name in node.output:
            nodes.extend(draft.nodes)
    return _with_nodes(proto, nodes, [*proto.graph.initializer, *draft.tensors])


def _with_nodes(
    proto: onnx.ModelProto, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]
) -> bytes:
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(tensors)
    return bytes(result.SerializeToString(deterministic=True))


def shuffle(model: bytes, seed: int) -> bytes:
    """The model with its nodes in another valid order, and its initializers too."""
    proto, rng = onnx.ModelProto.FromString(model), np.random.default_rng([seed, 3])
    made = {name for node in proto.graph.node for name in node.output if name}
    waiting, nodes, done = list(proto.graph.node), list[onnx.NodeProto](), set[str]()
    while waiting:
        ready = [node for node in waiting if read_by([node]) & made <= done]
        node = ready[int(rng.integers(len(ready)))]
        waiting.remove(node)
        nodes.append(node)
        done.update(node.output)
    tensors = [proto.graph.initializer[int(i)] for i in rng.permutation(len(proto.graph.initializer))]
    return _with_nodes(proto, nodes, tensors)


def rename(model: bytes, seed: int) -> bytes:
    """The model with other names for all values but its inputs and outputs."""
    proto, rng = onnx.ModelProto.FromString(model), np.random.default_rng([seed, 4])
    fixed = {info.name for info in (*proto.graph.input, *proto.graph.output)}
    names = _all_names(proto.graph) - fixed
    numbers = rng.permutation(len(names))
    new = {name: f"v{number}" for name, number in zip(sorted(names), numbers, strict=True)}
    todo = [proto.graph]
    while todo:
        graph = todo.pop()
        for tensor in graph.initializer:
            tensor.name = new.get(tensor.name, tensor.name)
        for info in (*graph.input, *graph.output, *graph.value_info):
            info.name = new.get(info.name, info.name)
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
            todo.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    return bytes(proto.SerializeToString(deterministic=True))


def _all_names(graph: onnx.GraphProto) -> set[str]:
    names = {tensor.name for tensor in graph.initializer} | {info.name for info in graph.input}
    for node in graph.node:
        names.update(filter(None, node.output))
        for attribute in node.attribute:
            names |= _all_names(attribute.g)
    return names
