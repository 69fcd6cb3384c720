"""Cast to the same dtype, Reshape to the same shape, Slice of everything, Mul by 1, ...  ->  (nothing)"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_templated
from burnish.passes.editing import Editor
from burnish.passes.shape_contents import slice_bounds
from burnish.passes.shape_rules import transpose_perm
from burnish.passes.shapes import Call, Shapes

_MAX_BYTES: Final = 1 << 16  # a constant operand that does nothing is small, or not worth reading

Test = Callable[[Call], int | None]
"""The index of the input that the node hands through unchanged; None when it does something."""


@final
@dataclasses.dataclass(frozen=True)
class RemoveNoOp(Pass):
    """Remove operators that hand one input through.

    Cast to the same dtype; Transpose to the same order; Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile
    and Split that keep the shape; Slice that keeps everything; Pad by nothing; Concat, Max, Min, Mean and Sum
    of one input; Dropout outside training; Clip of integers without bounds; multiplication by 1, the power
    of 1, addition of integer 0, And with true, Or with false; Where with a constant condition; Resize to the
    sizes that are there. Shapes are compared as polynomials in the names of the inputs' dims.

    Between an input and an output, which both keep their names, an Identity is left.

    Kept: addition of 0.0, which turns -0.0 into 0.0 (see simplify-arithmetic).
    """

    name: ClassVar[str] = "remove-no-op"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were removed, or became an Identity."""
        editor, shapes, removed = Editor(model), context.shapes(model), 0
        for node in context.nodes(model):
            source = _handed_through(node, shapes)
            if source is None or not context.permit(node):
                continue
            if editor.can_replace(node.outputs[0], source):
                editor.replace(node.outputs[0], source)
            else:
                editor.renew(node, "Identity", [source])
            removed += 1
        return removed


def _handed_through(node: ir.Node, shapes: Shapes) -> ir.Value | None:
    test = _TESTS.get(node.op_type)
    if test is None or node.domain or is_templated(node):
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    index = test(Call(node, [shapes[value] for value in node.inputs], shapes.opset(node), shapes))
    return None if index is None else node.inputs[index]


def _keeps_shape(call: Call, index: int = 0) -> bool:
    before, after = call.input(index).shape, call.shapes[call.node.outputs[0]].shape
    return before is not None and before == after


def _cast(call: Call) -> int | None:
    dtype = call.input(0).dtype
    return 0 if dtype is not None and dtype == call.shapes[call.node.outputs[0]].dtype else None


def _same_elements(call: Call) -> int | None:
    return 0 if _keeps_shape(call) else None


def _transpose(call: Call) -> int | None:
    rank = call.input(0).rank
    if rank is None:
        rank = len(call.node.attributes["perm"].as_ints()) if "perm" in call.node.attributes else None
    ordered = rank is not None and transpose_perm(call.node, rank) == tuple(range(rank))
    return 0 if ordered else None


def _slice(call: Call) -> int | None:
    bounds = slice_bounds(call)
    whole = bounds is not None and all(step == 1 for _, _, step in bounds.values())
    return 0 if whole and _keeps_shape(call) else None


def _single(call: Call) -> int | None:
    return 0 if len(call.node.inputs) == 1 else None


def _split(call: Call) -> int | None:
    return 0 if len(call.node.outputs) == 1 and _keeps_shape(call) else None


def _pad(call: Call) -> int | None:
    pads = call.ints("pads", 1)
    return 0 if pads is not None and not any(pads) else None


def _dropout(call: Call) -> int | None:
    training = constant_of(call.node.inputs[2], max_bytes=8) if call.has(2) else np.array(False)
    return 0 if training is not None and not training.any() else None


def _clip(call: Call) -> int | None:
    """Of integers: without bounds, onnxruntime makes the infinities of floats the largest finite numbers."""
    bounded = call.has(1) or call.has(2) or call.opset < 11
    dtype = call.input(0).dtype
    return None if bounded or dtype is None or dtype.is_floating_point() else 0


def _resize(call: Call) -> int | None:
    """By given sizes: scales may round to the same size, and still move the image."""
    attributes = call.node.attributes
    region = attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    by_size = call.has(3) and attributes.get_string("mode", "nearest") in ("linear", "nearest")
    return 0 if by_size and not region and call.opset >= 11 and _keeps_shape(call) else None


def _neutral(element: int, *, commutes: bool, floats: bool = True) -> Test:
    """The test of a binary operator that does nothing with `element` on the right (or left)."""

    def test(call: Call) -> int | None:
        if len(call.node.inputs) != 2:
            return None
        for kept, other in ((0, 1), (1, 0)) if commutes else ((0, 1),):
            dtype = call.input(kept).dtype
            allowed = dtype is not None and (floats or not dtype.is_floating_point())
            if allowed and _keeps_shape(call, kept) and _is_all(call.node.inputs[other], element):
                return kept
        return None

    return test


def _where(call: Call) -> int | None:
    """What a constant condition chooses everywhere."""
    condition = constant_of(call.node.inputs[0], max_bytes=_MAX_BYTES)
    if condition is None or condition.size == 0 or condition.all() != condition.any():
        return None
    chosen = 1 if condition.all() else 2
    return chosen if _keeps_shape(call, chosen) else None


def _is_all(value: ir.Value | None, element: int) -> bool:
    array = constant_of(value, max_bytes=_MAX_BYTES)
    if array is None or array.size == 0 or array.dtype.kind in "OSU":
        return False
    return bool(np.all(array == element))


_TESTS: Final[dict[str, Test]] = {
    **dict.fromkeys(("Expand", "Flatten", "Reshape", "Squeeze", "Tile", "Unsqueeze"), _same_elements),
    **dict.fromkeys(("Concat", "Max", "Mean", "Min", "Sum"), _single),
    "Add": _neutral(0, commutes=True, floats=False), "And": _neutral(1, commutes=True), "Cast": _cast,
    "CastLike": _cast, "Clip": _clip, "Div": _neutral(1, commutes=False), "Dropout": _dropout,
    "Mul": _neutral(1, commutes=True), "Or": _neutral(0, commutes=True), "Pad": _pad,
    "Pow": _neutral(1, commutes=False), "Resize": _resize, "Slice": _slice,
    "Split": _split, "Sub": _neutral(0, commutes=False, floats=False), "Transpose": _transpose,
    "Where": _where,
}  # fmt: skip
