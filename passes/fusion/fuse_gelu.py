"""x * 0.5 * (1 + Erf(x / sqrt(2)))  ->  Gelu(x)

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016): the exact form by erf, and the
approximations by tanh and by sigmoid(1.702 x).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.fusion.polynomial import Polynomial, Powers, operands_of, read_polynomial, what_follows
from burnish.passes.matching import CONTRIB, Scope, candidates, obstacle

_OPSET: Final = 20  # Gelu is standard from here on
_TANH_FACTOR: Final = math.sqrt(2.0 / math.pi)
_HALF: Final[Mapping[Powers, float]] = {(1, 0): 0.5, (1, 1): 0.5}  # x/2 + x·t/2
_PRODUCT: Final[Mapping[Powers, float]] = {(1, 1): 1.0}  # x·t


@final
@dataclasses.dataclass(frozen=True)
class _Form:
    """One way to write an activation: outer(x, t) with t = function(inner(x))."""

    function: str
    inner: Mapping[Powers, float] | None
    """None: x times any number (alpha)."""
    outer: Mapping[Powers, float]
    contrib: str
    approximate: str | None = None
    """Attribute of the standard Gelu that is the same; None where there is none."""

    def fits(self, inner: Polynomial, dtype: ir.DataType | None) -> bool:
        if self.inner is None:
            return inner.terms.keys() == {(1,)}
        return inner.is_close(self.inner, dtype)


def _cubic(factor: float) -> Mapping[Powers, float]:
    return {(1,): factor, (3,): factor * 0.044715}


_FORMS: Final = (
    _Form("Erf", {(1,): math.sqrt(0.5)}, _HALF, "Gelu", "none"),
    _Form("Tanh", _cubic(_TANH_FACTOR), _HALF, "FastGelu", "tanh"),
    # (1 + tanh(u)) / 2 = sigmoid(2u)
    _Form("Sigmoid", _cubic(2.0 * _TANH_FACTOR), _PRODUCT, "FastGelu", "tanh"),
    _Form("Sigmoid", None, _PRODUCT, "QuickGelu"),
)


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    x: ir.Value
    form: _Form
    inner: Polynomial
    nodes: tuple[ir.Node, ...]
    """All nodes of the pattern; the last one makes the result."""


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
    looks_for: ClassVar[frozenset[str]] = frozenset({"Erf", "Sigmoid", "Tanh"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many activations were fused."""
        return sum(_fuse(node, scope, context) for node, scope in candidates(model, "Erf", "Tanh", "Sigmoid"))


def _fuse(function: ir.Node, scope: Scope, context: Context) -> bool:
    found = _match(function, context)
    if found is None:
        return False
    last = found.nodes[-1]
    why = _refusal(found, scope, context) or obstacle(found.nodes, last.outputs)
    if why is not None:
        context.miss(function, why)
        return False
    if not context.permit(last):
        return False
    new = _emit(found, scope)
    scope.replace(found.nodes, [new], {last.outputs[0]: new.outputs[0]}, FuseGelu.name)
    return True


def _match(function: ir.Node, context: Context) -> _Match | None:
    argument, t = function.inputs[0], function.outputs[0]
    for x in () if argument is None else operands_of(argument):
        inner = None if argument is None else read_polynomial(argument, [x])
        form = None if inner is None else _form(function, inner, x.dtype)
        if inner is None or form is None:
            continue
        outer = what_follows(x, t, form.outer)
        if outer is not None:
            return _Match(x, form, inner, (*inner.nodes, function, *outer.nodes))
        if form.inner is not None:
            context.miss(function, "looks like GELU inside, but not around it")
    return None


def _form(function: ir.Node, inner: Polynomial, dtype: ir.DataType | None) -> _Form | None:
    forms = (form for form in _FORMS if form.function == function.op_type)
    return next((form for form in forms if form.fits(inner, dtype)), None)


def _is_standard(form: _Form, scope: Scope) -> bool:
    return form.approximate is not None and scope.opset >= _OPSET


def _refusal(found: _Match, scope: Scope, context: Context) -> str | None:
    form, op_type = found.form, f"{CONTRIB}::{found.form.contrib}"
    if _is_standard(form, scope):
        return None
    if not context.target.has_kernel(CONTRIB, form.contrib):
        lack = f" and opset {scope.opset} has no standard Gelu" if form.approximate else ""
        return f"target {context.target.name} has no {op_type}{lack}"
    return f"{op_type} does not take float64" if found.x.dtype == ir.DataType.DOUBLE else None


def _emit(found: _Match, scope: Scope) -> ir.Node:
    form = found.form
    if _is_standard(form, scope):
        return ir.node("Gelu", [found.x], {"approximate": form.approximate})
    attributes = {"alpha": found.inner.terms[(1,)]} if form.inner is None else {}
    return ir.node(form.contrib, [found.x], attributes, domain=CONTRIB)
