"""Shapes of operators that slide a window over their input, or are told the sizes of their result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import final

from burnish.passes.dims import Dim
from burnish.passes.shape_fallback import ask_onnx
from burnish.passes.shapes import Call, Fact


def conv(call: Call) -> Sequence[Fact]:
    """[batch, channels, *sizes] of Conv and FusedConv; windows of one element keep sizes as they are."""
    data, weight = call.input(0), call.input(1)
    shape, kernel = data.shape, weight.shape
    if call.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return ask_onnx(call, "Conv")
    if shape is None or kernel is None or len(shape) != len(kernel) or len(shape) < 3:
        return [Fact(data.dtype)]
    axes = _windows(call, len(shape) - 2, kernel[2:])
    sizes = (window.over(call, size) for window, size in zip(axes, shape[2:], strict=True))
    return [Fact(data.dtype, (shape[0], kernel[0], *sizes))]


def resize(call: Call) -> Sequence[Fact]:
    """Where all sizes are given, those."""
    data, sizes, attributes = call.input(0), call.input(3).content, call.node.attributes
    told = attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    if data.rank is None or sizes is None or len(sizes) != data.rank or not told or "axes" in attributes:
        return ask_onnx(call)
    return [Fact(data.dtype, sizes)]


@final
@dataclasses.dataclass(frozen=True)
class _Window:
    """What is slid along one axis."""

    size: int | None
    stride: int
    dilation: int
    pads: int

    def over(self, call: Call, length: Dim) -> Dim:
        """How many places it has along an axis of that length."""
        if self.size is None:
            return call.shapes.fresh()
        more = self.pads - self.dilation * (self.size - 1)
        if length.size is not None and length.size + more >= 1:
            return Dim.of((length.size + more - 1) // self.stride + 1)
        return length + Dim.of(more) if self.stride == 1 and more >= 0 else call.shapes.fresh()


def _windows(call: Call, rank: int, kernel: Sequence[Dim]) -> Sequence[_Window]:
    attributes = call.node.attributes
    strides, dilations = (attributes.get_ints(name, (1,) * rank) for name in ("strides", "dilations"))
    pads = attributes.get_ints("pads", (0,) * 2 * rank)
    if attributes.get_string("auto_pad", "NOTSET") == "VALID":
        pads = (0,) * 2 * rank
    return [_Window(kernel[i].size, strides[i], dilations[i], pads[i] + pads[rank + i]) for i in range(rank)]
