import onnx_ir as ir
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.inline_functions import InlineFunctions
from burnish.testing import check_pass, parse

HEAD = '<ir_version: 8, opset_import: ["": 17, "local": 1, "com.microsoft": 1]>\n'


def function(head: str, body: str, opset: int = 17, domain: str = "local") -> str:
    return f'\n<domain: "{domain}", opset_import: ["": {opset}, "local": 1]>\n{head} {{ {body} }}'


SCALE = function(
    "scale <factor> (a) => (b)", "f = Constant <value_float: float = @factor> ()  b = Mul (a, f)"
)  # fmt: skip


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def made(model: ir.Model) -> list[str | None]:
    return [value.name for node in model.graph.all_nodes() for value in node.outputs]


def test_a_call_becomes_its_body_with_its_attributes() -> None:
    text = HEAD + "g (float[N, 3] x) => (float[N, 3] y) { y = local.scale <factor: float = 2.0> (x) }" + SCALE
    model = check_pass(InlineFunctions(), text, count=1)
    assert ops(model) == ["Constant", "Mul"]
    assert not model.functions
    assert made(model)[-1] == "y"


def test_names_stay_apart_in_many_calls_and_in_branches() -> None:
    text = (
        HEAD
        + (
            "g (float[N, 3] x, bool c) => (float[N, 3] y) { f = local.twice (x)  t = local.twice (f)"
            "  y = If (c) <then_branch = a () => (z) { f_2 = Neg (t)  z = local.twice (f_2) },"
            " else_branch = b () => (z) { z = Add (t, x) }> }"
        )
        + function("twice (a) => (b)", "f = Add (a, a)  b = Neg (f)")
    )
    model = check_pass(InlineFunctions(), text, count=1)
    assert len(made(model)) == 9
    assert len(set(made(model))) >= 8  # both branches make a `z`


def test_a_branch_inside_a_function_and_a_function_inside_a_function() -> None:
    text = HEAD + (
        "g (float[N, 3] x, bool c) => (float[N, 3] y) { t = local.outer (x, c)  y = local.outer (t, c) }"
    ) + function(
        "outer (a, c) => (b)",
        "t = local.inner (a)  b = If (c) <then_branch = p () => (z) { z = Mul (t, a) },"
        " else_branch = q () => (z) { z = local.inner (t) }>",
    ) + function("inner (a) => (b)", "t = Add (a, a)  b = Abs (t)")  # fmt: skip
    model = check_pass(InlineFunctions(), text, count=2)
    assert not model.functions
    assert ops(model).count("Abs") == 4


def test_an_optional_input_that_is_not_given() -> None:
    text = HEAD + "g (float[N, 3] x) => (float[N, 3] y) { y = local.f (x) }"
    text += function("f (a, top) => (b)", "b = Clip (a, , top)")
    model = check_pass(InlineFunctions(), text, count=1)
    assert [value and value.name for value in model.graph.node(0).inputs] == ["x", None, None]


@pytest.mark.parametrize(
    ("call", "made", "why"),
    [
        (
            "y = com.microsoft.Gelu (x)", function("Gelu (a) => (b)", "b = Neg (a)", domain="com.microsoft"),
            "onnxruntime may have an operator 'Gelu' of its own, and prefers that",
        ),
        (
            "y = local.f (x)", function("f (a) => (b)", "b = Neg (a)", opset=13),
            "the function is of opset 13 (domain ''), its caller of 17",
        ),
        (
            "y, z = local.f (x)", function("f (a) => (b, a)", "b = Neg (a)"),
            "the function returns one of its inputs as it is, which onnxruntime refuses",
        ),
    ],
)  # fmt: skip
def test_stays_and_says_why(call: str, made: str, why: str) -> None:
    model, context = parse(HEAD + f"g (float[N, 3] x) => (float[N, 3] y) {{ {call} }}{made}"), Context()
    assert InlineFunctions().rewrite(model, context) == 0
    assert [miss.why for miss in context.misses] == [why]
    assert len(model.functions) == 1


def test_a_function_that_nothing_calls_is_left_to_others() -> None:
    text = HEAD + "g (float[N, 3] x) => (float[N, 3] y) { y = Neg (x) }" + SCALE
    assert InlineFunctions().rewrite(parse(text), Context()) == 0


def test_a_function_that_stays_takes_in_another_and_its_domains() -> None:
    text = HEAD + "g (float[N, 3] x) => (float[N, 3] y) { y = com.microsoft.Gelu (x) }"
    text += '\n<domain: "com.microsoft", opset_import: ["": 17, "local": 1]>\n'
    text += "Gelu (a) => (b) { b = local.quick (a) }"
    text += '\n<domain: "local", opset_import: ["com.microsoft": 1]>\n'
    text += "quick (a) => (b) { b = com.microsoft.QuickGelu <alpha: float = 1.0> (a) }"
    model = check_pass(InlineFunctions(), text, count=1)
    (kept,) = model.functions.values()
    assert [node.op_type for node in kept] == ["QuickGelu"]
    assert kept.opset_imports["com.microsoft"] == 1
