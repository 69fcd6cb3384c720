"""BatchNormalization(Conv(x, w, b))  ->  Conv(x, w', b')

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018), equation 14.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of
from burnish.passes.fusion.linear import Affine, as_float64, emit, fold, is_linear, weights_are_constant
from burnish.passes.matching import Scope, candidates, obstacle, rank


@final
@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold inference BatchNormalization into the weights of the Conv, Gemm or MatMul before it.

    Also ConvTranspose, with groups. Weights and statistics must be constant, and the result before the
    normalisation used nowhere else. A bias is made where there is none (a MatMul then becomes a Gemm).
    The folded weights are new initializers: others that share the old ones keep them.
    """

    name: ClassVar[str] = "fold-batch-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many normalisations were folded."""
        return sum(_fold(node, scope, context) for node, scope in candidates(model, "BatchNormalization"))


def _fold(norm: ir.Node, scope: Scope, context: Context) -> bool:
    linear = norm.inputs[0].producer() if norm.inputs and norm.inputs[0] is not None else None
    if linear is None or not is_linear(linear):
        return False
    result = norm.outputs[0]
    why = _refusal(norm, linear) or obstacle([linear, norm], [result])
    folded = None if why is not None else fold(linear, _affine(norm))
    if folded is None or not folded.is_finite():
        context.miss(norm, why or "the constants do not fit each other, or overflow together")
        return False
    if not context.permit(norm):
        return False
    new = emit(linear, folded, scope)
    scope.replace([linear, norm], [new], {result: new.outputs[0]}, FoldBatchNorm.name)
    return True


def _refusal(norm: ir.Node, linear: ir.Node) -> str | None:
    if norm.attributes.get_int("training_mode", 0) != 0:
        return "the normalisation is in training mode"
    if norm.attributes.get_int("spatial", 1) != 1:
        return "its statistics differ by position (spatial=0)"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its running mean or variance is used"
    if any(constant_of(value) is None for value in norm.inputs[1:]):
        return "its statistics are not constant"
    if not weights_are_constant(linear):
        return f"the weights of the {linear.op_type} are not constant"
    if linear.op_type == "MatMul" and rank(linear.inputs[0]) != 2:
        return "channels are the second axis, which a MatMul sums into only at rank 2"
    return None


def _affine(norm: ir.Node) -> Affine:
    scale, bias, mean, variance = (as_float64(value) for value in norm.inputs[1:5])
    with np.errstate(all="ignore"):  # what comes out is looked at
        factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    return Affine(factor, bias - mean * factor)
