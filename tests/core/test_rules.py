"""Rules of other packages: a pattern, a replacement, a check; and how they are found."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import burnish
from burnish.errors import MismatchError, PassError, RecipeError
from burnish.passes.base import Context
from burnish.passes.recipe import Recipe
from burnish.provenance import Origin, origins, write_origins
from burnish.rules import Match, Numerics, Rule
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "writing-a-rule.md").read_text(encoding="utf-8")
MODULE, _ = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
(TABLE,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
SILU = "g (float[N, 4] x) => (float[N, 4] y) { s = Sigmoid (x)  m = Mul (s, x)  y = Neg (m) }"


class FuseSilu(Rule):
    """Fuse x * sigmoid(x)."""

    name = "test-fuse-silu"
    numerics = Numerics.ROUNDING

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x))

    def check(self, match: Match) -> str | None:
        return None if match.dtype("x") == "FLOAT" else "only float32"

    def replacement(self, op: Any, x: Any) -> Any:
        return op.QuickGelu(x, alpha=1.0, _domain="com.microsoft")


def rule(
    pattern: Callable[..., Any],
    replacement: Callable[..., Any],
    check: Callable[[Match], str | None] = lambda match: None,
) -> Rule:
    """A rule of plain functions."""
    body = {
        "name": "test-rule", "numerics": Numerics.ROUNDING, "pattern": staticmethod(pattern),
        "replacement": staticmethod(replacement), "check": lambda self, match: check(match),
    }  # fmt: skip
    made: Rule = type("Made", (Rule,), body)()
    return made


def misses(made: Rule, model: ir.Model) -> list[str]:
    context = Context()
    assert made.rewrite(model, context) == 0
    return [miss.why for miss in context.misses]


def test_a_pattern_is_replaced_in_both_orders_of_operands() -> None:
    for text in (SILU, SILU.replace("(s, x)", "(x, s)")):
        check_pass(
            FuseSilu(), text, after="m = com.microsoft.QuickGelu <alpha: float = 1> (x)\ny = Neg (m)", count=1
        )


def test_a_chain_is_replaced_link_by_link() -> None:
    text = SILU.replace("y = Neg (m)", "t = Sigmoid (m)  y = Mul (m, t)")
    check_pass(FuseSilu(), text, after=["QuickGelu", "QuickGelu"], count=2)


def test_what_is_known_of_a_value_stays_known_when_it_is_replaced() -> None:
    model = parse(SILU.replace("y = Neg (m)", "t = Sigmoid (m)  y = Mul (m, t)"))
    for node in model.graph:
        node.outputs[0].type = node.outputs[0].shape = None
    assert FuseSilu().rewrite(model, Context()) == 2


def test_the_check_says_why_not() -> None:
    assert misses(FuseSilu(), parse(SILU.replace("float[", "double["))) == ["only float32"]


def test_what_something_else_uses_stays() -> None:
    text = SILU.replace("y = Neg (m)", "y = Sub (m, s)")
    assert misses(FuseSilu(), parse(text)) == ["the Sigmoid inside is used elsewhere too"]


def test_bodies_and_functions_are_rewritten() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["": 20, "own": 1, "com.microsoft": 1]>
        g (bool c, float[4] x) => (float[4] y) {
            z = own.F (x)
            y = If (c) <then_branch = t () => (float[4] p) { s = Sigmoid (z)  p = Mul (z, s) },
                        else_branch = e () => (float[4] q) { q = Abs (z) }>
        }
        <domain: "own", opset_import: ["": 20]> F (v) => (o) { s = Sigmoid (v)  o = Mul (v, s) }"""
    )
    anything = rule(FuseSilu().pattern, FuseSilu().replacement)
    check_pass(anything, model, count=2)
    assert [function.opset_imports["com.microsoft"] for function in model.functions.values()] == [1]


def test_attributes_that_the_pattern_does_not_name_must_be_absent() -> None:
    def swap(op: Any, x: Any, **_: Any) -> Any:
        return op.Identity(x)

    text = 'g (float[N, 4] x) => (float[N, 4] y) { y = Gelu <approximate = "tanh"> (x) }'
    strict = rule(lambda op, x: op.Gelu(x), swap)
    assert misses(strict, parse(text)) == []
    named = rule(lambda op, x: op.Gelu(x, approximate="tanh"), swap)
    assert named.rewrite(parse(text), Context()) == 1
    other = rule(lambda op, x: op.Gelu(x, approximate="none"), swap)
    assert other.rewrite(parse(text), Context()) == 0
    lax = rule(lambda op, x: op.Gelu(x, _allow_other_attributes=True), swap)
    assert lax.rewrite(parse(text), Context()) == 1


def test_attributes_are_bound_and_given_on() -> None:
    seen = []

    def check(match: Match) -> str | None:
        seen.append((match.attribute("perm"), match.shape("x"), match.fact("x").rank, match.opset))
        return None

    made = rule(
        lambda op, x, perm: op.Neg(op.Transpose(x, perm=perm)),
        lambda op, x, perm: op.Transpose(op.Neg(x), perm=perm),
        check,
    )
    check_pass(
        made,
        "g (float[N, 4, 2] x) => (float[2, N, 4] y) { t = Transpose <perm = [2, 0, 1]> (x)  y = Neg (t) }",
        after=["Neg", "Transpose"],
        count=1,
    )
    assert set(seen) == {((2, 0, 1), ("N", 4, 2), 3, 20)}


