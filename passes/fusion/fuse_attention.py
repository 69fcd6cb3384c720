"""Softmax(query @ key * scale + mask) @ value  ->  one attention operator

Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.2; the operators are Attention and
MultiHeadAttention of onnxruntime (docs/ContribOperators.md), and Attention of ONNX from opset 23 on.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.editing import Editor
from burnish.passes.fusion.attention_emit import Emitter, Shared
from burnish.passes.fusion.attention_operands import dying_with
from burnish.passes.fusion.attention_pattern import Found, find_attention
from burnish.passes.fusion.attention_plan import Plan, make_plan
from burnish.passes.matching import Scope, obstacle, scopes, settle
from burnish.passes.shapes import Shapes


@final
@dataclasses.dataclass(frozen=True)
class FuseAttention(Pass):
    """Fuse attention that is written out in single steps, or with heads split off around it.

    Found are: scaled_dot_product_attention as torch's exporter decomposes it before opset 23 (the scale
    split over query and key, the key transposed through Shape and Reshape, a guard against NaN after the
    softmax); the same by hand (scores divided or multiplied, mask added or filled in); and the standard
    Attention of opset 23 with the Reshape and Transpose around it. nn.MultiheadAttention is followed through
    its sequence-first layout.

    Made is com.microsoft::Attention, with the projections of query, key and value packed into one, where
    `packed` is set and all three read one input; else com.microsoft::MultiHeadAttention, which takes in the
    constants added to them; else, from opset 23 on, the standard Attention with heads joined, or with key
    heads that queries share instead of repeated ones; and where the cost table has the standard Attention as
    faster than MultiHeadAttention, which then would take in nothing more.

    A mask that is provably one of keys (attention_mask [batch, keys]) becomes an int32 mask that all layers
    share, a causal one an attribute, any other a bias. Where every key is masked the result stays what it
    was: the mean of the values for a finite mask, NaN for -inf, and 0 where the graph has a guard or is the
    standard Attention (kept by a Where). Exact for masks of 0 and 1; in an integer mask, a negative number
    hides a key after the fusion. Only float32 is fused from single steps. Where query, key or value hold
    NaN, what a guard makes of it may differ.
    """

    name: ClassVar[str] = "fuse-attention"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Attention", "Softmax"})

    packed: bool = True
    """Take the projections of query, key and value into the operator, as one matrix."""

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many attentions were fused."""
        shapes, editor = context.shapes(model), Editor(model)
        shared: Shared = {}
        done = 0
        for scope in scopes(model):
            found = [(node, find_attention(node, shapes)) for node in scope.graph]
            attentions = [attention for _, attention in found if isinstance(attention, Found)]
            # of all together: layers share arithmetic on shapes, which goes with the last of them
            dying = frozenset(dying_with(node for each in attentions for node in each.nodes))
            reused = False
            for node, attention in found:
                emitter = self._fuse(node, attention, context, _Around(scope, shapes, dying, shared))
                if emitter is not None:
                    done += 1
                    reused |= emitter.reused
                    editor.sweep(emitter.loose)
            if reused:
                settle(scope.graph)  # a mask made for one attention may come after another that reads it
        return done

    def _fuse(
        self, node: ir.Node, found: Found | str | None, context: Context, around: _Around
    ) -> Emitter | None:
        plan = None if found is None or isinstance(found, str) else self._plan(found, context, around)
        why = plan or found
        if isinstance(plan, Plan):
            why = obstacle(plan.found.nodes, [plan.found.result.value])
        if isinstance(why, str):
            context.miss(node, why)
        if why is not None or not isinstance(plan, Plan) or not context.permit(plan.found.nodes[-1]):
            return None
        emitter = Emitter(plan, around.scope, around.shapes, around.shared)
        emitter.replace(self.name)
        return emitter

    def _plan(self, found: Found, context: Context, around: _Around) -> Plan | str:
        return make_plan(
            found, around.shapes, context.target, opset=around.scope.opset, dying=around.dying,
            packed=self.packed, costs=context.costs,
        )  # fmt: skip


@final
@dataclasses.dataclass(frozen=True)
class _Around:
    """What is known where an attention is."""

    scope: Scope
    shapes: Shapes
    dying: frozenset[ir.Node]
    shared: Shared
