"""MatMul(a, Transpose(b)) * scale  ->  com.microsoft::FusedMatMul(a, b), which transposes and scales"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.editing import feeds_only
from burnish.passes.matching import CONTRIB, Scope, candidates, obstacle, scalar
from burnish.passes.shapes import Shapes


@final
@dataclasses.dataclass(frozen=True)
class FuseMatMul(Pass):
    """Take the Transpose of the last two axes, and factors, before and behind a MatMul into FusedMatMul.

    For float32 operands of one rank, 3 or more, where the target has the kernel, and where nothing else
    reads what goes. Quantisation knows MatMul only, so this belongs last in a recipe. onnxruntime's own
    optimiser does the same when it loads a model.
    """

    name: ClassVar[str] = "fuse-matmul"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many products were fused."""
        shapes: Shapes | None = None
        done = 0
        for node, scope in candidates(model, "MatMul"):
            parts = _Parts(node)
            if not parts.old:
                continue
            shapes = shapes or context.shapes(model)
            why = parts.refusal(shapes, context) or obstacle(parts.nodes, [parts.result])
            if context.permit_unless(why, node):
                parts.fuse(scope)
                done += 1
        return done


@final
class _Parts:
    """A MatMul, and what around it one operator can do with it."""

    def __init__(self, product: ir.Node) -> None:
        self._product = product
        self.old: list[ir.Node] = []
        """What goes, but for the product."""
        self.result = product.outputs[0]
        self._alpha = 1.0
        self._sides = [self._side(value) for value in product.inputs]
        self._behind()

    @property
    def nodes(self) -> list[ir.Node]:
        """What is replaced, the maker of the result last."""
        last = self.result.producer()
        first = [node for node in (*self.old, self._product) if node is not last]
        return first if last is None else [*first, last]

    def refusal(self, shapes: Shapes, context: Context) -> str | None:
        """Why not, or None."""
        if not context.target.has_kernel(CONTRIB, "FusedMatMul"):
            return f"target {context.target.name} has no {CONTRIB}::FusedMatMul"
        facts = [shapes[value] for value in self._product.inputs]
        if any(fact.dtype != ir.DataType.FLOAT for fact in facts):
            return "FusedMatMul takes float32, or the type is not known"
        if facts[0].rank != facts[1].rank or (facts[0].rank or 0) < 3:
            return "its operands are not of one known rank of at least 3"
        fits = math.isfinite(self._alpha) and self._alpha != 0.0  # 0 times NaN is no 0
        return None if fits else "the factors are 0, or do not fit into one number"

    def fuse(self, scope: Scope) -> None:
        """Put the operator in the place of all."""
        attributes: dict[str, float | int] = {"alpha": self._alpha} if self._alpha != 1.0 else {}
        for name, (_, turned) in zip(("transA", "transB"), self._sides, strict=True):
            attributes |= {name: 1} if turned else {}
        new = ir.node("FusedMatMul", [value for value, _ in self._sides], attributes, domain=CONTRIB)
        scope.replace(self.nodes, [new], {self.result: new.outputs[0]}, FuseMatMul.name)

    def _side(self, value: ir.Value | None) -> tuple[ir.Value | None, bool]:
        """What to read instead, and whether it is to be transposed."""
        turned, user = False, self._product
        while (node := None if value is None else value.producer()) is not None:
            if (
                node.graph is not user.graph
                or not feeds_only(node, user)
                or len(value.uses() if value else ()) > 1
            ):
                break
            factor = _factor(node)
            if not _swaps(node) and factor is None:
                break
            turned ^= factor is None
            self._alpha *= 1.0 if factor is None else factor
            self.old.insert(0, node)
            value, user = node.inputs[0] if factor is None else _other(node), node
        return value, turned

    def _behind(self) -> None:
        while len(self.result.uses()) == 1 and not self.result.is_graph_output():
            (user,) = self.result.consumers()
            factor = _factor(user)
            if factor is None or _other(user) is not self.result or user.graph is not self._product.graph:
                return
            self._alpha *= factor
            self.old.append(user)
            self.result = user.outputs[0]


def _swaps(node: ir.Node) -> bool:
    """True for a Transpose of the last two axes."""
    order = list(node.attributes.get_ints("perm", ()) or ()) if is_op(node, "Transpose") else []
    count = len(order)
    return count > 2 and order == [*range(count - 2), count - 1, count - 2]


def _factor(node: ir.Node) -> float | None:
    """The number that a node multiplies with."""
    if is_op(node, "Div"):
        divisor = scalar(node.inputs[1], max_rank=0)
        return 1.0 / divisor if divisor else None
    if not is_op(node, "Mul"):
        return None
    found = [each for each in (scalar(value, max_rank=0) for value in node.inputs) if each is not None]
    return found[0] if len(found) == 1 else None


def _other(node: ir.Node) -> ir.Value | None:
    """The operand that is no number."""
    return next((value for value in node.inputs if scalar(value, max_rank=0) is None), None)
