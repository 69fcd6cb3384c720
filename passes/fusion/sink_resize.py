"""Conv1x1(Concat(a, Resize(b)))  ->  Conv1x1(a) + Resize(Conv1x1(b))

A product over channels and an interpolation over space may change places: an interpolation has the same
weights for all channels, and they add up to 1, so that a bias goes through it. The product then runs on the
small image. Heads of segmentation models end so (Xie et al., "SegFormer", 2021, section 3.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of
from burnish.passes.fusion.linear import why_not_folded
from burnish.passes.fusion.pointwise import emit_pointwise, is_pointwise, matrix_of
from burnish.passes.matching import Scope, made_by, obstacle, scopes
from burnish.passes.shapes import Shapes

_OPSET: Final = 11  # from where on Resize has sizes
_MODES: Final = ("linear", "nearest")
_SUM: Final = 64  # multiplications that take the time of reading and adding one element
_SCALES, _SIZES = 2, 3  # inputs of Resize
_MAX_BYTES: Final = 256  # of them
_GROWS: Final = 2  # times the positions, at least


@final
@dataclasses.dataclass(frozen=True)
class SinkResize(Pass):
    """Move a Resize that enlarges behind the convolution with a kernel of 1 that reads it.

    The convolution reads the Resize, alone or with others in a Concat of channels; each Resize then gets a
    convolution of its own, and the results are added. Fired where that is less to compute: the image at
    least doubles, no more channels are made than read, and enough are read to be worth an addition.

    Kept: cubic and anti-aliased Resizes, and those of a region (tf_crop_and_resize); sizes that are not
    known; a Resize that something else reads too; weights that are not constant, or in half precision.
    """

    name: ClassVar[str] = "sink-resize"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Resize"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many convolutions were put ahead of what they read."""
        before, shapes = len(context.rewrites), context.shapes(model)
        for scope in scopes(model):
            todo = [node for node in scope.graph if is_pointwise(node)] if scope.opset >= _OPSET else []
            while todo:
                todo += _sink(todo.pop(), scope, context, shapes)
        return len(context.rewrites) - before


def _sink(conv: ir.Node, scope: Scope, context: Context, shapes: Shapes) -> list[ir.Node]:
    """Rewrite at one convolution; return those that took its place."""
    concat = made_by(conv.inputs[0], "Concat")
    read = [value for value in (conv.inputs[:1] if concat is None else concat.inputs) if value is not None]
    if not any(made_by(value, "Resize") for value in read) or not _joins_channels(concat, shapes):
        return []
    made, widths = matrix_of(conv).shape[0], [_channels(value, shapes) for value in read]
    reasons = [_refusal(value, made, shapes) for value in read]
    moved = [value for value, why in zip(read, reasons, strict=True) if why is None]
    old = [node for node in (*(value.producer() for value in moved), concat, conv) if node is not None]
    why = why_not_folded(conv, scales=True) or obstacle(old, conv.outputs)
    if None in widths or len(set(read)) < len(read):
        why = "how many channels each part has is not known, or a part is there twice"
    elif not moved:
        why = next((reason for reason in reasons if reason), None)
    if not context.permit_unless(why, conv):
        return []
    draft = _Draft(conv, scope, dict(zip(read, _columns(matrix_of(conv), widths), strict=True)))
    new = draft.apart(read, moved)
    scope.replace(old, new, {conv.outputs[0]: new[-1].outputs[0]}, SinkResize.name)
    return [node for node in new if node.op_type == "Conv"]


def _joins_channels(concat: ir.Node | None, shapes: Shapes) -> bool:
    if concat is None:
        return True
    axis, rank = concat.attributes.get_int("axis", 0), shapes[concat.outputs[0]].rank
    return axis == 1 or (rank is not None and axis == 1 - rank)


def _channels(value: ir.Value, shapes: Shapes) -> int | None:
    shape = shapes[value].shape
    return shape[1].size if shape is not None and len(shape) > 1 else None


def _columns(weight: np.ndarray, widths: Sequence[int | None]) -> list[np.ndarray]:
    """The weight's columns, by the parts that they are for."""
    return np.split(weight, np.cumsum([width or 0 for width in widths])[:-1], axis=1)


