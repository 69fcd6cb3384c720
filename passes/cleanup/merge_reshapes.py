"""Reshape(Unsqueeze(x))  ->  Reshape(x);   Transpose(Transpose(x))  ->  Transpose(x)"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.cleanup.reshape_target import RESHAPES, constant_target, express
from burnish.passes.dims import Dim, product
from burnish.passes.editing import Round, feeds_only, is_templated, until_stable
from burnish.passes.shape_rules import transpose_perm
from burnish.passes.shapes import Shape

Split = tuple[Shape, list[list[int]]]
"""Dims, and the groups of them (by index) that make up each dim of another shape."""

_LONGEST: Final = 16  # how far a chain is followed at a time


@final
@dataclasses.dataclass(frozen=True)
class MergeReshapes(Pass):
    """Let a chain of operators that only rearrange be one.

    - Reshape, Flatten, Squeeze and Unsqueeze in a row become one of them, or nothing;
    - Transposes in a row become one, or nothing;
    - a Transpose between two Reshapes becomes a Transpose of the dims that the two have in common, after a
      Reshape to those dims if the input has others (the exporter writes a key transpose like that).

    Kept: a chain whose result has more than one size that is neither known nor copied; a Transpose whose
    result is used elsewhere too, as merging it would save nothing.
    """

    name: ClassVar[str] = "merge-reshapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = RESHAPES | {"Transpose"}

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many chains were shortened."""
        # until nothing changes: a merged chain may be part of a longer one
        return until_stable(model, context, lambda round_: _Merger(round_).visit)


@final
class _Merger:
    def __init__(self, round_: Round) -> None:
        self._round, self._context = round_, round_.context
        self._editor, self._shapes = round_.editor, round_.shapes

    def visit(self, node: ir.Node) -> None:
        """Shorten the chain that ends at a node."""
        if is_op(node, "Transpose"):
            self._merge_transposes(node)
        elif _is_reshape(node) and not self._merge_through_transpose(node):
            self._merge_reshapes(node)

    def _merge_transposes(self, node: ir.Node) -> None:
        inner = _maker(node, "Transpose")
        perms = None if inner is None else (self._perm(inner), self._perm(node))
        if inner is None or perms is None or perms[0] is None or perms[1] is None or inner.inputs[0] is None:
            return
        perm = [perms[0][axis] for axis in perms[1]]
        if perm == sorted(perm):
            self._round.replace(node.outputs[0], inner.inputs[0])
        elif feeds_only(inner, node) and self._context.permit(node):
            self._round.renew(node, "Transpose", [inner.inputs[0]], perm=perm)

    def _perm(self, node: ir.Node) -> tuple[int, ...] | None:
        if "perm" in node.attributes:
            return tuple(node.attributes["perm"].as_ints())
        rank = self._shapes[node.inputs[0]].rank
        return None if rank is None else transpose_perm(node, rank)

    def _merge_through_transpose(self, node: ir.Node) -> bool:
        transpose = _maker(node, "Transpose")
        first = None if transpose is None else _maker(transpose, *RESHAPES)
        if transpose is None or first is None or first.inputs[0] is None:
            return False
        perm, source = self._perm(transpose), self._shapes[first.inputs[0]].shape
        middle, result = self._shapes[first.outputs[0]].shape, self._shapes[node.outputs[0]].shape
        if perm is None or not source or not middle or not feeds_only(first, transpose):
            return False
        for dims, groups in filter(None, (merged(source, middle), factors(source, middle))):
            order = [axis for group in perm for axis in groups[group]]
            if tuple(dims[axis] for axis in order) == result and feeds_only(transpose, node):
                return self._transpose_dims(node, first.inputs[0], dims, order)
        return False

    def _transpose_dims(self, node: ir.Node, source: ir.Value, dims: Shape, order: list[int]) -> bool:
        shape = self._shapes[source].shape
        target = constant_target(shape, dims)
        if (dims != shape and target is None) or not self._context.permit(node):
            return False
        if dims != shape:
            name = node.outputs[0].name
            vector = self._round.numbers(node, f"{name}_dims", target or ())
            split = self._editor.insert(node, "Reshape", [source, vector], name=f"{name}_split")
            self._shapes.add(split)
            source = split.outputs[0]
        self._round.renew(node, "Transpose", [source], perm=order)
        return True

    def _merge_reshapes(self, node: ir.Node) -> None:
        for root in _roots(node):
            if express(node, root, self._round):
                return
        inner = _maker(node, "Squeeze", "Unsqueeze")
        source = None if inner is None or not self._undoes(node, inner) else inner.inputs[0]
        self._round.replace(node.outputs[0], source)

    def _undoes(self, node: ir.Node, inner: ir.Node) -> bool:
        """Squeeze and Unsqueeze of the same axes, which works without knowing a rank."""
        axes = self._round.call(node).ints("axes", 1)
        other = self._round.call(inner).ints("axes", 1)
        return inner.op_type != node.op_type and axes is not None and axes == other


def merged(source: Shape, result: Shape) -> Split | None:
    """The dims of `source`, and for each dim of `result` those that it is the product of."""
    groups, axis = [], 0
    for dim in result:
        group: list[int] = []
        while product(source[each] for each in group) != dim or not group:
            if axis == len(source):
                return None
            group.append(axis)
            axis += 1
        groups.append(group)
    return (source, groups) if axis == len(source) else None


def factors(source: Shape, result: Shape) -> Split | None:
    """The largest dims, without 1, that dims of both are products of; for each dim of `result` which."""
    found: list[Dim] = []
    groups, left = [], [dim for dim in reversed(source) if dim.size != 1]
    for dim in result:
        first, rest = len(found), dim
        while rest.size != 1:
            own = left.pop() if left else Dim()
            if own.size == 0:
                return None
            inside, around = rest.divided_by(own), own.divided_by(rest)
            if inside is not None:
                found.append(own)
                rest = inside
            elif around is not None:
                found.append(rest)
                left.append(around)
                rest = Dim.of(1)
            else:
                return None
        groups.append(list(range(first, len(found))))
    return None if left else (tuple(found), groups)


def _is_reshape(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in RESHAPES


def _maker(node: ir.Node, *op_types: str) -> ir.Node | None:
    """The node that makes the first input, when it is one of these operators and says all it does."""
    maker = None if not node.inputs or node.inputs[0] is None else node.inputs[0].producer()
    if maker is None or is_templated(maker):
        return None
    return maker if any(is_op(maker, op_type) for op_type in op_types) else None


def _roots(node: ir.Node) -> Iterator[ir.Value]:
    """What a chain of reshapes starts from, then the results along it, without the node's own input."""
    values: list[ir.Value] = []
    maker = _maker(node, *RESHAPES)
    while maker is not None and maker.inputs[0] is not None and len(values) < _LONGEST:
        values.append(maker.inputs[0])
        maker = _maker(maker, *RESHAPES)
    yield from reversed(values)
