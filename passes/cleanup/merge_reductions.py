"""Reshape(ReduceMean(x), [N, C])  ->  ReduceMean(x), which drops the axes;   GlobalAveragePool likewise"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.cleanup.reshape_target import RESHAPES
from burnish.passes.editing import Round, feeds_only, is_templated, until_stable
from burnish.passes.shapes import Shape

_REDUCTIONS: Final = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_POOLS: Final = {"AveragePool": "ReduceMean", "GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
_AXES_AS_INPUT: Final = 18  # of ReduceMean and ReduceMax; attributes before


@final
@dataclasses.dataclass(frozen=True)
class MergeReductions(Pass):
    """Let a reduction drop the axes that a Reshape, Flatten or Squeeze behind it drops.

    A pool over all of a picture is the mean (or the largest) of the axes behind the channels. Kept: results
    that are used elsewhere too, and shapes that are not known to be those without the axes. It comes after
    quantisation, which knows pools and not means.
    """

    name: ClassVar[str] = "merge-reductions"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many reductions took over a reshape."""
        return until_stable(model, context, lambda round_: partial(_visit, round_))


def _visit(round_: Round, node: ir.Node) -> None:
    if node.domain or node.op_type not in RESHAPES or not node.inputs or node.inputs[0] is None:
        return
    inner = node.inputs[0].producer()
    if inner is None or inner.domain or inner.op_type not in (*_REDUCTIONS, *_POOLS):
        return
    if is_templated(inner) or inner.graph is not node.graph or not feeds_only(inner, node):
        return
    before = None if inner.inputs[0] is None else inner.inputs[0].producer()
    if before is not None and is_op(before, "DequantizeLinear"):  # runtimes have pools on integers
        return
    shape, result = round_.shapes[inner.inputs[0]].shape, round_.shapes[node.outputs[0]].shape
    axes = None if shape is None else _axes(round_, inner, shape)
    if shape is None or not axes or tuple(d for i, d in enumerate(shape) if i not in axes) != result:
        return
    if inner.op_type in _REDUCTIONS:
        if round_.context.permit(node):
            kept = {name: each.value for name, each in inner.attributes.items() if name != "keepdims"}
            round_.renew(node, inner.op_type, inner.inputs, **kept, keepdims=0)
        return
    opset, op_type = round_.shapes.opset(inner), _POOLS[inner.op_type]
    if not round_.context.permit(node):
        return
    if opset < _AXES_AS_INPUT:
        round_.renew(node, op_type, inner.inputs[:1], axes=axes, keepdims=0)
    else:
        numbers = round_.numbers(node, f"{node.outputs[0].name}_axes", axes)
        round_.renew(node, op_type, [inner.inputs[0], numbers], keepdims=0)


def _axes(round_: Round, node: ir.Node, shape: Shape) -> list[int] | None:
    """The axes that a node reduces to one; None where that is not known, or where it keeps none of them."""
    rank = len(shape)
    if node.op_type in _REDUCTIONS:
        axes = round_.call(node).ints("axes", 1)
        kept = node.attributes.get_int("keepdims", 1)
        return sorted({axis % rank for axis in axes}) if axes and kept else None
    if node.op_type == "AveragePool" and not _is_global(node, shape):
        return None
    return list(range(2, rank)) if rank > 2 and len(node.outputs) == 1 else None


def _is_global(node: ir.Node, shape: Shape) -> bool:
    """True for a window as large as the picture, which pads nothing."""
    attributes = node.attributes
    plain = attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if (
        not plain
        or any(attributes.get_ints("pads", ()) or ())
        or any(step != 1 for step in attributes.get_ints("dilations", ()) or ())
    ):
        return False
    return list(attributes.get_ints("kernel_shape", ()) or ()) == [dim.size for dim in shape[2:]]
