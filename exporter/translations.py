"""ONNX for operators that torch.onnx does not translate: burnish's own recurrent layers, and checks of torch.

ONNX's LSTM, GRU and RNN are one layer each, want the gates in another order than torch, and the weights of
both directions in one tensor; what comes out has the directions on an axis of their own
(onnx.ai: operators LSTM-14, GRU-14, RNN-14).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import onnx_ir as ir
from onnxscript import opset18 as op

import burnish.exporter.recurrent  # noqa: F401 - defines the operators that are translated
from burnish.exporter.needs import torch

_ORDERS: Final = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""The places of ONNX's gates (i o f c; z r h) among torch's (i f g o; r z n)."""


@final
@dataclasses.dataclass(frozen=True)
class _Layers:
    """Recurrent layers of one kind, as torch describes them."""

    kind: str
    weights: Sequence[Any]
    bias: bool
    count: int
    both: bool
    """Directions."""
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of the ONNX node, beside those that all kinds have."""


def translations() -> dict[Any, Callable[..., Any]]:
    """Operator -> what writes it with onnxscript; torch.onnx.export takes it (`custom_translation_table`)."""
    own = torch.ops.burnish
    return {
        own.lstm.default: _lstm,
        own.rnn.default: _gru_or_rnn,
        torch.ops.aten._is_all_true.default: _is_all_true,
    }


def _is_all_true(truths: Any) -> Any:
    """Of booleans of any shape: what torch._check_tensor_all asks."""
    ones = op.Cast(truths, to=ir.DataType.INT32)
    return op.Cast(op.ReduceMin(ones, keepdims=0), to=ir.DataType.BOOL)


def _lstm(
    steps: Any, lengths: Any, hx: Sequence[Any], weights: Sequence[Any], bias: bool, layers: int, both: bool
) -> tuple[Any, ...]:
    return _stacked(_Layers("LSTM", weights, bias, layers, both), steps, lengths, hx)


def _gru_or_rnn(
    steps: Any, lengths: Any, hx: Any, weights: Sequence[Any], mode: str, bias: bool, layers: int, both: bool
) -> tuple[Any, ...]:
    if mode == "GRU":
        described = _Layers("GRU", weights, bias, layers, both, {"linear_before_reset": 1})
    else:
        names = [mode.removeprefix("RNN_").capitalize()] * (2 if both else 1)
        described = _Layers("RNN", weights, bias, layers, both, {"activations": names})
    return _stacked(described, steps, lengths, [hx])


def _stacked(layers: _Layers, steps: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, ...]:
    """Layer upon layer: `[length, batch, features]` -> `[length, batch, directions * hidden]` and states.

    Args:
        layers: their kind and weights.
        steps: the padded batch, time first.
        lengths: `[batch]`, or None where all are as long as the batch.
        states: the first ones, `[layers * directions, batch, hidden]` each.
    """
    sizes = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    firsts = [_split(state, layers.count) for state in states]
    lasts: list[Sequence[Any]] = []
    for index in range(layers.count):
        found, *last = getattr(op, layers.kind)(
            steps, *_weights(layers, index), sizes, *(first[index] for first in firsts),
            hidden_size=states[0].shape[2], direction="bidirectional" if layers.both else "forward",
            **layers.attributes,
        )  # fmt: skip
        lasts.append(last)
        apart = op.Transpose(found, perm=[0, 2, 1, 3])  # directions beside what each computed
        steps = op.Reshape(apart, op.Constant(value_ints=[0, 0, -1]))
    return (steps, *(_joined(each) for each in zip(*lasts, strict=True)))


def _weights(layers: _Layers, index: int) -> tuple[Any, Any, Any]:
    """W, R and B of a layer, for both directions."""
    each, directions = (4 if layers.bias else 2), (2 if layers.both else 1)
    start, order = index * each * directions, _ORDERS[layers.kind]
    of = [layers.weights[start + each * n : start + each * (n + 1)] for n in range(directions)]
    over, back = ([_ordered(params[place], order) for params in of] for place in (0, 1))
    biases = [op.Concat(*(_ordered(b, order) for b in params[2:]), axis=0) for params in of if layers.bias]
    return _beside(over), _beside(back), _beside(biases) if biases else None


def _ordered(gates: Any, order: Sequence[int]) -> Any:
    parts = _split(gates, len(order))
    return _joined([parts[place] for place in order])


def _beside(tensors: Sequence[Any]) -> Any:
    """Along a new first axis."""
    return _joined([op.Unsqueeze(tensor, op.Constant(value_ints=[0])) for tensor in tensors])


def _split(tensor: Any, count: int) -> Sequence[Any]:
    found: Sequence[Any] = op.Split(tensor, axis=0, num_outputs=count) if count > 1 else [tensor]
    return found


def _joined(tensors: Sequence[Any]) -> Any:
    return op.Concat(*tensors, axis=0) if len(tensors) > 1 else tensors[0]
