"""How far the result of an attention is followed: to where heads are joined, and through a projection.

nn.MultiheadAttention flattens its sequence-first result to two dims for the projection and brings it back;
a projection treats every position alike, so that it can as well run on [batch, positions, features].
"""

from __future__ import annotations

import dataclasses
from typing import Final, final

import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.fusion.attention_operands import CHANNELS, ROWS, is_projection
from burnish.passes.fusion.axes import Factor, View, forward, only_user
from burnish.passes.shapes import Shapes

_CHEAP: Final = (ROWS, CHANNELS, ("S", "B", "N D"), ("B S", "N D"), ("S B", "N D"))
"""Axes of a result that at most two nodes make from rows."""


@final
@dataclasses.dataclass(frozen=True)
class Tail:
    """What is replaced together with an attention."""

    nodes: tuple[ir.Node, ...]
    target: View
    """The last result, whose place is taken."""
    projection: ir.Node | None = None
    """A Gemm on the way; the target is its result, [batch, positions, features] or positions first."""


def find_tail(result: View, shapes: Shapes, *, joined: bool) -> Tail:
    """The nodes behind `result` that a fused operator makes superfluous; `joined`: it joins heads itself."""
    steps = list(forward(result, shapes)) if joined else [(result, None)]
    cheap = [i for i, (view, _) in enumerate(steps) if view.labels in _CHEAP]
    best = [i for i in cheap if steps[i][0].labels == ROWS] or cheap or [0]
    nodes = tuple(node for _, node in steps[1 : best[-1] + 1] if node is not None)
    target = steps[best[-1]][0]
    return _projected(nodes, target, shapes) or Tail(nodes, target)


def _projected(nodes: tuple[ir.Node, ...], target: View, shapes: Shapes) -> Tail | None:
    gemm = only_user(target.value)
    if gemm is None or target.labels[1:] != ("N D",) or not is_op(gemm, "Gemm"):
        return None
    size = shapes[gemm.outputs[0]].shape
    if size is None or not is_projection(gemm, shapes):
        return None
    out = View(gemm.outputs[0], (target.axes[0], (Factor("E", size[-1]),)))
    behind: list[ir.Node] = []
    found: dict[str, Tail] = {}
    for view, node in forward(out, shapes):
        behind.extend([] if node is None else [node])
        found["".join(view.labels)] = Tail((*nodes, gemm, *behind), view, gemm)
    return found.get("BSE") or found.get("SBE")
