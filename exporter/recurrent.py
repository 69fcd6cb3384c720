"""Recurrent layers traced as what ONNX has, over sequences of several lengths too.

torch would unroll an RNN's loop over the steps. And it packs sequences of several lengths: padding is left
out, so that sizes depend on the lengths' values; ONNX's LSTM, GRU and RNN take a padded batch and lengths.
So while torch traces, `torch.nn.LSTM`, `GRU` and `RNN` are operators of burnish, which
`burnish.exporter.translations` turns into ONNX's, and a `PackedSequence` holds all places of the padded batch
as `data` (`[length * batch, ...]`, time first), and the lengths (`[batch]`, unsorted) as `batch_sizes`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from burnish.errors import ExportError
from burnish.exporter.needs import torch
from burnish.exporter.swapping import swapped

_rnn = torch.nn.utils.rnn


@contextlib.contextmanager
def lengths_kept() -> Iterator[None]:
    """Inside, layers are not unrolled, and sequences are packed and padded again with their padding.

    What computes on `PackedSequence.data` place by place is traced right; what mixes places is not, as it
    sees the padding too. The functions' code is swapped, as they are imported by name everywhere.
    """
    with contextlib.ExitStack() as swaps:
        swaps.enter_context(swapped(_rnn.pack_padded_sequence, __code__=_pack.__code__))
        swaps.enter_context(swapped(_rnn.pad_packed_sequence, __code__=_pad.__code__))
        for kind in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN):
            swaps.enter_context(swapped(kind, forward=_forward(kind.forward)))
        yield


def packed(padded: Any, lengths: Any, batch_first: bool) -> Any:
    """`[batch, length, ...]` (or time first) and `[batch]` -> what stands for a `PackedSequence`."""
    steps = padded.transpose(0, 1) if batch_first else padded
    return _rnn.PackedSequence(steps.flatten(0, 1), torch.as_tensor(lengths).to(torch.int64))


def unpacked(sequence: Any, batch_first: bool, padding_value: float, total_length: Any) -> tuple[Any, Any]:
    """`[batch, longest, ...]` (or time first) and the lengths `[batch]`.

    How long the longest is depends on values: it is a size of its own in the graph, of at least 1.
    """
    steps, lengths = _steps(sequence), sequence.batch_sizes
    if total_length is None:
        size = lengths.max().item()
        torch._check(size >= 1)
        torch._check(size <= steps.shape[0])
        steps = steps.narrow(0, 0, size)
    else:
        size = total_length
        steps = torch.nn.functional.pad(steps, [0, 0] * (steps.dim() - 1) + [0, size - steps.shape[0]])
    inside = torch.arange(size, device=lengths.device)[:, None] < lengths
    inside = inside.reshape(size, lengths.shape[0], *[1] * (steps.dim() - 2))
    steps = steps.masked_fill(~inside, padding_value)
    return steps.transpose(0, 1) if batch_first else steps, lengths


def _pack(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def] # noqa: A002, ARG001
    from burnish.exporter.recurrent import packed  # the code runs among the globals of torch

    return packed(input, lengths, batch_first)


def _pad(sequence, batch_first=False, padding_value=0.0, total_length=None):  # type: ignore[no-untyped-def]
    from burnish.exporter.recurrent import unpacked

    return unpacked(sequence, batch_first, padding_value, total_length)


def _steps(sequence: Any) -> Any:
    """The padded batch again: `[length, batch, ...]`."""
    batch = sequence.batch_sizes.shape[0]
    return sequence.data.reshape(sequence.data.shape[0] // batch, batch, *sequence.data.shape[1:])


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The `forward` of a recurrent layer, in eval mode (no dropout)."""

    @functools.wraps(original)
    def forward(self: Any, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - torch's name
        if isinstance(input, _rnn.PackedSequence):
            found, hidden = _run(self, _steps(input), input.batch_sizes, hx)
            return _rnn.PackedSequence(found.flatten(0, 1), input.batch_sizes), hidden
        if input.dim() == 2:
            given = None if hx is None else _each(hx, lambda state: state.unsqueeze(1))
            found, hidden = _run(self, input.unsqueeze(1), None, given)
            return found.squeeze(1), _each(hidden, lambda state: state.squeeze(1))
        found, hidden = _run(self, input.transpose(0, 1) if self.batch_first else input, None, hx)
        return found.transpose(0, 1) if self.batch_first else found, hidden

    return forward


def _each(state: Any, change: Callable[[Any], Any]) -> Any:
    """Of a hidden state; of an LSTM's both."""
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


def _run(layer: Any, steps: Any, lengths: Any, hx: Any) -> tuple[Any, Any]:
    """`[length, batch, features]`, `[batch]` or None -> `[length, batch, directions * hidden]`, states."""
    if layer.proj_size:
        raise ExportError(
            "ONNX has no LSTM with projections (proj_size).",
            "Project after the layer, with a Linear of its own.",
            code="EXPORT_UNSUPPORTED_OP",
        )
    if hx is None:
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        zeros = steps.new_zeros(rows, steps.shape[1], layer.hidden_size)
        hx = (zeros, zeros) if layer.mode == "LSTM" else zeros
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    options = (layer.bias, layer.num_layers, layer.bidirectional)
    if layer.mode == "LSTM":
        found, *state = torch.ops.burnish.lstm(steps, lengths, list(hx), weights, *options)
        return found, tuple(state)
    found, hidden = torch.ops.burnish.rnn(steps, lengths, hx, weights, layer.mode, *options)
    return found, hidden


def _lstm(
    steps: Any, lengths: Any, hx: Sequence[Any], weights: Sequence[Any], bias: bool, layers: int, both: bool
) -> tuple[Any, ...]:
    """The operator as torch computes it, for a program that is run instead of translated."""
    return _by_torch(torch._VF.lstm, steps, lengths, hx, weights, (bias, layers, 0.0, False, both))


def _gru_or_rnn(
    steps: Any, lengths: Any, hx: Any, weights: Sequence[Any], mode: str, bias: bool, layers: int, both: bool
) -> tuple[Any, ...]:
    """As `_lstm`, with one state; the mode is torch's: GRU, RNN_TANH or RNN_RELU."""
    run = getattr(torch._VF, mode.lower())
    return _by_torch(run, steps, lengths, [hx], weights, (bias, layers, 0.0, False, both))


def _by_torch(
    run: Any, steps: Any, lengths: Any, hx: Sequence[Any], weights: Sequence[Any], options: Sequence[Any]
) -> tuple[Any, ...]:
    if lengths is None:
        found, *last = run(steps, _alone(hx), list(weights), *options, False)
        return (found, *last)
    sequence = _rnn.pack_padded_sequence(steps, lengths.cpu(), enforce_sorted=False)
    given = _alone([state[:, sequence.sorted_indices] for state in hx])
    found, *last = run(sequence.data, sequence.batch_sizes, given, list(weights), *options)
    padded, _ = _rnn.pad_packed_sequence(sequence._replace(data=found), total_length=steps.shape[0])
    return (padded, *(state[:, sequence.unsorted_indices] for state in last))


def _alone(states: Sequence[Any]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)


def _lstm_shapes(steps: Any, _lengths: Any, hx: Sequence[Any], *options: Any) -> tuple[Any, ...]:
    return (_shaped(steps, hx[0], options[-1]), torch.empty_like(hx[0]), torch.empty_like(hx[1]))


def _rnn_shapes(steps: Any, _lengths: Any, hx: Any, *options: Any) -> tuple[Any, ...]:
    return (_shaped(steps, hx, options[-1]), torch.empty_like(hx))


def _shaped(steps: Any, state: Any, both: bool) -> Any:
    return steps.new_empty(*steps.shape[:2], state.shape[2] * (2 if both else 1))


torch.library.custom_op(
    "burnish::lstm", _lstm, mutates_args=(),
    schema="(Tensor steps, Tensor? lengths, Tensor[] hx, Tensor[] weights, bool bias, int layers, bool both)"
    " -> (Tensor, Tensor, Tensor)",
).register_fake(_lstm_shapes)  # fmt: skip
torch.library.custom_op(
    "burnish::rnn", _gru_or_rnn, mutates_args=(),
    schema="(Tensor steps, Tensor? lengths, Tensor hx, Tensor[] weights, str mode, bool bias, int layers, "
    "bool both) -> (Tensor, Tensor)",
).register_fake(_rnn_shapes)  # fmt: skip
