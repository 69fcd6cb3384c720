"""The shapes of recurrent layers, of the place of the largest element, and of Dropout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from burnish.passes.dims import Dim
from burnish.passes.shape_fallback import ask_onnx
from burnish.passes.shapes import Call, Fact


def recurrent(call: Call) -> Sequence[Fact]:
    """[time, batch, features] -> [time, directions, batch, units], and the last states without the time.

    Of LSTM, GRU, RNN, and onnxruntime's DynamicQuantizeLSTM.
    """
    data, units = call.input(0), call.node.attributes.get_int("hidden_size")
    if call.node.attributes.get_int("layout", 0) or units is None:
        return ask_onnx(call)
    if data.shape is None or len(data.shape) != 3:
        return [Fact(data.dtype)] * len(call.node.outputs)
    directions = 2 if call.node.attributes.get_string("direction") == "bidirectional" else 1
    last = (Dim.of(directions), data.shape[1], Dim.of(units))
    states = [Fact(data.dtype, last)] * (len(call.node.outputs) - 1)
    return [Fact(data.dtype, (data.shape[0], *last)), *states]


def _place(call: Call) -> Sequence[Fact]:
    shape, axis = call.input(0).shape, call.axis(call.input(0).rank)
    if shape is None or axis is None:
        return [Fact(ir.DataType.INT64)]
    kept = (Dim.of(1),) if call.node.attributes.get_int("keepdims", 1) else ()
    return [Fact(ir.DataType.INT64, shape[:axis] + kept + shape[axis + 1 :])]


def _dropout(call: Call) -> Sequence[Fact]:
    data = call.input(0)
    mask = ir.DataType.BOOL if call.opset >= 10 else data.dtype
    return [Fact(data.dtype, data.shape), Fact(mask, data.shape)]


LAYERS: Final[dict[str, Callable[[Call], Sequence[Fact]]]] = {
    "ArgMax": _place, "ArgMin": _place, "Dropout": _dropout, "GRU": recurrent, "LSTM": recurrent,
    "RNN": recurrent,
}  # fmt: skip
