"""Clip(Clip(x))  ->  Clip(x);   Min(Max(x, a), b)  ->  Clip(x, a, b)"""

from __future__ import annotations

import dataclasses
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, tensor_of
from burnish.passes.editing import Round, feeds_only

CLAMPS: Final = frozenset({"Clip", "Max", "Min", "Relu"})
"""Operators that `merge_clamps` looks at."""
_FIRST_OPSET: Final = 12  # of Clip for integers, with bounds as inputs
_DTYPES: Final = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64)


@final
@dataclasses.dataclass(frozen=True)
class _Clamp:
    """min(max(x, low), high); None: no bound. Here low <= high."""

    x: ir.Value
    low: np.ndarray | None
    high: np.ndarray | None

    def of(self, bound: np.ndarray | None) -> np.ndarray | None:
        """Where a bound of what is clamped ends up."""
        if bound is not None and self.low is not None:
            bound = np.maximum(bound, self.low)
        return bound if bound is None or self.high is None else np.minimum(bound, self.high)


def merge_clamps(node: ir.Node, round_: Round) -> None:
    """Let a node clamp like the one before it, too; NaN goes through all of them."""
    outer = _clamp(node, round_)
    before = None if outer is None else outer.x.producer()
    if outer is None or before is None or before.domain or before.op_type not in CLAMPS:
        return
    inner = _clamp(before, round_) if feeds_only(before, node) and before.graph is node.graph else None
    if inner is None or round_.shapes.opset(node) < _FIRST_OPSET:
        return
    if round_.shapes[inner.x].dtype not in _DTYPES:  # for which runtimes have a Clip
        return
    low, high = outer.of(inner.low), outer.of(inner.high)
    low, high = outer.low if low is None else low, outer.high if high is None else high
    if not round_.context.permit(node):
        return
    name = node.outputs[0].name
    bounds = [
        None if bound is None else round_.editor.constant(node, f"{name}_{which}", bound)
        for which, bound in (("low", low), ("high", high))
    ]
    while bounds[-1] is None:
        bounds.pop()
    round_.renew(node, "Clip", [inner.x, *bounds])


def _clamp(node: ir.Node, round_: Round) -> _Clamp | None:
    if node.op_type in ("Max", "Min"):
        return _one_sided(node, round_)
    x, dtype = node.inputs[0], round_.shapes[node.inputs[0]].dtype
    if x is None or dtype is None:
        return None
    if node.op_type == "Relu":
        return _Clamp(x, np.zeros((), dtype.numpy()), None)
    given = [*node.inputs[1:], None, None][:2]
    bounds = [None if value is None else constant_of(value, max_bytes=16) for value in given]
    if any(value is not None and (b is None or b.size != 1) for value, b in zip(given, bounds, strict=True)):
        return None
    if {"min", "max"} & node.attributes.keys() or bounds == [None, None]:
        return None
    return _ordered(x, *(None if bound is None else bound.reshape(()) for bound in bounds))


def _one_sided(node: ir.Node, round_: Round) -> _Clamp | None:
    if len(node.inputs) != 2:
        return None
    for place in (0, 1):
        x, bound = node.inputs[place], constant_of(node.inputs[1 - place], max_bytes=16)
        if x is None or bound is None or bound.size != 1 or tensor_of(x) is not None:
            continue
        before, after = round_.shapes[x].shape, round_.shapes[node.outputs[0]].shape
        if before is None or before != after:
            return None
        only = bound.reshape(())
        return _ordered(x, only, None) if node.op_type == "Max" else _ordered(x, None, only)
    return None


def _ordered(x: ir.Value, low: np.ndarray | None, high: np.ndarray | None) -> _Clamp | None:
    numbers = [bound for bound in (low, high) if bound is not None]
    if any(bound.dtype.kind not in "fiu" or bound != bound for bound in numbers):  # not NaN
        return None
    return None if low is not None and high is not None and low > high else _Clamp(x, low, high)
