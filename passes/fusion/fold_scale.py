"""Mul(Add(MatMul(x, w), b), g)  ->  Add(MatMul(x, w * g), b * g)

Source: Touvron et al., "Going deeper with Image Transformers" (2021), whose LayerScale this is.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, tensor_of
from burnish.passes.fusion.bias import Biased, biased
from burnish.passes.matching import Scope, candidates, either_way, made_by, obstacle

_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_MAX_COPY: Final = 1 << 16  # bytes of a weight that is written once more because it is shared


@final
@dataclasses.dataclass(frozen=True)
class FoldScale(Pass):
    """Fold the scale of each feature behind a Linear into its weight and bias.

    The bias behind then is one that other fusions take in. Weight, bias and scale must be constant. Kept:
    half precision, where a folded weight is rounded once more; a weight that is used elsewhere too; products
    that are not finite.
    """

    name: ClassVar[str] = "fold-scale"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many scales were folded."""
        return sum(_fold(node, scope, context) for node, scope in candidates(model, "Mul"))


def _fold(node: ir.Node, scope: Scope, context: Context) -> bool:
    for rows, other in either_way(node):
        linear = biased(rows)
        product = None if linear is None else made_by(linear.x, "MatMul")
        scale = constant_of(other) if product is not None else None
        if linear is None or product is None or scale is None:
            continue
        why = _refusal(linear, product, scale) or obstacle([product, linear.add, node], node.outputs)
        if not context.permit_unless(why, node):
            return False
        _scale(node, linear, product, scale, scope)
        return True
    return False


def _refusal(linear: Biased, product: ir.Node, scale: np.ndarray) -> str | None:
    weight, bias = _weight(product), constant_of(linear.bias)
    if weight is None or bias is None or len(weight.shape) != 2:
        return "the weight of the MatMul is not a constant matrix"
    if weight.dtype not in _FLOATS:
        return "its weights are not float32, and folding would round them once more"
    if scale.ndim > 1 or scale.size not in (1, bias.size):
        return "the scale is not one number for each feature"
    shared = any(user is not product for user in product.inputs[1].consumers()) if product.inputs[1] else True
    if shared and weight.nbytes > _MAX_COPY:
        return "its weight is used elsewhere too, and would be there twice"
    most = np.abs(weight.numpy()).max(initial=0.0), np.abs(bias).max(initial=0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(np.abs(scale).max(initial=0.0) * np.array(most, scale.dtype)).all()
    return None if finite else "the scaled weights are not finite"


def _weight(product: ir.Node) -> ir.TensorProtocol | None:
    value = product.inputs[1]
    return None if value is None else tensor_of(value)


def _scale(node: ir.Node, linear: Biased, product: ir.Node, scale: np.ndarray, scope: Scope) -> None:
    weight, bias = _weight(product), constant_of(linear.bias)
    if weight is None or bias is None:
        raise TypeError("Weight and bias are not constant.")
    names = [None if value is None else value.name for value in (product.inputs[1], linear.bias)]
    shape = [int(size) for size in weight.shape.numpy()]
    scaled = scope.lazy(node, f"{names[0]}_scaled", weight.dtype, shape, lambda: weight.numpy() * scale)
    shift = scope.constant(node, f"{names[1]}_scaled", bias * scale)
    matmul = ir.node("MatMul", [product.inputs[0], scaled])
    value = matmul.outputs[0]
    value.name, value.type = scope.fresh(f"{node.outputs[0].name}_product"), node.outputs[0].type
    value.shape = None if linear.x.shape is None else ir.Shape(list(linear.x.shape))
    add = ir.node("Add", [value, shift])
    scope.replace(
        [product, linear.add, node], [matmul, add], {node.outputs[0]: add.outputs[0]}, FoldScale.name
    )
