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
        self._latest: ir.Node | None = None

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

    def rewire(self, cache: ir.Value, *, present: bool) -> None:
        """Let what asks for the length of a cache (a past input, or a present output) ask the mask."""
        for node in [use.node for use in cache.uses()]:
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

    def _count(self) -> ir.Value:
        """int64 [batch]: how many tokens each row has."""
        mask = self._mask
        if mask.dtype != _INT64:
            mask = self._op("mask_tokens", "Cast", [mask], list(mask.shape or ()), _INT64, {"to": _INT64})
        axes = self._constant("token_axis", np.array([1], np.int64))
        return self._op("row_length", "ReduceSum", [mask, axes], [self.batch], _INT64, {"keepdims": 0})

    def _last(self, name: str) -> ir.Value:
        one = self._constant("one", np.array(1, np.int64))
        place = self._op(f"{name}_wide", "Sub", [self._count(), one], [self.batch], _INT64)
        return self._op(name, "Cast", [place], [self.batch], _INT32, {"to": _INT32})

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
        if self._latest is None:
            self._graph.insert_before(self._graph[0], [node])
        else:
            self._graph.insert_after(self._latest, [node])
        self._latest = node
        return value
