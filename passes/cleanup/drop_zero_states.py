"""LSTM(x, w, r, b, , zeros, zeros)  ->  LSTM(x, w, r, b)"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op
from burnish.passes.editing import Round, until_stable
from burnish.passes.matching import CONTRIB

_STATES: Final = {
    ("", "GRU"): (5,), ("", "LSTM"): (5, 6), ("", "RNN"): (5,), (CONTRIB, "DynamicQuantizeLSTM"): (5, 6),
}  # fmt: skip
"""Where each operator has its initial states, which are zeros when they are left out."""
_MOVES: Final = frozenset(
    {
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""What gives zeros of zeros."""
_MAX_BYTES: Final = 1 << 22
_DEEPEST: Final = 8


@final
@dataclasses.dataclass(frozen=True)
class DropZeroStates(Pass):
    """Leave out initial states of LSTM, GRU and RNN that are all zeros, and what computes their size.

    Kept: states of which nothing is known, and all of them where only some are zeros.
    """

    name: ClassVar[str] = "drop-zero-states"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset(op_type for _, op_type in _STATES)

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many operators lost their states."""
        return until_stable(model, context, lambda round_: lambda node: _drop(round_, node))


def _drop(round_: Round, node: ir.Node) -> None:
    places = _STATES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
    given = [] if places is None else [place for place in places if place < len(node.inputs)]
    states = [node.inputs[place] for place in given if node.inputs[place] is not None]
    if not states or not all(_is_zero(value) for value in states) or not round_.context.permit(node):
        return
    for place in given:
        node.replace_input_with(place, None)
    inputs = len(node.inputs)
    while inputs and node.inputs[inputs - 1] is None:
        inputs -= 1
    node.resize_inputs(inputs)
    round_.editor.sweep(states)


def _is_zero(value: ir.Value | None, deep: int = 0) -> bool:
    array = constant_of(value, _MAX_BYTES)
    if array is not None:
        return array.dtype.kind == "f" and not np.any(array != 0)
    node = None if value is None else value.producer()
    if node is None or deep > _DEEPEST:
        return False
    if is_op(node, "ConstantOfShape"):
        filled = node.attributes.get("value")
        return filled is None or not np.any(filled.as_tensor().numpy() != 0)
    if node.domain == "" and node.op_type in _MOVES:
        return _is_zero(node.inputs[0], deep + 1)
    return is_op(node, "Concat") and all(_is_zero(each, deep + 1) for each in node.inputs)
