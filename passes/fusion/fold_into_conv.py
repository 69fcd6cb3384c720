"""Add(Conv(x, w), c)  ->  Conv(x, w, c);   Conv(Pad(x))  ->  Conv(x), which pads itself"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op, tensor_of
from burnish.passes.fusion.linear import (
    Affine,
    channels,
    emit,
    fold,
    is_linear,
    weights_are_constant,
    why_not_folded,
)
from burnish.passes.fusion.padding import absorb_padding, takes_padding
from burnish.passes.matching import Scope, either_way, made_by, obstacle, scopes

_SCALES: Final = ("Div", "Mul")
_MAX_ROW: Final = 1 << 16  # bytes of a bias


@final
@dataclasses.dataclass(frozen=True)
class FoldIntoConv(Pass):
    """Fold constants around Conv, ConvTranspose, Gemm and MatMul into their weights.

    - Add, Sub, Mul and Div of a constant for each channel behind one of them (behind a MatMul only Mul and
      Div: it has no bias);
    - Mul and Div behind a MatMul and the Add of its bias (a layer's scale), into both;
    - Pad with zeros before Conv, AveragePool and MaxPool, where that is what the operator can do itself.

    Kept: weights that are not constant, or in half precision, where a folded weight is rounded once more;
    results that are used elsewhere too; constants that differ by position.
    """

    name: ClassVar[str] = "fold-into-conv"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many constants and Pads were folded."""
        before, shapes = len(context.rewrites), functools.cache(lambda: context.shapes(model))
        for scope in scopes(model):
            for node in list(scope.graph):
                if node.graph is None:
                    continue
                if node.op_type in _STEPS and node.domain == "":
                    _fold(node, scope, context)
                elif takes_padding(node):
                    absorb_padding(node, scope, context, shapes)
        return len(context.rewrites) - before


def _fold(node: ir.Node, scope: Scope, context: Context) -> None:
    for place in (0, 1):
        result, constant = node.inputs[place], node.inputs[1 - place]
        linear = None if result is None else result.producer()
        if constant is not None and is_op(linear, "Add") and _fold_behind_bias(node, linear, scope, context):
            return
        if linear is None or not is_linear(linear) or constant is None or tensor_of(constant) is None:
            continue
        plain = linear.op_type == "MatMul"  # which has no bias, and mostly no constant operand
        if plain and (node.op_type in ("Add", "Sub") or not weights_are_constant(linear)):
            continue
        affine = _affine(node, place, linear)
        why = why_not_folded(linear, scales=node.op_type in _SCALES) or obstacle([linear, node], node.outputs)
        if affine is None and why is None:
            why = "its constant is not one number for each channel"
        folded = None if affine is None or why is not None else fold(linear, affine)
        if folded is None or not folded.is_finite():
            context.miss(node, why or "the constants do not fit each other")
        elif context.permit(node):
            new = emit(linear, folded, scope)
            scope.replace([linear, node], [new], {node.outputs[0]: new.outputs[0]}, FoldIntoConv.name)
        return


def _fold_behind_bias(node: ir.Node, add: ir.Node | None, scope: Scope, context: Context) -> bool:
    """(x @ w + b) * c  ->  x @ (w * c) + b * c"""
    if add is None or node.op_type not in _SCALES or add.outputs[0] is None:
        return False
    for result, bias in either_way(add):
        matmul, row = made_by(result, "MatMul"), constant_of(bias, _MAX_ROW)
        count = None if matmul is None else channels(matmul)
        if matmul is None or row is None or count is None or row.ndim > 1 or row.size not in (1, count):
            continue
        place = 0 if node.inputs[0] is add.outputs[0] else 1
        affine = _affine(node, place, matmul)
        if affine is None or affine.factor is None:
            return False
        why = why_not_folded(matmul, scales=True) or obstacle([matmul, add, node], node.outputs)
        folded = None if why is not None else fold(matmul, affine)
        if why is not None or folded is None or folded.weight is None:
            context.miss(node, why or "the constants do not fit each other")
            return False
        with np.errstate(over="ignore"):
            shift = (row.astype(np.float64) * affine.factor).astype(row.dtype)
        finite = folded.is_finite() and np.isfinite(shift).all()
        if not context.permit_unless(None if finite else "the constants overflow together", node):
            return False
        new = emit(matmul, folded, scope)
        total = ir.node("Add", [new.outputs[0], scope.constant(add, f"{bias.name}_folded", shift)])
        value, old = new.outputs[0], result
        value.name, value.type, value.shape = scope.fresh(f"{old.name}_scaled"), old.type, old.shape
        results = {node.outputs[0]: total.outputs[0]}
        scope.replace([matmul, add, node], [new, total], results, FoldIntoConv.name)
        return True
    return False


def _affine(node: ir.Node, place: int, linear: ir.Node) -> Affine | None:
    """What the node does to each channel; None when it is nothing that a weight can do."""
    array, count = constant_of(node.inputs[1 - place]), channels(linear)
    if array is None or count is None or not weights_are_constant(linear):
        return None
    row = _per_channel(array.astype(np.float64), linear, count)
    if row is None:
        return None
    match node.op_type:
        case "Add":
            return Affine(shift=row)
        case "Sub":
            return Affine(shift=-row) if place == 0 else Affine(-np.ones(1), row)
        case "Mul":
            return Affine(factor=row)
        case _:
            return Affine(factor=1 / row) if place == 0 and np.all(row != 0) else None


def _per_channel(array: np.ndarray, linear: ir.Node, count: int) -> np.ndarray | None:
    """The constant as [channels] or [1]; None when it is not one number for each channel."""
    weight = constant_of(linear.inputs[1])
    behind = 0 if weight is None or not linear.op_type.startswith("Conv") else weight.ndim - 2
    most = {"MatMul": 1, "Gemm": 2}.get(linear.op_type, behind + 2)
    if array.ndim > most or array.dtype.kind != "f":
        return None
    whole = (
        array.reshape([1] * (behind + 2 - array.ndim) + list(array.shape))
        if array.ndim < behind + 2
        else array
    )
    if whole.size != whole.shape[1] or whole.size not in (1, count):
        return None
    return whole.reshape(-1)


_STEPS: Final = frozenset({"Add", "Div", "Mul", "Sub"})