def _refusal(value: ir.Value, made: int, shapes: Shapes) -> str | None:
    """Why this part is not a Resize that a convolution of so many channels should go ahead of."""
    node = made_by(value, "Resize")
    if node is None or node.inputs[0] is None:
        return "no Resize"
    before, after = shapes[node.inputs[0]].shape, shapes[value].shape
    if before is None or after is None or before[:2] != after[:2] or before[1].size is None:
        return "its Resize is not proved to keep batch and channels"
    if not _interpolates(node):
        return "its Resize does more than to interpolate over space"
    small, large = ([dim.size for dim in shape[2:]] for shape in (before, after))
    if None in small or None in large:
        return "by how much its Resize enlarges is not known"
    few, many = (math.prod(size or 0 for size in sizes) for sizes in (small, large))
    read = before[1].size
    if few == 0 or many < _GROWS * few or made > read or read * (many - few) < _SUM * many:
        return "it would not be less to compute"
    if made != read and not _spares_channels(node):
        return "the sizes of its Resize are computed, its channels among them"
    return None


def _interpolates(node: ir.Node) -> bool:
    """True for what is a sum over positions with weights that are one in all, the same for all channels."""
    attributes = node.attributes
    if attributes.get_int("antialias", 0) or attributes.get_string("mode", "nearest") not in _MODES:
        return False
    if attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    axes = attributes.get_ints("axes", None)
    if axes is not None:
        return all(axis > 1 for axis in axes)
    scales = constant_of(node.inputs[_SCALES], _MAX_BYTES) if len(node.inputs) > _SCALES else None
    by_size = len(node.inputs) > _SIZES and node.inputs[_SIZES] is not None
    stretched = attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    return stretched and (by_size or (scales is not None and bool(np.all(scales[:2] == 1))))


def _spares_channels(node: ir.Node) -> bool:
    """True where the inputs do not hold the number of channels, or hold it as a constant."""
    sizes = node.inputs[_SIZES] if len(node.inputs) > _SIZES else None
    return sizes is None or "axes" in node.attributes or constant_of(sizes, _MAX_BYTES) is not None


@final
@dataclasses.dataclass(frozen=True)
class _Draft:
    """The nodes that come in the place of a convolution."""

    conv: ir.Node
    scope: Scope
    columns: dict[ir.Value, np.ndarray]
    """What each part is multiplied by: [channels made, channels of the part], float64."""

    def apart(self, read: Sequence[ir.Value], moved: Sequence[ir.Value]) -> list[ir.Node]:
        """Convolutions of the parts, the Resizes behind them, and a sum of all."""
        bias = constant_of(self.conv.inputs[2]) if len(self.conv.inputs) > 2 else None
        rest = [value for value in read if value not in moved]
        new = self._together(rest, bias) if rest else []
        ends = [new[-1].outputs[0]] if new else []
        for index, value in enumerate(moved):
            new += self._ahead(value, bias if not rest and index == 0 else None)
            ends.append(new[-1].outputs[0])
        return new if len(ends) == 1 else [*new, self._named(ir.node("Sum", ends))]

    def _together(self, rest: Sequence[ir.Value], bias: np.ndarray | None) -> list[ir.Node]:
        """One convolution of what is not resized."""
        joined = [self._named(ir.node("Concat", list(rest), {"axis": 1}))] if len(rest) > 1 else []
        weight = np.concatenate([self.columns[value] for value in rest], axis=1)
        x = joined[0].outputs[0] if joined else rest[0]
        return [*joined, emit_pointwise(self.conv, x, weight, bias, self.scope)]

    def _ahead(self, value: ir.Value, bias: np.ndarray | None) -> list[ir.Node]:
        """A convolution of what a Resize reads, and the Resize behind it."""
        resize, weight = value.producer(), self.columns[value]
        if resize is None or resize.inputs[0] is None:
            raise ValueError("The part is a Resize.")
        conv = emit_pointwise(self.conv, resize.inputs[0], weight, bias, self.scope)
        inputs = [conv.outputs[0], *resize.inputs[1:]]
        sizes = constant_of(inputs[_SIZES], _MAX_BYTES) if len(inputs) > _SIZES else None
        if sizes is not None and "axes" not in resize.attributes:
            given = np.array([sizes[0], weight.shape[0], *sizes[2:]], sizes.dtype)
            inputs[_SIZES] = self.scope.constant(self.conv, f"{value.name}_sizes", given)
        new = ir.Node("", "Resize", inputs, resize.attributes.values(), num_outputs=1)
        return [conv, self._named(new)]

    def _named(self, node: ir.Node) -> ir.Node:
        old, result = self.conv.outputs[0], node.outputs[0]
        result.name, result.type = self.scope.fresh(f"{old.name}_{node.op_type.lower()}"), old.type
        return node
