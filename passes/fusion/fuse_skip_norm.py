"""LayerNormalization(Add(x, skip))  ->  com.microsoft::SkipLayerNormalization(x, skip)

and RMSNormalization(Add(x, skip))  ->  com.microsoft::SkipSimplifiedLayerNormalization(x, skip)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.fusion.bias import Biased, biased
from burnish.passes.matching import CONTRIB, Scope, candidates, is_fixed, made_by, obstacle, rank, same_shape

_FUSED: Final = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
}


@final
@dataclasses.dataclass(frozen=True)
class FuseSkipNorm(Pass):
    """Fuse a residual sum, and the bias of the Linear before it, into the normalisation after it.

    Both summands must provably have one shape (the kernels' broadcasting is not that of Add), rank 2 or
    3, and scale and bias must be vectors of the same type. Where the sum is used elsewhere (models that
    normalise first), it becomes the fused node's fourth output.
    """

    name: ClassVar[str] = "fuse-skip-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset(_FUSED)

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many sums were fused."""
        return sum(_fuse(node, scope, context) for node, scope in candidates(model, *_FUSED))


def _fuse(norm: ir.Node, scope: Scope, context: Context) -> bool:
    total = norm.inputs[0] if norm.inputs else None
    add = made_by(total, "Add")
    if add is None or total is None:
        return False
    why = _refusal(norm, add, context) or obstacle([add, norm], [total, norm.outputs[0]])
    if not context.permit_unless(why, norm):
        return False
    linear = _linear(add)
    old = [add, norm] if linear is None else [linear.add, add, norm]
    kept = len(total.uses()) > 1 or total.is_graph_output()
    new = _fused(norm, add, linear, kept)
    results = {norm.outputs[0]: new.outputs[0]} | ({total: new.outputs[3]} if kept else {})
    scope.replace(old, [new], results, FuseSkipNorm.name)
    return True


def _refusal(norm: ir.Node, add: ir.Node, context: Context) -> str | None:
    fused, (x, skip), size = _FUSED[norm.op_type], add.inputs, rank(norm.inputs[0])
    vectors = [value for value in norm.inputs[1:] if value is not None]
    if not context.target.has_kernel(CONTRIB, fused):
        return f"target {context.target.name} has no {CONTRIB}::{fused}"
    if x is None or skip is None or not same_shape(x, skip):
        return "the two summands do not provably have one shape"
    if size not in (2, 3):
        return f"{CONTRIB}::{fused} takes rank 2 or 3, not {size}"
    if norm.attributes.get_int("axis", -1) not in (-1, size - 1):
        return "normalises over more than the last axis"
    if norm.attributes.get_int("stash_type", 1) != 1:
        return "stash_type is not float32"
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return "its mean or deviation is used"
    if not all(rank(value) == 1 and is_fixed(value) for value in vectors):
        return "scale and bias must be constant vectors"
    if len({value.dtype for value in (x, *vectors) if value.dtype is not None}) > 1:
        return "scale has another type than the summands"
    if x.dtype == ir.DataType.DOUBLE:
        return f"{CONTRIB}::{fused} does not take float64"
    return None


def _linear(add: ir.Node) -> Biased | None:
    """The Linear whose bias can be taken along: one summand, used only here."""
    if add.inputs[0] is add.inputs[1]:
        return None  # the other one would still be read
    for value in add.inputs:
        found = biased(value)
        if found is not None and obstacle([found.add, add], add.outputs) is None:
            return found
    return None


def _fused(norm: ir.Node, add: ir.Node, linear: Biased | None, keep_sum: bool) -> ir.Node:
    x, skip = add.inputs
    scale, shift = norm.inputs[1], norm.inputs[2] if len(norm.inputs) > 2 else None
    if linear is not None:
        skip = skip if x is linear.add.outputs[0] else x
        x = linear.x
    inputs = [x, skip, scale]
    if norm.op_type == "LayerNormalization":
        inputs.append(shift)
    inputs.append(None if linear is None else linear.bias)
    while inputs[-1] is None:
        inputs.pop()
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    new = ir.node(
        _FUSED[norm.op_type],
        inputs,
        {"epsilon": epsilon},
        domain=CONTRIB,
        num_outputs=4 if keep_sum else 1,
    )
    for unused in new.outputs[1:3]:
        unused.name = ""  # mean and inverse deviation: left out
    return new
