"""The nodes of the traced layers of a stack, and the proof that two layers are the same nodes in order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import onnx_ir as ir

from burnish.exporter.layers import Stack
from burnish.exporter.origins import CLASSES, SCOPES, read_list
from burnish.passes.base import bodies

_LARGEST: Final = 1 << 24
"""Bytes of constants that are compared."""


class UnlikeError(Exception):
    """Why a layer is not known to be the layer before again; no user sees it."""


@final
@dataclasses.dataclass
class Pairing:
    """What goes with what: of the last layer but one, and of the last."""

    nodes: list[ir.Node]
    """Of the last layer, in order."""
    values: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    """Results of the one, and of the other."""
    carried: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    """What the one takes from the layer before it, and what the other takes from the one."""
    inputs: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    """Inputs of the graph."""
    weights: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    """Initializers."""
    shared: set[ir.Value] = dataclasses.field(default_factory=set)
    """What both take from outside."""


def by_layer(graph: ir.Graph, stack: Stack) -> list[list[ir.Node]]:
    """The nodes of each traced layer, in order; none where the stack is not in the graph.

    What is of no layer belongs to the layer that it is in the middle of, or that comes after it. A constant
    that others use too belongs to none: torch writes it where it is used first.

    Raises:
        UnlikeError: the layers are not one after another.
    """
    nodes = list(graph)
    numbers = list(map(_number(stack), nodes))
    known = [number for number in numbers if number is not None]
    if not known and not any(name.startswith(f"{stack.layer(0)}.") for name in graph.initializers):
        return []
    if known != sorted(known) or set(known) != set(range(stack.kept)):
        raise UnlikeError(f"the layers of {stack.path} do not follow one another")
    start, layers = numbers.index(0), []
    for number in range(stack.kept):
        end = len(numbers) - numbers[::-1].index(number)
        layers.append(_own(nodes[start:end]))
        start = end
    return layers


def _own(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes without constants that others use too."""
    inside = set(nodes)
    return [
        node
        for node in nodes
        if node.inputs or all(user in inside for value in node.outputs for user, _ in value.uses())
    ]


def pair(layers: Sequence[Sequence[ir.Node]], stack: Stack) -> Pairing:
    """Compare the last two layers.

    Raises:
        UnlikeError: they are not the same, or more of them is used than the last one's result.
    """
    owner = {value: number for number, nodes in enumerate(layers) for node in nodes for value in node.outputs}
    found = _Comparison(stack, owner).compare(layers[-2], layers[-1])
    _need_apart(layers, owner, found)
    return found


def _number(stack: Stack) -> Callable[[ir.Node], int | None]:
    """A node -> which layer it is of; None: of none."""
    inside = re.compile(rf"{re.escape(stack.path)}{'[.]' if stack.path else ''}(\d+)(?:[.]|$)")

    def number(node: ir.Node) -> int | None:
        found = (inside.match(path) for path in read_list(node.metadata_props, SCOPES)[:-1])
        return next((int(match[1]) for match in found if match), None)

    return number


