"""Gather(MatMul(x, w), [0], axis=1)  ->  MatMul(Gather(x, [0], axis=1), w)"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op, tensor_of
from burnish.passes.editing import Round
from burnish.passes.fusion.row_rules import COSTLY, WORTH_WHILE, Move, Place, keeps_batch, move
from burnish.passes.fusion.row_selections import Rows, Selection, are_few, selection, union
from burnish.passes.fusion.row_writer import RowWriter
from burnish.passes.shapes import Shape

_SELECTIONS: Final = frozenset({"Gather", "GatherND", "Slice"})


@final
@dataclasses.dataclass(frozen=True)
class NarrowRows(Pass):
    """Compute only the rows that are read: the first token of the last layer, not all of them.

    A selection along one axis moves towards the inputs through everything that treats the positions along it
    on their own: sums, norms, products, activations, layout, and the queries of an attention. Attention of
    com.microsoft, which projects queries, keys and values by one matrix, is taken apart for that. Selections
    of different rows of one value read from the rows that one of them needs.

    Left alone: what is read whole too, or is an output of the model; selections that may not leave anything
    out; causal attentions; bodies of If, Loop and Scan. Nothing is moved past sums and layout only, nor where
    it takes more nodes and reaches no product.
    """

    name: ClassVar[str] = "narrow-rows"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = _SELECTIONS

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many groups of nodes were narrowed."""
        before, start = len(context.rewrites), -1
        while start < len(context.rewrites):  # what was narrowed may be read by fewer selections now
            start = len(context.rewrites)
            _narrow(Round(model, context))
        return len(context.rewrites) - before


@final
@dataclasses.dataclass(frozen=True)
class _Step:
    """A node that will make some rows only."""

    place: Place
    move: Move
    rows: Rows


def _narrow(round_: Round) -> None:
    graph = round_.model.graph
    seeds = _seeds(graph, round_)
    if not seeds:
        return
    steps = _Planner(round_, seeds).steps(graph)
    _trim(steps)
    written: list[_Step] = []
    writer = None
    for group in _groups(steps):
        if not _is_worth_it(group) or not round_.context.permit(group[-1].place.node):
            continue
        writer = writer or RowWriter(round_, NarrowRows.name)
        writer.write([(step.place, step.move, step.rows) for step in group], seeds)
        written += group
    if any(step.rows.is_computed for step in written):
        graph.sort()  # an index may be computed after what is narrowed by it
    if not written:
        _tell(seeds, round_)


def _tell(seeds: Mapping[ir.Node, Selection], round_: Round) -> None:
    """Say of what is made by a norm, a product or the like why all of it is made."""
    for node, seed in seeds.items():
        value, size = node.inputs[0], round_.shapes[node.inputs[0]].shape
        maker = None if value is None else value.producer()
        if value is None or size is None or maker is None or _kind(maker) not in WORTH_WHILE:
            continue
        if not are_few(seed.rows, size[seed.axis]):
            continue
        if value.is_graph_output():
            round_.context.miss(node, "what it reads from is an output of the model")
        elif any(user not in seeds for user in value.consumers()):
            round_.context.miss(node, "what it reads from is read as a whole too")
        elif _differ([seeds[user] for user in value.consumers()], size):
            round_.context.miss(node, "other parts of what it reads from are read too")
        else:
            round_.context.miss(node, f"it cannot be moved before the {maker.op_type}")


def _differ(selections: Sequence[Selection], shape: Shape) -> bool:
    axes = {each.axis for each in selections}
    return len(axes) > 1 or union(selections, shape[axes.pop()]) is None


def _seeds(graph: ir.Graph, round_: Round) -> dict[ir.Node, Selection]:
    """The selections of values that a node makes of which something may be left out."""
    found = {}
    for node in graph:
        if node.op_type not in _SELECTIONS or node.inputs[0] is None or node.inputs[0].producer() is None:
            continue
        one = selection(node, round_)
        if one is not None:
            found[node] = one
    return found


