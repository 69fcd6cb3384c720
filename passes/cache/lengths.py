"""How many tokens there are, as all layers of a lowered decoder share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.editing import Editor
from burnish.passes.matching import MADE_BY
from burnish.passes.shape_rules import shape_bounds

_TOKENS: Final = 2  # the axis of a cache that grows
_INT64: Final = ir.DataType.INT64
_INT32: Final = ir.DataType.INT32
Sizes = Sequence[int | str | ir.SymbolicDim | None]


@final
class Lengths:
    """Makes lengths from the mask, ahead of all other nodes, once each.

    The size of a past input is no longer how much past there is, once it is a buffer with room for more; what
    was computed from it is computed from the mask and the new tokens instead.

    Args:
        graph: the main graph.
        editor: of the model.
        mask: `[batch, all tokens]`, integers or bool.
        new: an input and the axis of it that is as long as the new tokens.
        made_by: name of the pass.
    """

    def __init__(
        self, graph: ir.Graph, editor: Editor, mask: ir.Value, new: tuple[ir.Value, int], made_by: str
    ) -> None:
        self._graph, self._editor, self._mask, self._new = graph, editor, mask, new
        self._made_by = made_by
        self._made: dict[str, ir.Value] = {}
        self._own: list[ir.Node] = []

    @property
    def batch(self) -> int | str | ir.SymbolicDim | None:
        """The number of rows."""
        return self._mask.shape[0] if self._mask.shape else None

    def last(self) -> ir.Value:
        """int32 [batch]: the place of each row's last token, in a row without gaps."""
        return self._once("last_token", self._last)

    def total(self) -> ir.Value:
        """int32 scalar: how many tokens the longest row may have."""
        return self._once("total_length", self._total)

    def written(self) -> ir.Value:
        """int64 [batch]: where a row's new tokens go, which is how many it has already."""
        return self._once("written_tokens", self._written)

    def filled(self) -> ir.Value:
        """int64 [batch]: how many places of a row are written, padding of a prompt included."""
        return self._once(
            "filled_places",
            lambda name: self._op(name, "Add", [self.written(), self._new_tokens()], [self.batch], _INT64),
        )

    def window(self, width: int, buffer: ir.Value) -> ir.Value:
        """bool [batch, 1, new tokens, places of `buffer`]: places less than `width` before a token."""
        return self._once(f"window_{width}", lambda name: self._window(name, width, buffer))

    def rewire(self, cache: ir.Value, *, present: bool) -> None:
        """Let what asks for the length of a cache (a past input, or a present output) ask the mask."""
        for node in [use.node for use in cache.uses() if use.node not in self._own]:
            start, end = shape_bounds(node, 4) if is_op(node, "Shape") else (0, 0)
            if not start <= _TOKENS < end:
                continue
            parts = (self._part(node, start, _TOKENS), self._part(node, _TOKENS + 1, end))
            length = self._all() if present else self._past()
            known = [part for part in (parts[0], length, parts[1]) if part is not None]
            if len(known) == 1:
                self._editor.replace(node.outputs[0], length)
            else:
                self._editor.renew(node, "Concat", known, axis=0)

    def _part(self, node: ir.Node, start: int, end: int) -> ir.Value | None:
        """The sizes of the other axes."""
        if start >= end:
            return None
        bounds = {"start": start, "end": end}
        part = self._editor.insert(node, "Shape", [node.inputs[0]], bounds, name=None).outputs[0]
        part.type, part.shape = ir.TensorType(_INT64), ir.Shape([end - start])
        return part

    def _once(self, name: str, make: Callable[[str], ir.Value]) -> ir.Value:
        if name not in self._made:
            self._made[name] = make(name)
        return self._made[name]

    def _all(self) -> ir.Value:
        return self._once("all_tokens", lambda name: self._size(name, self._mask, 1))

    def _new_tokens(self) -> ir.Value:
        return self._once("new_tokens", lambda name: self._size(name, *self._new))

    def _past(self) -> ir.Value:
        return self._once(
            "past_tokens",
            lambda name: self._op(name, "Sub", [self._all(), self._new_tokens()], [1], _INT64),
        )

    def _size(self, name: str, value: ir.Value, axis: int) -> ir.Value:
        return self._op(name, "Shape", [value], [1], _INT64, {"start": axis, "end": axis + 1})

    def _count(self, name: str, mask: ir.Value) -> ir.Value:
        """int64 [batch]: how many tokens each row of a mask has."""
        if mask.dtype != _INT64:
            mask = self._op(f"{name}_wide", "Cast", [mask], list(mask.shape or ()), _INT64, {"to": _INT64})
        axes = self._constant("token_axis", np.array([1], np.int64))
        return self._op(name, "ReduceSum", [mask, axes], [self.batch], _INT64, {"keepdims": 0})

    def _row_length(self) -> ir.Value:
        return self._once("row_length", lambda name: self._count(name, self._mask))

    def _one(self) -> ir.Value:
        return self._constant("one", np.array(1, np.int64))

    def _last(self, name: str) -> ir.Value:
        place = self._op(f"{name}_wide", "Sub", [self._row_length(), self._one()], [self.batch], _INT64)
        return self._op(name, "Cast", [place], [self.batch], _INT32, {"to": _INT32})

    def _written(self, name: str) -> ir.Value:
        ends = self._constant("mask_end", np.array([np.iinfo(np.int64).max]))
        axes = self._constant("token_axis", np.array([1], np.int64))
        mask = self._op("mask_of_new", "Slice", [self._mask, self._past(), ends, axes], [self.batch, None],
                        self._mask.dtype or _INT64)  # fmt: skip
        # A mask that shows padding at the end of rows may show none of the new tokens; there is one at least.
        new = self._op(
            "row_new", "Max", [self._count("row_new_shown", mask), self._one()], [self.batch], _INT64
        )
        return self._op(name, "Sub", [self._row_length(), new], [self.batch], _INT64)

    def _window(self, name: str, width: int, buffer: ir.Value) -> ir.Value:
        axes = self._constant("row_axes", np.array([1, 2, 3], np.int64))
        past = self._once(
            "row_past",
            lambda own: self._op(own, "Unsqueeze", [self.written(), axes], [self.batch, 1, 1, 1], _INT64),
        )
        new = self._once("new_places", lambda own: self._range(own, self._new_tokens()))
        last = self._constant("last_axis", np.array([1], np.int64))
        column = self._op(f"{name}_new", "Unsqueeze", [new, last], [None, 1], _INT64)
        tokens = self._op(f"{name}_tokens", "Add", [past, column], [self.batch, 1, None, 1], _INT64)
        places = self._once("places", lambda own: self._range(own, self._size("all_places", buffer, 2)))
        reach = self._constant(f"{name}_width", np.array(width, np.int64))
        ends = self._op(f"{name}_ends", "Add", [places, reach], [None], _INT64)
        kind = ir.DataType.BOOL
        return self._op(name, "Greater", [ends, tokens], [self.batch, 1, None, None], kind)

    def _range(self, name: str, count: ir.Value) -> ir.Value:
        zero, first = (self._constant(wish, np.array(0, np.int64)) for wish in ("zero", "first"))
        scalar = self._op(f"{name}_count", "Gather", [count, first], [], _INT64, {"axis": 0})
        return self._op(name, "Range", [zero, scalar, self._one()], [None], _INT64)

    def _total(self, name: str) -> ir.Value:
        first = self._constant("first", np.array(0, np.int64))
        size = self._op(f"{name}_wide", "Gather", [self._all(), first], [], _INT64, {"axis": 0})
        return self._op(name, "Cast", [size], [], _INT32, {"to": _INT32})

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self._once(
            name, lambda wish: self._editor.initializer(self._editor.fresh(wish), ir.tensor(array))
        )

    def _op(
        self,
        name: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Sizes,
        dtype: ir.DataType,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=dict(attributes or {}))  # type: ignore[arg-type]
        value = node.outputs[0]
        value.name = self._editor.fresh(name)
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        node.name = f"node_{value.name}"
        node.metadata_props[MADE_BY] = self._made_by
        if self._own:
            self._graph.insert_after(self._own[-1], [node])
        else:
            self._graph.insert_before(self._graph[0], [node])
        self._own.append(node)
        return value