@final
class _Comparison:
    def __init__(self, stack: Stack, owner: Mapping[ir.Value, int]) -> None:
        self._stack, self._owner = stack, owner
        self._last = stack.kept - 1
        self._found = Pairing([])

    def compare(self, before: Sequence[ir.Node], last: Sequence[ir.Node]) -> Pairing:
        self._found.nodes = list(last)
        if len(before) != len(last):
            raise UnlikeError(f"{len(before)} nodes, then {len(last)}")
        for one, other in zip(before, last, strict=True):
            self._nodes(one, other)
        return self._found

    def _nodes(self, one: ir.Node, other: ir.Node) -> None:
        kinds = [
            (n.domain, n.op_type, n.overload, n.version, len(n.inputs), len(n.outputs)) for n in (one, other)
        ]
        if kinds[0] != kinds[1] or any(True for _ in bodies(one)) or not _same_attributes(one, other):
            raise UnlikeError(f"{one.name} ({one.op_type}) is not {other.name} ({other.op_type})")
        metadata = one.metadata_props, other.metadata_props
        paths, classes = ([read_list(each, key)[:-1] for each in metadata] for key in (SCOPES, CLASSES))
        if [moved(path, self._stack, self._last - 1, self._last) for path in paths[0]] != paths[1] or classes[
            0
        ] != classes[1]:
            raise UnlikeError(f"{one.name} and {other.name} are of different modules")
        for given, taken in zip(one.inputs, other.inputs, strict=True):
            self._inputs(given, taken)
        for result, of_other in zip(one.outputs, other.outputs, strict=True):
            if result.type != of_other.type or result.shape != of_other.shape:
                raise UnlikeError(f"{result.name} and {of_other.name} have different shapes or types")
            self._found.values[result] = of_other

    def _inputs(self, given: ir.Value | None, taken: ir.Value | None) -> None:
        if given is None or taken is None:
            if given is not taken:
                raise UnlikeError("an input is left out in one of them")
        elif given in self._found.values:
            if self._found.values[given] is not taken:
                raise UnlikeError(f"{taken.name} is not what {given.name} goes with")
        elif given is taken:
            self._found.shared.add(given)
            if (given.name or "").startswith(self._stack.layer(self._last - 1) + "."):
                raise UnlikeError(f"{given.name} is used in two layers")
        else:
            _note(self._kind(given, taken), given, taken)

    def _kind(self, given: ir.Value, taken: ir.Value) -> dict[ir.Value, ir.Value]:
        if (self._owner.get(given), self._owner.get(taken)) == (self._last - 2, self._last - 1):
            return self._found.carried
        if given.is_initializer() and taken.is_initializer():
            return self._found.weights
        if given.is_graph_input() and taken.is_graph_input():
            return self._found.inputs
        raise UnlikeError(f"{given.name} and {taken.name} come from different places")


def _note(pairs: dict[ir.Value, ir.Value], one: ir.Value, other: ir.Value) -> None:
    if pairs.setdefault(one, other) is not other or sum(each is other for each in pairs.values()) > 1:
        raise UnlikeError(f"{one.name} goes with {other.name} and with another")


def _need_apart(layers: Sequence[Sequence[ir.Node]], owner: Mapping[ir.Value, int], found: Pairing) -> None:
    """Nothing after the layers takes what one before the last made, but for what all of them share."""
    place = {node: number for number, nodes in enumerate(layers) for node in nodes}
    for value, number in owner.items():
        common = number < len(layers) - 2 and value in found.shared
        users = {place.get(user) for user, _ in value.uses()}
        if number < len(layers) - 1 and None in users and not common:
            raise UnlikeError(f"{value.name} of layer {number} is used after the layers")


def moved(scope: str, stack: Stack, old: int, new: int) -> str:
    """The path of a module in one layer as it is in another; other paths as they are."""
    layer = stack.layer(old)
    inside = scope == layer or scope.startswith(f"{layer}.")
    return stack.layer(new) + scope.removeprefix(layer) if inside else scope


def same_constant(one: ir.Value, other: ir.Value) -> bool:
    """True where two initializers hold the same bytes, and are small enough to say so."""
    first, second = one.const_value, other.const_value
    if first is None or second is None:
        return False
    return _same_tensors(first, second)


def _same_tensors(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.nbytes > _LARGEST:
        return False
    return one is other or one.tobytes() == other.tobytes()


def _same_attributes(one: ir.Node, other: ir.Node) -> bool:
    if one.attributes.keys() != other.attributes.keys():
        return False
    return all(_same_attribute(mine, other.attributes[name]) for name, mine in one.attributes.items())


def _same_attribute(one: ir.Attr, other: ir.Attr) -> bool:
    if one.type != other.type or one.is_ref() or other.is_ref():
        return False
    if one.type == ir.AttributeType.TENSOR:
        return _same_tensors(one.as_tensor(), other.as_tensor())
    return bool(one.value == other.value)
