"""The shapes that convolutions, pools, Pad and Resize give; sizes that are not known stay unknown.

Source of the formulas: Operators.md. What is rare (padding that depends on the size, `ceil_mode`, an output
shape as attribute) is left to onnx's own inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of
from burnish.passes.dims import Dim
from burnish.passes.shape_fallback import ask_onnx
from burnish.passes.shapes import Call, Fact, Shape

_SIZES_OPSET: Final = 11  # before it, Resize takes its scales as second input and no sizes
_MAX_BYTES: Final = 1024


def convolution(call: Call) -> Sequence[Fact]:
    """Conv, and onnxruntime's FusedConv: [batch, channels, ...] -> [batch, maps, ...]."""
    return _convolution(call, call.input(0).dtype)


def _convolution_integer(call: Call) -> Sequence[Fact]:
    return _convolution(call, ir.DataType.INT32)


def _q_linear_convolution(call: Call) -> Sequence[Fact]:
    return _convolution(call, call.input(7).dtype, weights=3)


def _convolution(call: Call, dtype: ir.DataType | None, weights: int = 1) -> Sequence[Fact]:
    data, kernel = call.input(0).shape, call.input(weights).shape
    if data is None or kernel is None or len(data) != len(kernel):
        return [Fact(dtype)]
    if _pads_by_size(call):
        return ask_onnx(call, "Conv" if call.node.domain else None)
    return [Fact(dtype, (data[0], kernel[0], *_slid(call, data[2:], _window(call, kernel))))]


def _window(call: Call, kernel: Shape) -> Sequence[int | None]:
    """The sizes of the window, which old exporters leave to the weights."""
    given = call.node.attributes.get("kernel_shape")
    return [dim.size for dim in kernel[2:]] if given is None else given.as_ints()


def _pads_by_size(call: Call) -> bool:
    return call.node.attributes.get_string("auto_pad", "NOTSET") not in ("", "NOTSET", "VALID")


