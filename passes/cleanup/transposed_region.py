"""The nodes that a Transpose can be moved through, and how many Transposes that saves."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Final, final

import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.cleanup.transposed import Perm, Step, step
from burnish.passes.editing import Round, is_templated
from burnish.passes.shape_rules import transpose_perm
from burnish.passes.shapes import Fact

_MAX_NODES: Final = 256  # of a region; what is further away is the business of another Transpose


@final
@dataclasses.dataclass
class Region:
    """Nodes behind a Transpose that can work on what it reads; they need not be next to each other.

    Transposes at its start go if nothing else reads them; one at its end becomes what both do together, or
    goes; every other use of a value inside costs a new Transpose.
    """

    round_: Round
    graph: object
    perms: dict[ir.Value, Perm] = dataclasses.field(default_factory=dict)
    """Values that are stored in another order; those that a Transpose at the start makes come first."""
    starts: dict[ir.Node, Perm] = dataclasses.field(default_factory=dict)
    inside: dict[ir.Node, Step] = dataclasses.field(default_factory=dict)
    ends: dict[ir.Node, None] = dataclasses.field(default_factory=dict)

    @property
    def saved(self) -> int:
        """How many Transposes fewer there would be."""
        gone = sum(not self._outside(start.outputs[0]) for start in self.starts)
        met = sum(self._cancels(end) for end in self.ends)
        return gone + met - sum(map(self._outside, self._made()))

    def _made(self) -> list[ir.Value]:
        return [value for node in self.inside for value in node.outputs if value.name]

    def _outside(self, value: ir.Value) -> bool:
        """True when something needs the value as it was, and that is not how it is stored."""
        if self.perms[value] == tuple(range(len(self.perms[value]))):
            return False
        users = value.consumers()
        return value.is_graph_output() or any(u not in self.inside and u not in self.ends for u in users)

    def _cancels(self, end: ir.Node) -> bool:
        perm, source = self.composed(end), end.inputs[0]
        stored = None if source is None else self.stored(source)
        return perm == tuple(range(len(perm))) and (
            stored is not None and self.round_.editor.can_replace(end.outputs[0], stored)
        )

    def composed(self, end: ir.Node) -> Perm:
        """What a Transpose at the end does to what is stored."""
        source = end.inputs[0]
        perm = () if source is None else self.perms[source]
        return tuple(perm[axis] for axis in transpose_perm(end, len(perm)))

    def stored(self, value: ir.Value) -> ir.Value | None:
        """The value that holds the same in another order: what a start reads, or what the node will make."""
        maker = value.producer()
        return maker.inputs[0] if maker is not None and maker in self.starts else value

    def grow(self, start: ir.Node) -> None:
        """Take in what is behind a Transpose, where that may save something."""
        todo = deque(self._begin(start))
        while todo and len(self.inside) < _MAX_NODES:
            for user in todo.popleft().consumers():
                if any(user in known for known in (self.starts, self.inside, self.ends)):
                    continue
                if is_templated(user) or user.graph is not self.graph:
                    continue
                if is_op(user, "Transpose"):
                    self.ends[user] = None
                else:
                    todo.extend(self._take(user))
        self._trim()

    def _begin(self, start: ir.Node) -> list[ir.Value]:
        perm = perm_of(start, self.round_)
        if perm is None or perm == tuple(range(len(perm))):
            return []
        self.starts[start] = self.perms[start.outputs[0]] = perm
        return [start.outputs[0]]

    def _take(self, node: ir.Node) -> list[ir.Value]:
        """Take in a node if all it reads is stored alike; return what became stored."""
        perms = {i: self.perms[v] for i, v in enumerate(node.inputs) if v is not None and v in self.perms}
        joining = {}
        for index, value in enumerate(node.inputs):
            maker = None if value is None or index in perms else value.producer()
            if is_op(maker, "Transpose") and maker is not None and maker.graph is self.graph:
                perm = perm_of(maker, self.round_)
                if perm is not None and maker not in self.ends:
                    joining[index], perms[index] = maker, perm
        found = step(self.round_.call(node), perms, next(iter(self.perms.values())))
        if found is None:
            return []
        self.inside[node] = found
        made = [value for value in node.outputs if value.name]
        self.perms.update(dict.fromkeys(made, found.perm))
        starts = {maker: None for maker in joining.values() if maker not in self.starts}
        return made + [value for start in starts for value in self._begin(start)]

    def _trim(self) -> None:
        """Leave out nodes at the end that save nothing."""
        for node in reversed(list(self.inside)):
            made = [value for value in node.outputs if value.name]
            if any(user in self.inside or user in self.ends for value in made for user in value.consumers()):
                continue
            read = {value for value in node.inputs if value is not None and value in self.perms}
            if sum(map(self._outside, made)) >= sum(not self._outside(v) for v in read):
                del self.inside[node]
                for value in made:
                    del self.perms[value]

    def move(self) -> None:
        """Let the nodes inside work on what is stored."""
        for value in self._made():
            self._leave(value)
        for node, how in self.inside.items():
            self._store(node, how)
        for end in self.ends:
            self._meet(end)
        self.round_.editor.sweep(start.outputs[0] for start in self.starts)

    def _leave(self, value: ir.Value) -> None:
        """Transpose a stored value for those who need it as it was; it gets a new name in any case."""
        outside, maker, shapes = self._outside(value), value.producer(), self.round_.shapes
        perm, fact, name = self.perms[value], shapes[value], value.name
        if perm == tuple(range(len(perm))):
            return
        if outside and maker is not None and maker.graph is not None:
            back = ir.node("Transpose", [value], {"perm": list(perm)})
            back.metadata_props.update(maker.metadata_props)
            maker.graph.insert_after(maker, back)
            result = back.outputs[0]
            result.shape, result.type = value.shape, value.type
            value.replace_all_uses_with(result, replace_graph_outputs=True)
            for user in list(result.consumers()):
                if user in self.inside or user in self.ends or user is back:
                    _reread(user, result, value)
            value.name = None
            result.name = name
            back.name = f"node_{self.round_.editor.fresh(f'{name}_back')}"  # torch's own node is node_NAME
            shapes[result] = fact
        value.name = self.round_.editor.fresh(f"{name}_stored")
        order = [perm.index(axis) for axis in range(len(perm))]
        value.shape = None if value.shape is None else ir.Shape([value.shape[axis] for axis in order])
        stored = None if fact.shape is None else tuple(fact.shape[axis] for axis in order)
        shapes[value] = Fact(fact.dtype, stored)

    def _store(self, node: ir.Node, how: Step) -> None:
        editor = self.round_.editor
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.perms:
                node.replace_input_with(index, self.stored(value))
        for index, array in how.constants.items():
            before = node.inputs[index] if index < len(node.inputs) else None
            name = (before.name if before is not None else None) or f"{node.op_type}_{index}"
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, editor.constant(node, f"{name}_stored", array))
        for key, setting in how.attributes.items():
            node.attributes[key] = ir.convenience.convert_attribute(key, setting)  # type: ignore[arg-type]

    def _meet(self, end: ir.Node) -> None:
        perm, source = self.composed(end), end.inputs[0]
        stored = None if source is None else self.stored(source)
        if stored is None:
            return
        if self._cancels(end):
            self.round_.editor.replace(end.outputs[0], stored)
            return
        end.replace_input_with(0, stored)
        end.attributes["perm"] = ir.AttrInt64s("perm", perm)


def perm_of(node: ir.Node, round_: Round) -> Perm | None:
    """The order of a Transpose; None when it hangs on a rank that is not known."""
    if is_templated(node) or not node.inputs:
        return None
    if "perm" in node.attributes:
        return transpose_perm(node, len(node.attributes["perm"].as_ints()))
    rank = round_.shapes[node.inputs[0]].rank
    return None if rank is None else transpose_perm(node, rank)


def _reread(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)
