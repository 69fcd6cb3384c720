"""Gelu(Add(x, bias))  ->  com.microsoft::BiasGelu(x, bias)"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.fusion.bias import Biased, biased
from burnish.passes.matching import CONTRIB, Scope, obstacle, scopes


@final
@dataclasses.dataclass(frozen=True)
class FuseBiasGelu(Pass):
    """Fuse the bias of a Linear into the GELU (by erf) that follows it.

    The bias must be a constant vector as long as the last axis, and the target must have the kernel.
    """

    name: ClassVar[str] = "fuse-bias-gelu"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Gelu"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many biases were fused."""
        return sum(
            _fuse(node, scope, context)
            for scope in scopes(model)
            for node in list(scope.graph)
            if _is_exact_gelu(node)
        )


def _is_exact_gelu(node: ir.Node) -> bool:
    standard = is_op(node, "Gelu") and node.attributes.get_string("approximate", "none") == "none"
    return standard or is_op(node, "Gelu", CONTRIB)


def _fuse(gelu: ir.Node, scope: Scope, context: Context) -> bool:
    found, result = biased(gelu.inputs[0]), gelu.outputs[0]
    if found is None:
        return False
    why = _refusal(found, context) or obstacle([found.add, gelu], [result])
    if not context.permit_unless(why, gelu):
        return False
    new = ir.node("BiasGelu", [found.x, found.bias], domain=CONTRIB)
    scope.replace([found.add, gelu], [new], {result: new.outputs[0]}, FuseBiasGelu.name)
    return True


def _refusal(found: Biased, context: Context) -> str | None:
    if not context.target.has_kernel(CONTRIB, "BiasGelu"):
        return f"target {context.target.name} has no {CONTRIB}::BiasGelu"
    if found.bias.dtype == ir.DataType.DOUBLE:
        return f"{CONTRIB}::BiasGelu does not take float64"
    return None
