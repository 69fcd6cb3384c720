"""Which values of two models are computed alike: a number for every computation, the same for the same one.

Both models are cut at the values that they share by name. Between two cuts a value's number stands for its
whole computation (operators, attributes, constants) from the cuts on; so two values of one name and one
number are equal wherever the values at their cuts are (value numbering; Cocke and Schwartz, 1970).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, final

import onnx_ir as ir

from burnish.passes.base import bodies, nested

_SMALL: Final = 1024  # bytes of a constant up to which its content counts; above, which object it is

Key = Hashable


@final
class Unnumbered(Exception):  # noqa: N818 - it never leaves the check
    """A model that cannot be cut; the message says why."""


@final
class Side:
    """One of the two models: what each name of its main graph stands for.

    Raises:
        Unnumbered: it has functions, or inputs with a default.
    """

    def __init__(self, model: ir.Model) -> None:
        if model.functions:
            raise Unnumbered("the model has functions")
        if any(value.is_initializer() for value in model.graph.inputs):
            raise Unnumbered("an input has a default")
        self.model = model
        self.inputs = {value.name or "": value for value in model.graph.inputs}
        self.constants: dict[str, ir.TensorProtocol] = {}
        self.computed: dict[str, ir.Value] = {}
        for name, value in model.graph.initializers.items():
            if name not in self.inputs and value.const_value is not None:
                self.constants[name] = value.const_value
        for node in model.graph:
            tensor = constant_tensor(node)
            for value in node.outputs:
                if value.name and tensor is not None:
                    self.constants[value.name] = tensor
                elif value.name:
                    self.computed[value.name] = value

    @property
    def names(self) -> set[str]:
        """Every name that stands for a constant or for what a node makes."""
        return self.constants.keys() | self.computed.keys()


def shared_names(before: Side, after: Side) -> frozenset[str]:
    """Where both are cut: the names of inputs, and of values in both that at least one of them computes."""
    both = before.names & after.names
    return frozenset((both - (before.constants.keys() & after.constants.keys())) | before.inputs.keys())


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, where that is a tensor."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    return ir.convenience.get_const_tensor(node.outputs[0])


@final
class Numbering:
    """Numbers for the computations of both sides, made as they are asked for."""

    def __init__(self, cuts: frozenset[str]) -> None:
        self._cuts = cuts
        self._known: dict[Key, int] = {}

    def of(self, side: Side) -> dict[str, Key]:
        """By name, what each cut of a side is: a constant, or an output of a numbered node.

        Raises:
            Unnumbered: a node reads what no earlier one makes.
        """
        found = {name: key for name, key in self.computed(side).items() if name in self._cuts}
        return found | {
            name: tensor_key(tensor) for name, tensor in side.constants.items() if name in self._cuts
        }

    def computed(self, side: Side) -> dict[str, Key]:
        """By name, what everything is that a side computes.

        Raises:
            Unnumbered: a node reads what no earlier one makes.
        """
        keys: dict[ir.Value, Key] = {}
        for node in side.model.graph:
            if constant_tensor(node) is not None:
                continue
            number = self._number(node, side, keys)
            for index, value in enumerate(node.outputs):
                keys[value] = ("out", number, index)
        return {name: keys[value] for name, value in side.computed.items()}

    def _number(self, node: ir.Node, side: Side, keys: dict[ir.Value, Key]) -> int:
        operands = tuple(self._operand(value, side, keys) for value in node.inputs)
        held = tuple(self._operand(value, side, keys) for value in outer_values(node))
        return self._known.setdefault((operator(node), operands, held), len(self._known))

    def _operand(self, value: ir.Value | None, side: Side, keys: dict[ir.Value, Key]) -> Key:
        if value is None:
            return None
        if value.name in self._cuts:
            return ("cut", value.name)
        if value.name in side.constants:
            return tensor_key(side.constants[value.name])
        if value not in keys:
            raise Unnumbered(f"value {value.name!r} is read before it is made")
        return keys[value]


def tensor_key(tensor: ir.TensorProtocol) -> Key:
    """Equal for tensors of equal content, where they are small; otherwise for one and the same object."""
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes > _SMALL:
        return ("tensor", id(tensor))
    return _content(tensor)


def _content(tensor: ir.TensorProtocol) -> Key:
    values = tuple(tensor.numpy().flat) if tensor.dtype == ir.DataType.STRING else tensor.tobytes()
    return (str(tensor.dtype), tuple(tensor.shape), values)


def operator(node: ir.Node) -> Key:
    """What a node does with what it reads: its operator and attributes, and how many outputs it makes."""
    attributes = tuple(sorted((name, _attribute(each)) for name, each in node.attributes.items()))
    return node.domain, node.op_type, node.overload, len(node.outputs), attributes


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    yield from outer_values(node)


def _attribute(attribute: ir.Attr) -> str:
    """The attribute in a form that compares; a graph as its protobuf, names included."""
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return repr(ir.to_proto(attribute).SerializeToString(deterministic=True))
    if attribute.type == ir.AttributeType.TENSOR:
        return repr(_content(attribute.as_tensor()))
    if attribute.type == ir.AttributeType.TENSORS:
        return repr([_content(tensor) for tensor in attribute.as_tensors()])
    return f"{attribute.type} {attribute.value!r}"


def outer_values(node: ir.Node) -> Iterator[ir.Value]:
    """The values from around that the bodies of a node read, each once, in a fixed order."""
    graphs = [graph for body in bodies(node) for graph in nested(body)]
    inside = {value for graph in graphs for value in _made_in(graph)}
    read = (value for graph in graphs for value in _read_in(graph))
    yield from (value for value in dict.fromkeys(read) if value not in inside)


def _made_in(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _read_in(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from (value for value in node.inputs if value is not None)
    yield from graph.outputs
