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
    """min(max(x, low), high), with low <= high.

    A Clip without a bound stops at the last finite number, also what is infinite; Max and Min do not.
    """

    x: ir.Value
    low: np.ndarray
    high: np.ndarray

    def of(self, bound: np.ndarray) -> np.ndarray:
        """Where a bound of what is clamped ends up."""
        return np.asarray(np.minimum(np.maximum(bound, self.low), self.high))


def merge_clamps(node: ir.Node, round_: Round) -> None:
    """Let a node clamp like the one before it, too; NaN goes through all of them."""
    outer = _clamp(node, round_)
    before = None if outer is None else outer.x.producer()
    if outer is None or before is None or before.domain or before.op_type not in CLAMPS:
        return
    inner = _clamp(before, round_) if feeds_only(before, node) and before.graph is node.graph else None
    if inner is None or round_.shapes.opset(node) < _FIRST_OPSET:
        return
    low, high = outer.of(inner.low), outer.of(inner.high)
    bounds = [
        None if bound == last else bound for bound, last in zip((low, high), _finite(low.dtype), strict=True)
    ]
    if bounds == [None, None] or not round_.context.permit(node):
        return
    name = node.outputs[0].name
    inputs = [
        None if bound is None else round_.editor.constant(node, f"{name}_{which}", bound)
        for which, bound in zip(("low", "high"), bounds, strict=True)
    ]
    while inputs[-1] is None:
        inputs.pop()
    round_.renew(node, "Clip", [inner.x, *inputs])


def _clamp(node: ir.Node, round_: Round) -> _Clamp | None:
    x, dtype = node.inputs[0], round_.shapes[node.outputs[0]].dtype
    if x is None or dtype not in _DTYPES:  # of others runtimes have no Clip
        return None
    if node.op_type in ("Max", "Min"):
        return _one_sided(node, round_)
    if node.op_type == "Relu":
        return _Clamp(x, np.zeros((), dtype.numpy()), _last(dtype.numpy())[1])
    given = [*node.inputs[1:], None, None][:2]
    bounds = [None if value is None else constant_of(value, max_bytes=16) for value in given]
    if any(value is not None and (b is None or b.size != 1) for value, b in zip(given, bounds, strict=True)):
        return None
    if {"min", "max"} & node.attributes.keys() or bounds == [None, None]:
        return None
    finite = _finite(dtype.numpy())
    low, high = (last if b is None else b.reshape(()) for b, last in zip(bounds, finite, strict=True))
    return _ordered(x, low, high)


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
        only, (first, last) = bound.reshape(()), _last(bound.dtype)
        return _ordered(x, only, last) if node.op_type == "Max" else _ordered(x, first, only)
    return None


def _ordered(x: ir.Value, low: np.ndarray, high: np.ndarray) -> _Clamp | None:
    return _Clamp(x, low, high) if low <= high else None  # not where one is NaN


def _last(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest number."""
    return (np.array(-np.inf, dtype), np.array(np.inf, dtype)) if dtype.kind == "f" else _finite(dtype)


def _finite(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array(info.min, dtype), np.array(info.max, dtype)
