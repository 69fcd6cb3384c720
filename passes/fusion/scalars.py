"""The number that a tensor holds, also where the graph still computes it from constants and known sizes."""

from __future__ import annotations

import math
from typing import Final

import onnx_ir as ir

from burnish.passes.matching import scalar
from burnish.passes.shapes import Shapes

_MAX_STEPS: Final = 8  # 1 / sqrt(head size), cast to and fro, takes six


def number(
    value: ir.Value | None, shapes: Shapes, max_rank: int = 1, steps: int = _MAX_STEPS
) -> float | None:
    """The number in a tensor of one element and at most that rank; None when it is not one, or not known.

    The rank matters: [[[2.0]]] would raise the rank of what it is multiplied with.
    """
    found = scalar(value, max_rank)
    rank = shapes[value].rank
    if found is not None or value is None or rank is None or rank > max_rank:
        return found
    ints = shapes[value].ints
    if ints is not None:
        return float(ints[0]) if len(ints) == 1 else None
    node = value.producer()
    if node is None or steps == 0 or node.domain not in ("", "ai.onnx"):
        return None
    count = 2 if node.op_type in ("Div", "Mul", "Pow") else 1
    inputs = [number(each, shapes, max_rank, steps - 1) for each in node.inputs[:count]]
    known = [each for each in inputs if each is not None]
    return _result(node.op_type, known) if len(known) == count else None


def _result(op_type: str, inputs: list[float]) -> float | None:
    try:
        match op_type:
            case "Cast" | "CastLike" | "Identity" | "Squeeze" | "Unsqueeze" | "Reshape":
                return inputs[0]
            case "Sqrt":
                return math.sqrt(inputs[0])
            case "Reciprocal":
                return 1.0 / inputs[0]
            case "Div":
                return inputs[0] / inputs[1]
            case "Mul":
                return inputs[0] * inputs[1]
            case "Pow":
                return math.pow(inputs[0], inputs[1])
    except (ArithmeticError, ValueError):
        return None
    return None
