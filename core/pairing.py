"""Which node of one model is which of another, and what became of the others.

A node stays when the other model has one of its operator that makes a value of its name, or, under other
names, one that computes the same. Of a node that went, `Fate` says what stands where its results were used:
followed from user to user, so that the first step of a GELU leads to the Gelu.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar, final

import onnx_ir as ir

from burnish.fingerprint import Fingerprints
from burnish.model import op_name
from burnish.passes.base import bodies

T = TypeVar("T")

_INNER: Final = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

_MOST: Final = 8
"""Ends of one node that are told; a mask that all layers read has one in each of them."""


@final
@dataclasses.dataclass(frozen=True)
class Fate:
    """What stands now where the results of a node that went were used; all empty: nothing used them."""

    nodes: tuple[ir.Node, ...] = ()
    """Nodes of the other model that came."""
    constants: tuple[str, ...] = ()
    direct: tuple[str, ...] = ()
    """Values that were there before, and are read directly now."""

    def __or__(self, other: Fate) -> Fate:
        return Fate(
            _merged(self.nodes, other.nodes),
            _merged(self.constants, other.constants),
            _merged(self.direct, other.direct),
        )


def _merged(one: tuple[T, ...], other: tuple[T, ...]) -> tuple[T, ...]:
    """Both, each once, as many as are told."""
    return one if not other or one == other else tuple(dict.fromkeys((*one, *other)))[:_MOST]


@final
class Pairing:
    """The nodes of two models, bodies and functions included, side by side."""

    def __init__(self, a: ir.Model, b: ir.Model, renamed: Mapping[str, str]) -> None:
        """`renamed`: what weights of `b` are called in `a`, where that differs."""
        self.before, self.after = list(_nodes(a)), list(_nodes(b))
        self._renamed = renamed
        self._named = _by_name(b, self.after)
        self._value_of_a = _by_name(a, self.before)
        self.partner: dict[ir.Node, ir.Node] = {}
        """Of the nodes that stayed, in both directions."""
        self._pair_by_name()
        self._pair_by_content(a, b)
        self._outputs = _outputs(a, b, self.partner)
        self._key = {value: key for key, value in self._value_of_a.items()}
        self.fates = self._fates(a)
        """Of the nodes that went."""
        self.sources: dict[ir.Node, list[ir.Node]] = {}
        """Of the nodes that came: those that went into them."""
        for node in self.before:
            for heir in self.fates.get(node, Fate()).nodes:
                self.sources.setdefault(heir, []).append(node)

    def differences(self, node: ir.Node) -> list[str]:
        """How the partner of a node of `a` differs, in words that say no names of values."""
        other = self.partner[node]
        found = [
            f"input {number} is another"
            for number in range(max(len(node.inputs), len(other.inputs)))
            if not self._same(_at(node.inputs, number), _at(other.inputs, number))
        ]
        names = dict.fromkeys([*node.attributes, *other.attributes])
        return found + [f"attribute {name} is another" for name in names if _differs(node, other, name)]

    def _pair_by_name(self) -> None:
        for key, value in self._value_of_a.items():
            node, other = value.producer(), self._named.get(key)
            maker = None if other is None else other.producer()
            if node is None or maker is None or node in self.partner or maker in self.partner:
                continue
            if op_name(node) == op_name(maker) and len(node.outputs) == len(maker.outputs):
                self._pair(node, maker)

    def _pair_by_content(self, a: ir.Model, b: ir.Model) -> None:
        left = [node for node in self.before if node not in self.partner]
        if not left or len(self.partner) == 2 * len(self.after):
            return
        before = Fingerprints(a, {name: name for name in a.graph.initializers})
        after = Fingerprints(b, {name: self._renamed.get(name, name) for name in b.graph.initializers})
        alike: dict[str, list[ir.Node]] = {}
        for node in reversed(self.after):
            if node not in self.partner and node in after.nodes:
                alike.setdefault(after.nodes[node], []).append(node)
        for node in left:
            if twins := alike.get(before.nodes.get(node, "")):
                self._pair(node, twins.pop())

    def _pair(self, node: ir.Node, other: ir.Node) -> None:
        self.partner[node], self.partner[other] = other, node

    def _same(self, one: ir.Value | None, other: ir.Value | None) -> bool:
        if one is None or other is None:
            return one is other
        maker = one.producer()
        if maker is not None and maker in self.partner:
            return self.partner[maker] is other.producer() and one.index() == other.index()
        if other.is_initializer():
            return one.is_initializer() and one.name == self._renamed.get(other.name or "", other.name)
        return other.producer() is None and maker is None and one.name == other.name

    def _fates(self, a: ir.Model) -> dict[ir.Node, Fate]:
        fates: dict[ir.Node, Fate] = {}
        graphs: list[ir.Graph | ir.Function] = [a.graph, *a.functions.values()]
        for graph in graphs:
            for node, parent in reversed([*_placed(graph)]):  # users before what they use
                if node not in self.partner:
                    fates[node] = self._fate(node, parent, fates)
        return fates

    def _fate(self, node: ir.Node, parent: ir.Node | None, fates: Mapping[ir.Node, Fate]) -> Fate:
        found = Fate()
        for value in node.outputs:
            there = self._named.get(self._key[value]) if value in self._key else None
            if there is not None:
                found |= self._end(there)
                continue
            for user, index in value.uses():
                other = self.partner.get(user)
                found |= fates.get(user, Fate()) if other is None else self._end(_at(other.inputs, index))
            for end in self._outputs.get(value, ()):
                found |= self._end(end)
            if value.is_graph_output() and parent is not None:
                found |= fates.get(parent, Fate())
        return found

    def _end(self, value: ir.Value | None) -> Fate:
        if value is None:
            return Fate()
        maker = value.producer()
        if value.is_initializer() or (maker is not None and maker.op_type == "Constant"):
            return Fate(constants=(value.name or "",))
        if maker is None or maker in self.partner:
            return Fate(direct=(value.name or "",))
        return Fate((maker,))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _placed(
    graph: ir.Graph | ir.Function, parent: ir.Node | None = None
) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    """Each node, and the one in whose body it is; those of bodies come first."""
    for node in graph:
        for body in bodies(node):
            yield from _placed(body, node)
        yield node, parent


def _by_name(model: ir.Model, nodes: Iterable[ir.Node]) -> dict[tuple[str, int], ir.Value]:
    """The values by name and number among those of one name (branches and functions may repeat it)."""
    seen: Counter[str] = Counter()
    found = {}
    made = (value for node in nodes for value in node.outputs)
    for value in (*model.graph.initializers.values(), *made):
        if value.name:
            found[value.name, seen[value.name]] = value
            seen[value.name] += 1
    return found


def _outputs(a: ir.Model, b: ir.Model, partner: Mapping[ir.Node, ir.Node]) -> dict[ir.Value, list[ir.Value]]:
    """For each output of a graph or body of `a`: what the same output is in `b`."""
    found: dict[ir.Value, list[ir.Value]] = {}
    pairs: list[tuple[ir.Graph | ir.Function, ir.Graph | ir.Function]] = [(a.graph, b.graph)]
    pairs += [(f, b.functions[key]) for key, f in a.functions.items() if key in b.functions]
    for node, other in partner.items():
        pairs += zip(bodies(node), bodies(other), strict=False)
    for one, two in pairs:
        for value, end in zip(one.outputs, two.outputs, strict=False):
            found.setdefault(value, []).append(end)
    return found


def _at(values: Sequence[ir.Value | None], index: int) -> ir.Value | None:
    return values[index] if index < len(values) else None


def _differs(node: ir.Node, other: ir.Node, name: str) -> bool:
    """True where an attribute is not said the same of both; bodies are compared node by node."""
    one, two = node.attributes.get(name), other.attributes.get(name)
    if one is None or two is None or one.type != two.type:
        return True
    if one.is_ref() or two.is_ref():
        return one.ref_attr_name != two.ref_attr_name
    if one.type == ir.AttributeType.TENSOR:
        first, second = one.as_tensor(), two.as_tensor()
        return (
            first.dtype != second.dtype or first.shape != second.shape or first.tobytes() != second.tobytes()
        )
    return one.type not in _INNER and repr(one.value) != repr(two.value)