@final
class _Planner:
    """Goes through the nodes backwards: what reads a node's results has been decided before."""

    def __init__(self, round_: Round, seeds: Mapping[ir.Node, Selection]) -> None:
        self._round, self._seeds = round_, seeds
        self._steps: dict[ir.Node, _Step] = {}

    def steps(self, graph: ir.Graph) -> dict[ir.Node, _Step]:
        """The nodes that can be narrowed, in the order of the graph."""
        for node in reversed(graph):
            step = self._step(node)
            if step is not None:
                self._steps[node] = step
        return dict(reversed(self._steps.items()))

    def _step(self, node: ir.Node) -> _Step | None:
        used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        if any(value.is_graph_output() for value in used) or not _may_have(node, used):
            return None
        needed = {self._needed(value) for value in used}
        found = needed.pop() if len(needed) == 1 else None
        shape = self._round.shapes[used[0]].shape if used else None
        if found is None or shape is None:
            return None
        axis, rows = found
        place = Place(self._round.call(node), shape, axis)
        way = move(place) if are_few(rows, place.size) else None
        if way is None or not way.reads or (rows.each is not None and not keeps_batch(place, way)):
            return None
        return _Step(place, way, rows) if RowWriter.can_write(place, way, rows, self._round) else None

    def _needed(self, value: ir.Value) -> tuple[int, Rows] | None:
        """The axis and the rows of a value that are read; None when all are, or different ones."""
        selections, found = [], set()
        for node, index in value.uses():
            seed, step = self._seeds.get(node), self._steps.get(node)
            if seed is not None and index == 0 and step is None:
                selections.append(seed)
            elif step is not None and index in step.move.reads and index not in step.move.whole:
                found.add((step.move.reads[index], step.rows))
            else:
                return None
        axes = {seed.axis for seed in selections}
        shape = self._round.shapes[value].shape
        if len(axes) == 1 and shape is not None:
            [axis] = axes
            rows = union(selections, shape[axis])
            if rows is None:
                return None
            found.add((axis, rows))
        return found.pop() if len(found) == 1 and len(axes) < 2 else None


def _may_have(node: ir.Node, used: Sequence[ir.Value]) -> bool:
    """Which outputs of a node have rows: all parts of a Split, the sum beside its norm."""
    if is_op(node, "Split"):
        return True
    allowed = (0, 3) if node.op_type.startswith("Skip") else (0,)
    return all(value.index() in allowed for value in used)


def _trim(steps: dict[ir.Node, _Step]) -> None:
    """Leave out the first nodes where more selections would take the place of fewer, and little is saved."""
    for node, step in list(steps.items()):
        inputs = {node.inputs[index] for index in step.move.reads}
        computed = [value for value in inputs if value is not None and tensor_of(value) is None]
        inside = any(value.producer() in steps for value in computed)
        used = [value for value in node.outputs if value.uses()]
        if not inside and _kind(node) not in COSTLY and len(computed) > len(used):
            del steps[node]


def _groups(steps: Mapping[ir.Node, _Step]) -> list[list[_Step]]:
    """Steps that hang together, each group in the order of the graph."""
    leader: dict[ir.Node, ir.Node] = {node: node for node in steps}

    def find(node: ir.Node) -> ir.Node:
        while leader[node] is not node:
            leader[node] = node = leader[leader[node]]
        return node

    for node, step in steps.items():
        for index in step.move.reads:
            value = node.inputs[index]
            maker = None if value is None else value.producer()
            if maker is not None and maker in steps:
                leader[find(maker)] = find(node)
    groups: dict[ir.Node, list[_Step]] = {}
    for node, step in steps.items():
        groups.setdefault(find(node), []).append(step)
    return list(groups.values())


def _is_worth_it(group: Iterable[_Step]) -> bool:
    return any(_kind(step.place.node) in WORTH_WHILE for step in group)


def _kind(node: ir.Node) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type
