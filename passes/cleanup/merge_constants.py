"""(x * a) * b  ->  x * (a * b);   (x + a) - b  ->  x + (a - b)"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op, tensor_of
from burnish.passes.editing import Round, feeds_only, until_stable

_MAX_BYTES: Final = 1 << 16
_SUMS: Final = ("Add", "Sub")
_PRODUCTS: Final = ("Div", "Mul")
_LOST: Final = 1e-5
"""Of a constant: the most that may be rounded away."""


@final
@dataclasses.dataclass(frozen=True)
class MergeConstants(Pass):
    """Add, subtract, multiply or divide by constants once instead of twice in a row.

    Integers wrap around either way. Floats are rounded once instead of twice. Kept: sums of constants that
    cancel in part, which may be there to round, or of which one is lost beside the other (x - 1.6e9 - 0.5 is
    exact where x is near 1.6e9); products out of range; results that are used elsewhere too.
    It comes after the fusions, which know scales and caps by where they are applied.
    """

    name: ClassVar[str] = "merge-constants"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were merged into the next one."""
        return until_stable(model, context, lambda round_: partial(_merge, round_))


@final
@dataclasses.dataclass(frozen=True)
class _Term:
    """`x + constant`, or `constant - x` when negated; `x * constant` or `x / constant` in a product."""

    x: ir.Value
    constant: np.ndarray
    negated: bool = False
    divides: bool = False


def _merge(round_: Round, node: ir.Node) -> None:
    if node.domain or node.op_type not in (*_SUMS, *_PRODUCTS):
        return
    outer = _term(node)
    before = None if outer is None else outer.x.producer()
    sums = node.op_type in _SUMS
    if outer is None or before is None or before.op_type not in (_SUMS if sums else _PRODUCTS):
        return
    inner = _term(before) if before.domain == "" and feeds_only(before, node) else None
    if inner is None or before.graph is not node.graph or not _fit(inner.constant, outer.constant):
        return
    with np.errstate(all="ignore"):  # what comes out is looked at
        combined = (_sum if sums else _product)(inner, outer)
    if combined is None:
        round_.context.miss(node, "its constant and the one before it cannot be one without losing digits")
    elif round_.context.permit(node):
        constant = round_.editor.constant(node, f"{node.outputs[0].name}_constant", combined)
        if not sums:
            round_.renew(node, "Mul", [inner.x, constant])
        elif inner.negated != outer.negated:
            round_.renew(node, "Sub", [constant, inner.x])
        else:
            round_.renew(node, "Add", [inner.x, constant])


def _term(node: ir.Node) -> _Term | None:
    for place in (0, 1):
        x, constant = node.inputs[place], constant_of(node.inputs[1 - place], _MAX_BYTES)
        if x is None or constant is None or constant.dtype.kind not in "fiu" or tensor_of(x) is not None:
            continue
        if is_op(node, "Sub") and place == 0:
            with np.errstate(over="ignore"):
                return _Term(x, np.negative(constant))
        divides = is_op(node, "Div")
        if divides and (place == 1 or constant.dtype.kind != "f"):
            return None
        return _Term(x, constant, is_op(node, "Sub"), divides)
    return None


def _fit(first: np.ndarray, second: np.ndarray) -> bool:
    """True when the two together are no larger than one of them."""
    try:
        return np.broadcast_shapes(first.shape, second.shape) in (first.shape, second.shape)
    except ValueError:
        return False


def _sum(inner: _Term, outer: _Term) -> np.ndarray | None:
    first = np.negative(inner.constant) if outer.negated else inner.constant
    total = np.asarray(first + outer.constant)
    if total.dtype.kind != "f":
        return total
    cancels = np.any(np.sign(first) * np.sign(outer.constant) < 0)
    return total if not cancels and np.isfinite(total).all() and _keeps_both(first, outer.constant) else None


def _keeps_both(first: np.ndarray, second: np.ndarray) -> bool:
    """True when what rounding takes from a sum is little even beside the smaller of the two."""
    total = first + second
    larger, smaller = np.maximum(np.abs(first), np.abs(second)), np.minimum(np.abs(first), np.abs(second))
    exact = np.abs(total) - larger == smaller  # what was added comes out again
    return bool(np.all(exact | (np.finfo(total.dtype).eps * np.abs(total) <= _LOST * smaller)))


def _product(inner: _Term, outer: _Term) -> np.ndarray | None:
    dtype = inner.constant.dtype
    if dtype.kind != "f":
        return np.asarray(inner.constant * outer.constant)
    factors = [term.constant.astype(np.float64) for term in (inner, outer)]
    exact = [1 / f if term.divides else f for f, term in zip(factors, (inner, outer), strict=True)]
    product = np.asarray((exact[0] * exact[1]).astype(dtype))
    normal = np.isfinite(product) & (np.abs(product) >= np.finfo(dtype).tiny)
    return product if normal.all() else None
