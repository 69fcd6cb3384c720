"""Writes nodes again for some rows of their results only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import tensor_of
from burnish.passes.cleanup.remove_expand import as_ir_shape
from burnish.passes.cleanup.reshape_target import constant_target
from burnish.passes.dims import Dim
from burnish.passes.editing import Round
from burnish.passes.fusion.row_rules import Move, Place, packed_widths
from burnish.passes.fusion.row_selections import Rows, Selection, Selector, narrowed
from burnish.passes.matching import CONTRIB, MADE_BY, lazy_tensor
from burnish.passes.shapes import Shape

_KEPT: Final = ("num_heads", "scale", "mask_filter_value")
_Way = tuple[Place, Move, Rows]
_Key = tuple[ir.Value, int, Rows]


@final
class RowWriter:
    """Puts narrowed nodes ahead of those that they take the place of."""

    def __init__(self, round_: Round, pass_name: str) -> None:
        self._round, self._editor = round_, round_.editor
        self._stamp = {MADE_BY: pass_name}

    @staticmethod
    def can_write(place: Place, way: Move, rows: Rows, round_: Round) -> bool:
        """False where a Reshape has no target that is a constant."""
        if place.node.op_type == "Attention" and place.node.domain == CONTRIB:
            return round_.context.target.has_kernel(CONTRIB, "MultiHeadAttention")
        return place.node.op_type != "Reshape" or _target(place, way, rows) is not None

    def write(self, group: Sequence[_Way], seeds: Mapping[ir.Node, Selection]) -> None:
        """Write a group of nodes again, in order; selections of their results read the new ones."""
        made: dict[_Key, ir.Value] = {}
        selector = Selector(self._round, self._stamp)
        for place, way, rows in group:
            self._write(place, way, rows, made, selector)
        written = {place.node for place, _, _ in group}  # a selection along another axis is among them
        for place, _, rows in group:
            for old in place.node.outputs:
                for node in [user for user in old.consumers() if user in seeds and user not in written]:
                    selector.reread(seeds[node], made[old, place.axis, rows], rows)
        self._editor.sweep([value for place, _, _ in reversed(group) for value in place.node.outputs])

    def _write(
        self, place: Place, way: Move, rows: Rows, made: dict[_Key, ir.Value], selector: Selector
    ) -> None:
        node, inputs = place.node, list(place.node.inputs)
        for index, axis in way.reads.items():
            value = node.inputs[index]
            if value is None:
                continue
            if (value, axis, rows) not in made:
                made[value, axis, rows] = selector.select(value, axis, rows, node)
            inputs[index] = made[value, axis, rows]
        new = self._unpacked(place, inputs) if way.whole else [self._copy(place, way, rows, inputs)]
        for old, result in zip(node.outputs, new[-1].outputs, strict=not way.whole):
            self._describe(old, result, place.axis, rows)
            made[old, place.axis, rows] = result
        self._insert(node, new)

    def _copy(self, place: Place, way: Move, rows: Rows, inputs: list[ir.Value | None]) -> ir.Node:
        node = place.node
        attributes = list(node.attributes.values())
        if node.op_type == "Reshape":
            target = _target(place, way, rows) or ()
            inputs[1] = self._round.numbers(node, f"{node.outputs[0].name}_rows_shape", target)
            attributes = []
        return ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs))

    def _describe(self, old: ir.Value, result: ir.Value, axis: int, rows: Rows) -> None:
        """Name, type and shape, as far as they are known of what it is a part of."""
        if not old.name:
            result.name = ""
            return
        fact = self._round.shapes[old]
        result.name, result.type = self._editor.fresh(f"{old.name}_rows"), _type(old, fact.dtype)
        result.metadata_props.update(old.metadata_props)
        if fact.shape is not None:
            result.shape = as_ir_shape(narrowed(fact.shape, axis, rows))

    def _insert(self, before: ir.Node, nodes: Sequence[ir.Node]) -> None:
        for node in nodes:
            node.metadata_props.update(before.metadata_props | self._stamp)
            node.name = f"node_{node.outputs[0].name}"
            if before.graph is not None:
                before.graph.insert_before(before, node)
            self._round.shapes.add(node)

    def _unpacked(self, place: Place, inputs: Sequence[ir.Value | None]) -> list[ir.Node]:
        """The narrowed input makes the queries, the whole one keys and values."""
        node, widths = place.node, packed_widths(place.call) or []
        _, weight, bias, mask, _, scores = [*inputs, *[None] * 6][:6]
        products, first = [], 0
        for name, width, x in zip("qkv", widths, (inputs[0], node.inputs[0], node.inputs[0]), strict=True):
            part = self._columns(weight, f"{node.outputs[0].name}_{name}_weight", first, width)
            products.append(self._product(place, x, part, f"{node.outputs[0].name}_{name}", width))
            first += width
        given = [*(product.outputs[0] for product in products), bias, mask, scores]
        while given[-1] is None:
            given.pop()
        attributes = [node.attributes[key] for key in _KEPT if key in node.attributes]
        return [*products, ir.Node(CONTRIB, "MultiHeadAttention", given, attributes)]

    def _product(self, place: Place, x: ir.Value | None, weight: ir.Value, name: str, width: int) -> ir.Node:
        node = ir.node("MatMul", [x, weight])
        result, like = node.outputs[0], self._round.shapes[x].shape
        result.name, result.type = self._editor.fresh(name), _type(weight, place.call.input(1).dtype)
        result.shape = None if like is None else as_ir_shape((*like[:2], Dim.of(width)))
        return node

    def _columns(self, weight: ir.Value | None, name: str, first: int, width: int) -> ir.Value:
        """Columns of a constant matrix, cut out when they are read."""
        tensor = None if weight is None else tensor_of(weight)
        if tensor is None:
            raise ValueError("only a constant weight is taken apart")
        name, whole = self._editor.fresh(name), tensor
        part = lazy_tensor(
            name, tensor.dtype, (int(tensor.shape.numpy()[0]), width),
            lambda: np.ascontiguousarray(whole.numpy()[:, first : first + width]), (id(tensor), first, width),
        )  # fmt: skip
        return self._editor.initializer(name, part)


def _type(like: ir.Value, dtype: ir.DataType | None) -> ir.TypeProtocol | None:
    return like.type if dtype is None else ir.TensorType(dtype)


def _target(place: Place, way: Move, rows: Rows) -> tuple[int, ...] | None:
    source: Shape | None = place.call.input(0).shape
    if source is None:
        return None
    target = place.call.input(1).ints
    free = target.index(-1) if target is not None and -1 in target else None
    return constant_target(
        narrowed(source, way.reads[0], rows), narrowed(place.shape, place.axis, rows), free
    )
