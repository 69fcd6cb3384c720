"""Float operators behind DequantizeLinear, which runtimes run on integers as they stand."""

from __future__ import annotations

import onnx_ir as ir

from burnish.passes.matching import made_by


def reads_quantised(node: ir.Node, *places: int) -> bool:
    """True when a DequantizeLinear makes one of the inputs at those places (all, where none is given)."""
    inputs = [node.inputs[place] for place in places if place < len(node.inputs)] if places else node.inputs
    return any(made_by(value, "DequantizeLinear") is not None for value in inputs)