def _slid(call: Call, dims: Shape, kernel: Sequence[int | None]) -> list[Dim]:
    """How often a window fits into each axis, from its attributes."""
    count = len(dims)
    strides, dilations, pads = (
        _steps(call, "strides", count),
        _steps(call, "dilations", count),
        _pads(call, count),
    )
    fits = []
    for axis, (dim, size) in enumerate(zip(dims, kernel, strict=True)):
        more = None if size is None else pads[axis] + pads[axis + count] - dilations[axis] * (size - 1)
        if more is not None and more >= 0 and strides[axis] == 1:
            fits.append(dim + Dim.of(more))
        else:
            reach = None if dim.size is None or more is None else dim.size + more - 1
            fits.append(_known(call, None if reach is None else reach // strides[axis] + 1))
    return fits


def _steps(call: Call, name: str, count: int) -> tuple[int, ...]:
    given = call.node.attributes.get(name)
    return (1,) * count if given is None else _of_length(given.as_ints(), count)


def _pads(call: Call, count: int) -> tuple[int, ...]:
    given = call.node.attributes.get("pads")
    if given is None or call.node.attributes.get_string("auto_pad") == "VALID":
        return (0,) * (2 * count)
    return _of_length(given.as_ints(), 2 * count)


def _of_length(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """The numbers.

    Raises:
        ValueError: there are more or fewer, which the operator refuses.
    """
    if len(numbers) != count:
        raise ValueError(numbers)
    return tuple(numbers)


def _known(call: Call, size: int | None) -> Dim:
    """The size; where it is not known or none that can be, one that equals no other."""
    return call.shapes.fresh() if size is None or size <= 0 else Dim.of(size)


def _transposed_convolution(call: Call) -> Sequence[Fact]:
    data, kernel = call.input(0).shape, call.input(1).shape
    if data is None or kernel is None or len(data) != len(kernel) or len(data) < 3:
        return [Fact(call.input(0).dtype)]
    if _pads_by_size(call) or "output_shape" in call.node.attributes:
        return ask_onnx(call)
    dims, count = data[2:], len(data) - 2
    window = _window(call, kernel)
    strides, dilations, pads = (
        _steps(call, "strides", count),
        _steps(call, "dilations", count),
        _pads(call, count),
    )
    added = call.node.attributes.get("output_padding")
    more = (0,) * count if added is None else _of_length(added.as_ints(), count)
    made = []
    for axis, (dim, size) in enumerate(zip(dims, window, strict=True)):
        if dim.size is None or size is None:
            made.append(call.shapes.fresh())
            continue
        reach = strides[axis] * (dim.size - 1) + more[axis] + dilations[axis] * (size - 1) + 1
        made.append(_known(call, reach - pads[axis] - pads[axis + count]))
    maps = kernel[1] * Dim.of(call.node.attributes.get_int("group", 1) or 1)
    return [Fact(call.input(0).dtype, (data[0], maps, *made))]


def _pool(call: Call) -> Sequence[Fact]:
    data, window = call.input(0).shape, call.node.attributes.get("kernel_shape")
    if data is None or window is None or len(data) < 3:
        return [Fact(call.input(0).dtype)]
    if _pads_by_size(call) or call.node.attributes.get_int("ceil_mode", 0) != 0:
        return ask_onnx(call)
    shape = (*data[:2], *_slid(call, data[2:], window.as_ints()))
    return [Fact(call.input(0).dtype, shape), Fact(ir.DataType.INT64, shape)]


def _global_pool(call: Call) -> Sequence[Fact]:
    data = call.input(0).shape
    if data is None or len(data) < 3:
        return [Fact(call.input(0).dtype)]
    return [Fact(call.input(0).dtype, (*data[:2], *[Dim.of(1)] * (len(data) - 2)))]


def _pad(call: Call) -> Sequence[Fact]:
    data, pads, axes = call.input(0), call.ints("pads", 1), call.ints("axes", 3)
    if data.shape is None or (axes is None and call.has(3)):
        return [Fact(data.dtype)]
    rank = len(data.shape)
    axes = tuple(range(rank)) if axes is None else axes
    if pads is None or len(pads) != 2 * len(axes) or any(not -rank <= axis < rank for axis in axes):
        return [Fact(data.dtype, tuple(call.shapes.fresh() for _ in range(rank)))]
    dims = list(data.shape)
    for place, axis in enumerate(axes):
        added = pads[place] + pads[place + len(axes)]
        size = dims[axis].size
        if added:
            dims[axis] = _known(call, None if size is None else size + added)
    return [Fact(data.dtype, tuple(dims))]


def _resize(call: Call) -> Sequence[Fact]:
    data, node = call.input(0), call.node
    if data.shape is None:
        return [Fact(data.dtype)]
    if node.attributes.get_string("coordinate_transformation_mode") == "tf_crop_and_resize":
        return [Fact(data.dtype, tuple(call.shapes.fresh() for _ in data.shape))]  # by the region, too
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if "axes" in node.attributes or policy != "stretch":
        return ask_onnx(call)
    sizes = call.input(3).content if call.has(3) else None
    if sizes is not None and len(sizes) == len(data.shape):
        given = (dim if dim.size is None else _known(call, dim.size) for dim in sizes)
        return [Fact(data.dtype, tuple(given))]
    index = 2 if node.op_type == "Resize" and call.opset >= _SIZES_OPSET else 1
    scales = constant_of(node.inputs[index], max_bytes=_MAX_BYTES) if call.has(index) else None
    if scales is None or scales.shape != (len(data.shape),) or call.has(3):
        return ask_onnx(call)
    return [Fact(data.dtype, tuple(map(lambda dim, scale: _scaled(call, dim, scale), data.shape, scales)))]


def _scaled(call: Call, dim: Dim, scale: np.float32) -> Dim:
    """The size times the scale, rounded down after a product in float32, as onnxruntime does."""
    if scale == 1:
        return dim
    return _known(call, None if dim.size is None else math.floor(np.float32(dim.size) * scale))


WINDOWS: Final[dict[str, Callable[[Call], Sequence[Fact]]]] = {
    "AveragePool": _pool, "Conv": convolution, "ConvInteger": _convolution_integer,
    "ConvTranspose": _transposed_convolution, "GlobalAveragePool": _global_pool, "GlobalLpPool": _global_pool,
    "GlobalMaxPool": _global_pool, "LpPool": _pool, "MaxPool": _pool, "Pad": _pad,
    "QLinearConv": _q_linear_convolution, "Resize": _resize, "Upsample": _resize,
}  # fmt: skip
