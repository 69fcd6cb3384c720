"""Gelu(Add(x, bias))  ->  com.microsoft::BiasGelu(x, bias), or FastGelu for the form by tanh"""

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
    """Fuse the bias of a Linear into the GELU that follows it: BiasGelu by erf, FastGelu by tanh.

    The bias must be a constant vector as long as the last axis, and the target must have the kernel. FastGelu
    with a bias takes as long as Add and Gelu on onnxruntime's CPU kernels (0.42 ms beside 0.41 ms for 128 x
    3072, one thread), and is a node less.
    """

    name: ClassVar[str] = "fuse-bias-gelu"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"FastGelu", "Gelu"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many biases were fused."""
        return sum(
            _fuse(node, scope, context)
            for scope in scopes(model)
            for node in list(scope.graph)
            if _fused_form(node) is not None
        )


def _fused_form(node: ir.Node) -> str | None:
    """The operator that takes the bias too; None for what is no GELU, or has one."""
    if is_op(node, "Gelu"):
        return "BiasGelu" if node.attributes.get_string("approximate", "none") == "none" else "FastGelu"
    if is_op(node, "FastGelu", CONTRIB):
        return "FastGelu" if len(node.inputs) == 1 or node.inputs[1] is None else None
    return "BiasGelu" if is_op(node, "Gelu", CONTRIB) else None


def _fuse(gelu: ir.Node, scope: Scope, context: Context) -> bool:
    found, result, form = biased(gelu.inputs[0]), gelu.outputs[0], _fused_form(gelu)
    if found is None or form is None:
        return False
    why = _refusal(found, form, context) or obstacle([found.add, gelu], [result])
    if not context.permit_unless(why, gelu):
        return False
    new = ir.node(form, [found.x, found.bias], domain=CONTRIB)
    scope.replace([found.add, gelu], [new], {result: new.outputs[0]}, FuseBiasGelu.name)
    return True


def _refusal(found: Biased, form: str, context: Context) -> str | None:
    if not context.target.has_kernel(CONTRIB, form):
        return f"target {context.target.name} has no {CONTRIB}::{form}"
    dtype = found.bias.dtype
    if dtype == ir.DataType.DOUBLE or (form == "FastGelu" and dtype != ir.DataType.FLOAT):
        return f"{CONTRIB}::{form} does not take {'float64' if dtype == ir.DataType.DOUBLE else dtype}"
    return None
