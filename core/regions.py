"""Where a rewrite changed a model: at which values, computed from which others that both models have.

A model after a pass is equal to the one before it if every changed value is, given equal values where its
computation starts. That is checked place by place, on small models; and where the same change was made to
layer after layer, once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable, Iterator
from typing import Final, final

import onnx_ir as ir

from burnish.numbering import (
    Numbering,
    Side,
    Unnumbered,
    constant_tensor,
    operands,
    operator,
    shared_names,
    tensor_key,
)
from burnish.passes.base import is_op
from burnish.passes.shapes import Shapes

_FAR: Final = 400
"""Operators behind a changed value that are followed to tell whether two places are alike."""

_MANY: Final = 64
"""Elements above which a float constant is a weight, however small: biases and norms of narrow layers."""


@final
@dataclasses.dataclass(frozen=True)
class Region:
    """One changed value: how it is computed after the change, from values that both models have."""

    root: str
    nodes: tuple[ir.Node, ...]
    """Of the model after the change, in order of computation; none where the value became a constant."""
    leaves: tuple[str, ...]
    """The values and inputs that the nodes start from."""


@final
@dataclasses.dataclass(frozen=True)
class Kind:
    """Places at which the same computation became the same other one, whatever the names."""

    regions: tuple[Region, ...]
    """The one that is computed first comes first."""
    own_weights: bool
    """True where the change made large weights, or some are no longer read: what is in them then matters."""


@final
class Regions:
    """The changed places of a model.

    Args:
        before: the model as it was.
        after: the model that a pass made of a copy of it.
        apart: names that both have, but for values that are not the same.

    Raises:
        Unnumbered: the two cannot be compared place by place; the message says why.
    """

    def __init__(self, before: ir.Model, after: ir.Model, apart: frozenset[str] = frozenset()) -> None:
        self.before, self.after = Side(before), Side(after)
        _need_same_interface(before, after)
        self.cuts = shared_names(self.before, self.after) - apart
        self._numbering = Numbering(self.cuts)
        self._reached: set[str] = set()
        self.all = tuple(self._find())

    @property
    def compared(self) -> frozenset[str]:
        """The values of both that are equal if all places are."""
        return self.cuts & self._reached

    def kinds(self) -> list[Kind]:
        """The places, those together at which the same computation became the same other one.

        The same but for the values in large weights.
        """
        order = {name: place for place, name in enumerate([*self.before.constants, *self.before.computed])}
        groups: dict[Hashable, list[Region]] = {}
        own: dict[Hashable, bool] = {}
        for region in sorted(self.all, key=lambda region: order[region.root]):
            form = _Form(self, region)
            key = form.key()
            key = region.root if key is None else key
            groups.setdefault(key, []).append(region)
            own.setdefault(key, form.own_weights)
        return [Kind(tuple(regions), own[key]) for key, regions in groups.items()]

    def shape(self, value: ir.Value) -> str:
        """The shape of a value before the change, as it follows from the inputs; empty: not known."""
        fact = self._shapes[value]
        return "" if fact.shape is None else f"{fact.shape}"

    def length(self, name: str) -> int | None:
        """How many elements a value before the change has, as it follows from the inputs; None: not known."""
        value = self.before.computed.get(name) or self.before.inputs.get(name)
        static = None if value is None else self._shapes[value].static
        return None if static is None else math.prod(static)

    def described(self, name: str) -> str:
        """Type and shape of a value before the change; empty: not known."""
        value = self.before.computed.get(name) or self.before.inputs.get(name)
        if value is None:
            return ""
        if value.shape is not None and value.dtype is not None:
            return f"{value.dtype} {value.shape}"
        shape, dtype = self.shape(value), self._shapes[value].dtype
        return f"{dtype} {shape}" if shape and dtype is not None else ""

    @functools.cached_property
    def _shapes(self) -> Shapes:
        return Shapes(self.before.model)

    def _find(self) -> Iterator[Region]:
        """Walk the changed model from its outputs, and from all else that it computes, back."""
        old, new = self._numbering.of(self.before), self._numbering.of(self.after)
        outputs = [value.name or "" for value in self.after.model.graph.outputs]
        todo = list(dict.fromkeys([*outputs, *self._unused()]))
        seen = self._reached
        seen.update(todo)
        while todo:
            name = todo.pop()
            if name in self.after.inputs:
                continue
            if name not in self.cuts:
                if not self._same_constant(name):  # also of what neither an output nor a cut needs
                    raise Unnumbered(f"output {name!r} is made under that name in one of them only")
                continue
            region = self.region(name)
            if old[name] != new[name]:
                yield region
            todo += [leaf for leaf in region.leaves if leaf not in seen]
            seen.update(region.leaves)

    def _unused(self) -> Iterator[str]:
        """What is computed for nothing: it can fail, too."""
        for node in self.after.model.graph:
            if constant_tensor(node) is None and not any(value.uses() for value in node.outputs):
                yield from (value.name or "" for value in node.outputs)

    def _same_constant(self, name: str) -> bool:
        known = [side.constants.get(name) for side in (self.before, self.after)]
        return None not in known and len({tensor_key(each) for each in known if each is not None}) == 1

    def region(self, name: str) -> Region:
        """How the changed model computes a value that both models have."""
        value = self.after.computed.get(name)
        if value is None:
            return Region(name, (), ())
        nodes: dict[ir.Node, None] = {}
        leaves: dict[str, None] = {}
        todo = [(value.producer(), False)]
        while todo:
            node, done = todo.pop()
            if node is None or node in nodes:
                continue
            if done:
                nodes[node] = None
                continue
            todo.append((node, True))
            for operand in operands(node):
                if operand.name in self.cuts:
                    leaves[operand.name or ""] = None
                elif operand.name not in self.after.constants:
                    todo.append((operand.producer(), False))
        return Region(name, tuple(nodes), tuple(leaves))


def _need_same_interface(before: ir.Model, after: ir.Model) -> None:
    for a, b in ((before.graph.inputs, after.graph.inputs), (before.graph.outputs, after.graph.outputs)):
        if [(value.name, value.type) for value in a] != [(value.name, value.type) for value in b]:
            raise Unnumbered("the inputs or outputs are not the same")
    if before.graph.opset_imports.items() - after.graph.opset_imports.items():
        raise Unnumbered("the opset changed")


@final
class _Form:
    """What a place looks like, whatever the names: both computations, and how they share where they start.

    Values at the start, and large weights, are numbered as they are met. That the two computations share them
    is part of the form.
    """

    def __init__(self, regions: Regions, region: Region) -> None:
        self._regions, self._region = regions, region
        self._leaves = frozenset(region.leaves)
        self._met: dict[Hashable, int] = {}
        self._weights: dict[bool, set[Hashable]] = {True: set(), False: set()}
        self._steps = 0

    def key(self) -> Hashable | None:
        """None: the place is like no other."""
        sides = self._regions.before, self._regions.after
        try:
            computed = tuple(self._computation(side) for side in sides)
        except Unnumbered:
            return None
        starts = tuple((self._regions.described(name), self._met.get(name)) for name in self._region.leaves)
        return (computed, starts) if all(described for described, _ in starts) else None

    @property
    def own_weights(self) -> bool:
        """Not the same large weights before and after; known once the key is."""
        return self._weights[True] != self._weights[False]

    def _computation(self, side: Side) -> Hashable:
        """The computation of the root as a tuple of its nodes, each with the places of its operands."""
        root = self._region.root
        if root in side.constants:
            return tensor_key(side.constants[root])
        places: dict[ir.Node, int] = {}
        lines: list[Hashable] = []
        todo = [(side.computed[root].producer(), False)]
        while todo:
            node, done = todo.pop()
            if node is None or node in places:
                continue
            if not done:
                todo.append((node, True))
                behind = (each for each in operands(node) if not self._starts(each, side, node))
                todo += [(each.producer(), False) for each in behind]
                continue
            self._steps += 1
            if self._steps > _FAR:
                raise Unnumbered("too far from where it starts")
            places[node] = len(places)
            read = (self._operand(each, side, places, node) for each in operands(node))
            lines.append((operator(node), tuple(value is not None for value in node.inputs), *read))
        return tuple(lines), side.computed[root].index()

    def _starts(self, value: ir.Value, side: Side, user: ir.Node) -> bool:
        if value.name in self._leaves or value.name in side.constants or value.name in side.inputs:
            return True
        return bool(self._shape_only(value, side, user))

    def _shape_only(self, value: ir.Value, side: Side, user: ir.Node) -> str:
        """The shape of a value of which only that is read; what it is computed from does not matter then."""
        counts = side is self._regions.before and is_op(user, "Shape")
        return self._regions.shape(value) if counts else ""

    def _operand(self, value: ir.Value, side: Side, places: dict[ir.Node, int], user: ir.Node) -> Hashable:
        name = value.name or ""
        if name in self._leaves:
            return ("start", self._number(name))
        if name in side.inputs:
            return ("input", name)
        if shape := self._shape_only(value, side, user):
            return ("shape", shape)
        if name not in side.constants:
            producer = value.producer()
            return ("made", places[producer] if producer else -1, value.index())
        tensor = side.constants[name]
        key = tensor_key(tensor)
        if key != ("tensor", id(tensor)) and not (tensor.dtype.is_floating_point() and tensor.size > _MANY):
            return key
        self._weights[side is self._regions.after].add(key)
        return ("weight", self._number(key), str(tensor.dtype), tuple(tensor.shape))

    def _number(self, key: Hashable) -> int:
        return self._met.setdefault(key, len(self._met))