def test_numbers_are_constants_and_arrays_become_some() -> None:
    made = rule(lambda op, x: op.Add(op.Mul(x, 2.0), 1.0), lambda op, x: op.Mul(x, np.float32(3)))
    model = parse(
        """g (float[N, 4] x) => (float[N, 4] y) <float two = {2.0}> {
            one = Constant <value = float {1.0}> ()
            a = Mul (two, x)
            y = Add (a, one)
        }"""
    )
    assert made.rewrite(model, Context()) == 1
    (node,) = model.graph
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value.numpy() == 3
    off = parse(
        """g (float[N] x) => (float[N] y) <float two = {2.1}, float one = {1}> {
            a = Mul (x, two)  y = Add (a, one)
        }"""
    )
    assert made.rewrite(off, Context()) == 0


def test_constants_can_be_looked_at() -> None:
    made = rule(
        lambda op, x, k: op.Mul(x, k),
        lambda op, x, k: op.Identity(x),
        lambda match: None if match.constant("k") is not None else "k is no constant",
    )
    text = "g (float[N] x, float[N] k) => (float[N] y) { y = Mul (x, k) }"
    assert misses(made, parse(text)) == ["k is no constant"]
    for operands in ("(x, k)", "(k, x)"):
        constant = f"g (float[N] x) => (float[N] y) <float k = {{1.0}}> {{ y = Mul {operands} }}"
        check_pass(made, constant, after="y = Identity (x)", count=1)


def test_an_input_with_a_default_is_no_constant() -> None:
    made = rule(lambda op, x: op.Mul(x, 1.0), lambda op, x: op.Identity(x))
    model = parse("g (float[N] x) => (float[N] y) <float one = {1}> { y = Mul (x, one) }")
    model.graph.inputs.append(model.graph.initializers["one"])
    assert made.rewrite(model, Context()) == 0


def test_several_outputs_and_what_is_returned_as_it_is() -> None:
    made = rule(lambda op, x: (op.Neg(op.Abs(x)), op.Abs(x)), lambda op, x: (op.Neg(x), x))
    text = (
        "g (float[N] x) => (float[N] y, float[N] z) { r = Relu (x)  a = Abs (r)  y = Neg (a)  z = Exp (a) }"
    )
    with pytest.raises(RecipeError, match="ends in 2 nodes"):
        made.rewrite(parse(text), Context())

    def pattern(op: Any, x: Any) -> Any:
        inner = op.Abs(x)
        return op.Neg(inner), inner

    made = rule(pattern, lambda op, x: (op.Neg(x), x))
    model = parse(text)
    assert made.rewrite(model, Context()) == 1
    assert sorted(node.op_type for node in model.graph) == ["Exp", "Identity", "Neg", "Relu"]
    burnish.verify(parse(text), model)


def test_a_target_without_the_kernel_is_told_apart() -> None:
    made = rule(
        FuseSilu().pattern,
        FuseSilu().replacement,
        lambda match: None if match.target.has_kernel("com.microsoft", "QuickGelu") else "no kernel",
    )
    context = Context(target=TARGETS["openvino"])
    assert made.rewrite(parse(SILU), context) == 0
    assert [miss.why for miss in context.misses] == ["no kernel"]


def test_new_nodes_are_stamped_and_inherit_modules() -> None:
    model = parse(SILU)
    for node in model.graph:
        write_origins(node.metadata_props, [Origin(f"act.{node.outputs[0].name}")])
    result = burnish.optimize(model, recipe=Recipe((FuseSilu(),)), measured=False)
    first = result.graph.node(0)
    assert first.metadata_props["burnish.pass"] == "test-fuse-silu"
    assert [origin.module for origin in origins(first.metadata_props)] == ["act.s", "act.m"]


@pytest.mark.parametrize(
    ("replacement", "why"),
    [
        (lambda op, x: None, "return 1 value"),
        (lambda op, x: (op.Neg(x), x), "return 1 value"),
        (lambda op, x: op.Mul(x, 2.0), "an operand is a float"),
        (lambda op, x: op.Neg(x, _domain="com.microsoft", _version=7), "com.microsoft in version 1, not 7"),
        (lambda op, x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_rule_that_raises_is_an_error_that_names_it(replacement: Callable[..., Any], why: str) -> None:
    made = rule(FuseSilu().pattern, replacement)
    with pytest.raises(PassError, match=re.escape(why)) as caught:
        burnish.optimize(parse(SILU), recipe=Recipe((made,)), measured=False)
    assert "'test-rule'" in caught.value.what
    _, receipts = burnish.optimize(
        parse(SILU), recipe=Recipe((made,)), measured=False, on_mismatch="rollback", return_receipts=True
    )
    assert receipts[0].status == "rolled-back"


def test_a_wrong_rule_is_refused_and_bisected() -> None:
    made = rule(FuseSilu().pattern, lambda op, x: op.Relu(x))
    with pytest.raises(MismatchError, match=r"'test-rule'.*value 'm'"):
        burnish.optimize(parse(SILU), recipe=Recipe((made,)), measured=False)
