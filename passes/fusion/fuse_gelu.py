"""x * 0.5 * (1 + Erf(x / sqrt(2)))  ->  Gelu(x)

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016): the exact form by erf, and the
approximations by tanh and by sigmoid(1.702 x).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.fusion.polynomial import ARITHMETIC, Polynomial, Powers, read_polynomial
from burnish.passes.matching import CONTRIB, Scope, obstacle, scalar, scopes

_TANH_FACTOR: Final = math.sqrt(2.0 / math.pi)
_HALF: Final[Mapping[Powers, float]] = {(1, 0): 0.5, (1, 1): 0.5}  # x/2 + x·t/2
_PRODUCT: Final[Mapping[Powers, float]] = {(1, 1): 1.0}  # x·t


@final
@dataclasses.dataclass(frozen=True)
class _Form:
    """One way to write an activation: outer(x, t) with t = function(inner(x))."""

    function: str
    inner: Mapping[Powers, float]
    outer: Mapping[Powers, float]
    approximate: str
    contrib: str


def _cubic(factor: float) -> Mapping[Powers, float]:
    return {(1,): factor, (3,): factor * 0.044715}


_FORMS: Final = (
    _Form("Erf", {(1,): math.sqrt(0.5)}, _HALF, "none", "Gelu"),
    _Form("Tanh", _cubic(_TANH_FACTOR), _HALF, "tanh", "FastGelu"),
    # (1 + tanh(u)) / 2 = sigmoid(2u)
    _Form("Sigmoid", _cubic(2.0 * _TANH_FACTOR), _PRODUCT, "tanh", "FastGelu"),
)


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    x: ir.Value
    root: ir.Node
    nodes: tuple[ir.Node, ...]
    """All nodes of the pattern, `root` last."""
    form: _Form | None
    """None: x * sigmoid(alpha x)."""
    alpha: float = 1.0


@final
@dataclasses.dataclass(frozen=True)
class FuseGelu(Pass):
    """Fuse the arithmetic of GELU, QuickGELU and SiLU, however it is written, into one node.

    GELU (by erf, or by tanh) becomes the standard Gelu from opset 20 on, and com.microsoft::Gelu or
    FastGelu below it where the target has that kernel. x * sigmoid(alpha x) becomes
    com.microsoft::QuickGelu where the target has it (SiLU is alpha = 1).
    """

    name: ClassVar[str] = "fuse-gelu"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many activations were fused."""
        return sum(
            _fuse(node, scope, context)
            for scope in scopes(model)
            for node in list(scope.graph)
            if any(is_op(node, function) for function in ("Erf", "Tanh", "Sigmoid"))
        )


def _fuse(function: ir.Node, scope: Scope, context: Context) -> bool:
    found = _match(function, context)
    if found is None:
        return False
    result = found.root.outputs[0]
    new = _emit(found, scope, context)
    why = new if isinstance(new, str) else obstacle(found.nodes, [result])
    if why is not None:
        context.miss(function, why)
    if why is not None or isinstance(new, str) or not context.permit(found.root):
        return False
    scope.replace(found.nodes, [new], {result: new.outputs[0]}, FuseGelu.name)
    return True


def _emit(found: _Match, scope: Scope, context: Context) -> ir.Node | str:
    """The fused node, or why there is none for this target."""
    if found.form is not None and scope.opset >= 20:
        return ir.node("Gelu", [found.x], {"approximate": found.form.approximate})
    op_type = "QuickGelu" if found.form is None else found.form.contrib
    if not context.target.has_kernel(CONTRIB, op_type):
        standard = "" if found.form is None else f" and opset {scope.opset} has no standard Gelu"
        return f"target {context.target.name} has no {CONTRIB}::{op_type}{standard}"
    if found.x.dtype == ir.DataType.DOUBLE:
        return f"{CONTRIB}::{op_type} does not take float64"
    attributes = {"alpha": found.alpha} if found.form is None else {}
    return ir.node(op_type, [found.x], attributes, domain=CONTRIB)


def _match(function: ir.Node, context: Context) -> _Match | None:
    argument, t = function.inputs[0], function.outputs[0]
    if argument is None:
        return None
    for x in _operands(argument):
        inner = read_polynomial(argument, [x])
        if inner is None:
            continue
        for form in _FORMS:
            if form.function == function.op_type and inner.is_close(form.inner, x.dtype):
                outer = _outer(x, t, form.outer)
                if outer is None:
                    context.miss(function, "looks like GELU inside, but not around it")
                    return None
                nodes = (*inner.nodes, function, *outer.nodes)
                return _Match(x, outer.nodes[-1], nodes, form)
        if function.op_type == "Sigmoid" and inner.terms.keys() == {(1,)}:
            outer = _outer(x, t, _PRODUCT)
            if outer is not None:
                nodes = (*inner.nodes, function, *outer.nodes)
                return _Match(x, outer.nodes[-1], nodes, None, alpha=inner.terms[(1,)])
    return None


def _operands(value: ir.Value) -> Iterator[ir.Value]:
    """`value` and what it is calculated from: each may be the x of the pattern."""
    todo = [value]
    seen: set[ir.Value] = set()
    while todo and len(seen) < 16:  # more than any form has
        current = todo.pop(0)
        if current in seen or scalar(current, max_rank=8) is not None:
            continue
        seen.add(current)
        yield current
        node = current.producer()
        if any(is_op(node, op) for op in ARITHMETIC) and node is not None:
            todo.extend(operand for operand in node.inputs if operand is not None)


def _outer(x: ir.Value, t: ir.Value, expected: Mapping[Powers, float]) -> Polynomial | None:
    """The arithmetic after `t` that is `expected` in (x, t)."""
    todo = list(t.consumers())
    for _ in range(6):  # x/2 + (x/2)·t written out has 4 steps
        if not todo:
            return None
        node = todo.pop(0)
        if not any(is_op(node, op) for op in ARITHMETIC):
            continue
        found = read_polynomial(node.outputs[0], [x, t])
        if found is not None and found.is_close(expected, x.dtype):
            return found
        todo.extend(node.outputs[0].consumers())
    return None
