"""Which torch modules a node comes from, kept through any pass: new nodes inherit from those they replace.

The runner calls this around every pass, so that no pass has to think of it, a user's own included:

    before = remember(model)
    pass_.rewrite(model, context)
    before.hand_on(model)

A value of the old graph that is gone has a successor where a new value took its name, or its place as an
input of a node that stayed or as a graph output. The node that makes the successor inherits the origins of
the removed nodes behind the old value, as far as the next value that still has a maker:

    h -> MatMul -> Add -> Erf ... -> y   becomes   h -> MatMul -> BiasGelu -> y

BiasGelu makes y, so it has the origins of Add, Erf and the rest, but not those of MatMul, which stayed.
All of it takes one sweep over the nodes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, NamedTuple, final

import onnx_ir as ir

from burnish.passes.base import Census, bodies
from burnish.provenance import JOINED, Origin, bounded, origins, write_origins

_FAR: Final = 64  # removed nodes that are looked through for the one that stayed behind them


def remember(model: ir.Model, census: Census | None = None) -> Memory:
    """Take down the nodes of a model, what they read and make, and their origins, ahead of a pass.

    `census`: of the model as it is, if that is known.
    """
    graphs, found, _ = census or Census.of(model)
    nodes = {node: _Known.of(node) for node in found}
    outputs = {id(graph): (graph, tuple(graph.outputs)) for graph in graphs}
    weights = {value: name for name, value in model.graph.initializers.items()}
    return Memory(nodes, outputs, weights)


class _Known(NamedTuple):
    """A node as it was."""

    inputs: Sequence[ir.Value | None]
    outputs: Sequence[ir.Value]
    names: Sequence[str | None]
    op: tuple[str, str]
    attributes: Mapping[str, ir.Attr]
    origins: tuple[Origin, ...]

    @classmethod
    def of(cls, node: ir.Node) -> _Known:
        """Take down one node."""
        outputs, attributes, props = node.outputs, node.attributes.data, node.metadata_props
        return cls(
            node.inputs,
            outputs,
            [value.name for value in outputs],
            (node.domain, node.op_type),
            attributes.copy() if attributes else attributes,
            origins(props) if props else (),
        )

    def changed(self, node: ir.Node) -> bool:
        """True when the node computes something else now: another operator, attribute or constant."""
        if self.op != (node.domain, node.op_type) or self.attributes.keys() != node.attributes.keys():
            return True
        if any(node.attributes[name] is not known for name, known in self.attributes.items()):
            return True
        return any(
            value is not None and value not in self.inputs and _is_constant(value) for value in node.inputs
        )


@final
class Memory:
    """A model before a pass; see the module."""

    def __init__(
        self,
        nodes: Mapping[ir.Node, _Known],
        outputs: Mapping[int, tuple[ir.Graph | ir.Function, tuple[ir.Value, ...]]],
        weights: Mapping[ir.Value, str],
    ) -> None:
        self._nodes, self._outputs, self._weights = nodes, outputs, weights

    @cached_property
    def _makers(self) -> Mapping[ir.Value, ir.Node]:
        return {value: node for node, known in self._nodes.items() for value in known.outputs}

    @cached_property
    def _order(self) -> Mapping[Origin, int]:
        """All origins, in the order of the graph."""
        distinct = dict.fromkeys(known.origins for known in self._nodes.values())
        in_order = dict.fromkeys(itertools.chain.from_iterable(distinct))
        return {origin: number for number, origin in enumerate(in_order)}

    def hand_on(self, model: ir.Model, census: Census | None = None) -> None:
        """Give new nodes, and nodes that took over the work of removed ones, the origins of the removed.

        New nodes that replace nothing (a QuantizeLinear, say) belong where what they make is used. A new
        weight that was computed from one old weight only, and took its place, takes its name, too.

        `census`: of the model as it is, if that is known.
        """
        census = census or Census.of(model)
        after = census.nodes
        alive = set(after)
        removed = [node for node in self._nodes if node not in alive]
        successors = self._successors(model, census, removed) if removed else {}
        self._keep_weight_names(model, successors, alive)
        if not self._order:
            return
        inherited = self._inherited(removed, successors)
        for old, new in successors.items():
            heir = new.producer()
            if heir is not None and self._inherits(heir, old, alive):
                self._add(heir, inherited[self._makers[old]])
        _adopt([node for node in after if node not in self._nodes])

    def _successors(
        self, model: ir.Model, census: Census, removed: Iterable[ir.Node]
    ) -> dict[ir.Value, ir.Value]:
        """What stands now for each value whose maker is gone: by name, else by the place where it is used."""
        found: dict[ir.Value, ir.Value] = {}
        named = self._unambiguous(removed)
        made = [value for node in census.nodes for value in node.outputs]
        for value in (*model.graph.initializers.values(), *made):
            old = named.get(value.name)
            if old is not None and old is not value:
                found.setdefault(old, value)
        gone = {value for node in removed for value in self._nodes[node].outputs}
        for old, new in self._places(census):
            if old is not None and new is not None and old is not new and old in gone:
                found.setdefault(old, new)
        return found

    def _unambiguous(self, removed: Iterable[ir.Node]) -> dict[str | None, ir.Value]:
        """The values of removed nodes by the name that they had, where no other value had it."""
        counts = Counter(itertools.chain.from_iterable([known.names for known in self._nodes.values()]))
        pairs = (pair for node in removed for pair in self._named(node))
        return {name: value for name, value in pairs if name and counts[name] == 1}

    def _named(self, node: ir.Node) -> Iterator[tuple[str | None, ir.Value]]:
        known = self._nodes[node]
        return zip(known.names, known.outputs, strict=True)

    def _places(self, census: Census) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
        """What was read in one place of the graph, and what is read there now."""
        for node in census.nodes:
            known = self._nodes.get(node)
            if known is not None and known.inputs is not node.inputs:
                yield from zip(known.inputs, node.inputs, strict=False)
        for graph in census.graphs:
            if id(graph) in self._outputs:
                yield from zip(self._outputs[id(graph)][1], graph.outputs, strict=False)

    def _inherited(
        self, removed: Iterable[ir.Node], successors: Mapping[ir.Value, ir.Value]
    ) -> dict[ir.Node, tuple[Origin, ...]]:
        """The origins of each removed node and of the removed ones behind it; the nearest are kept."""
        found: dict[ir.Node, tuple[Origin, ...]] = {}
        for node in removed:  # in the old graph's order: what it reads was met before
            known = self._nodes[node]
            behind = [self._makers.get(v) for v in known.inputs if v is not None and v not in successors]
            more = (origin for maker in behind if maker is not None for origin in found.get(maker, ()))
            found[node] = bounded([*known.origins, *more])
        return found

    def _inherits(self, heir: ir.Node, old: ir.Value, alive: set[ir.Node]) -> bool:
        """True for new nodes, for those that changed, and for those that do what another one did.

        A node that stayed as it was and only had a no-op behind it removed inherits nothing.
        """
        known = self._nodes.get(heir)
        if known is None or known.changed(heir):
            return True
        sources = self._sources(old, alive)
        return bool(sources) and all(self._makers.get(value) is not heir for value in sources)

    def _sources(self, old: ir.Value, alive: set[ir.Node]) -> set[ir.Value]:
        """What the removed nodes behind an old value computed it from; empty where they are too many."""
        todo, seen, sources = [self._makers[old]], {self._makers[old]}, set()
        while todo:
            for value in self._nodes[todo.pop()].inputs:
                maker = None if value is None else self._makers.get(value)
                if value is not None and (maker is None or maker in alive):
                    sources.add(value)
                elif maker is not None and maker not in seen:
                    seen.add(maker)
                    todo.append(maker)
            if len(seen) > _FAR:
                return set()
        return sources

    def _keep_weight_names(
        self, model: ir.Model, successors: Mapping[ir.Value, ir.Value], alive: set[ir.Node]
    ) -> None:
        names: set[str | None] = set()
        for old, new in successors.items():
            if not new.is_initializer() or new in self._weights or _is_interface(new):
                continue
            sources = self._sources(old, alive)
            like = [value for value in sources if value in self._weights and _size(value) == _size(new) > 1]
            if len(like) == 1 and not like[0].uses() and not _is_interface(like[0]):
                name = self._weights[like[0]]
                names = names or {value.name for node in alive for value in node.outputs}
                if name not in names:
                    _exchange_names(model.graph, new, like[0], name)

    def _add(self, node: ir.Node, more: Iterable[Origin]) -> None:
        kept = bounded([*origins(node.metadata_props), *more])
        last = len(self._order)
        in_order = sorted(kept, key=lambda o: (o.kind == JOINED, self._order.get(o, last)))
        write_origins(node.metadata_props, in_order)


def _adopt(new: Iterable[ir.Node]) -> None:
    """New nodes without origins take those of the nodes that use what they make, else of those they use."""
    orphans = [node for node in new if not origins(node.metadata_props)]
    for node in reversed(orphans):
        _join(node, (user for value in node.outputs for user in value.consumers()))
    for node in orphans:
        if not origins(node.metadata_props):
            _join(node, (value.producer() for value in node.inputs if value is not None))
        for body in bodies(node):
            for inner in body:
                if not origins(inner.metadata_props):
                    _join(inner, [node])


def _join(node: ir.Node, neighbours: Iterable[ir.Node | None]) -> None:
    found = (origin for other in neighbours if other is not None for origin in origins(other.metadata_props))
    write_origins(node.metadata_props, found)


def _is_constant(value: ir.Value) -> bool:
    maker = value.producer()
    return value.is_initializer() if maker is None else maker.op_type == "Constant"


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size


def _is_interface(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_graph_output()


def _exchange_names(graph: ir.Graph, new: ir.Value, old: ir.Value, name: str) -> None:
    """Give `new` the name of `old`, a weight without a use; `old`, if it is still there, takes the other."""
    other, owner = new.name, graph.initializers.get(name)
    if owner is None:
        new.name = name
    elif owner is old:
        old.name = f"{name}.unused"  # no two may have one name, not even for a moment
        new.name, old.name = name, other
