import math
import re

import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_gelu import FuseGelu
from burnish.passes.matching import MADE_BY
from burnish.target import get_target
from burnish.testing import check_pass, parse

CONSTANTS = {
    name: np.float32(number)
    for name, number in {
        "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "root2": math.sqrt(2.0),
        "unroot2": math.sqrt(0.5), "k": math.sqrt(2.0 / math.pi), "c": 0.044715,
        "k2": 2.0 * math.sqrt(2.0 / math.pi), "alpha": 1.702,
    }.items()
}  # fmt: skip


def graph(nodes: str, x: str = "float[N, 3] x", y: str = "float[N, 3] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


def used(text: str, array: type = np.float32) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array(value) for name, value in CONSTANTS.items() if name in words}


ERF = {
    "torch": "u = Div (x, root2)  t = Erf (u)  s = Add (t, one)  m = Mul (x, s)  y = Mul (m, half)",
    "torch, half first": """
        h = Mul (x, half)  u = Mul (x, unroot2)  t = Erf (u)  s = Add (t, one)
        y = Mul (h, s)
    """,
    "operands swapped": """
        h = Mul (half, x)  u = Mul (unroot2, x)  t = Erf (u)  s = Add (one, t)
        y = Mul (s, h)
    """,
    "tf": "u = Div (x, root2)  t = Erf (u)  s = Add (one, t)  m = Mul (half, s)  y = Mul (x, m)",
    "halved by Div": "u = Div (x, root2)  t = Erf (u)  s = Add (t, one)  m = Mul (x, s)  y = Div (m, two)",
    "paddle": "h = Div (x, two)  u = Div (x, root2)  t = Erf (u)  s = Add (t, one)  y = Mul (h, s)",
    "multiplied out": """
        u = Div (x, root2)  t = Erf (u)  a = Mul (t, half)  s = Add (a, half)
        y = Mul (s, x)
    """,
}
TANH = {
    "Pow": """
        p = Pow (x, three)  q = Mul (c, p)  r = Add (x, q)  u = Mul (k, r)  t = Tanh (u)
        s = Add (one, t)  h = Mul (half, x)  y = Mul (h, s)
    """,
    "Mul": """
        p = Mul (x, x)  o = Mul (p, x)  q = Mul (o, c)  r = Add (q, x)  u = Mul (r, k)
        t = Tanh (u)  s = Add (t, one)  m = Mul (x, s)  y = Mul (m, half)
    """,
    "factored": """
        p = Mul (x, x)  q = Mul (p, c)  r = Add (one, q)  v = Mul (x, k)  u = Mul (v, r)
        t = Tanh (u)  s = Add (t, one)  h = Mul (x, half)  y = Mul (h, s)
    """,
    "sigmoid": """
        p = Pow (x, three)  q = Mul (c, p)  r = Add (x, q)  u = Mul (k2, r)  t = Sigmoid (u)
        y = Mul (x, t)
    """,
}


@pytest.mark.parametrize("nodes", ERF.values(), ids=ERF)
def test_erf_forms(nodes: str) -> None:
    text = graph(nodes)
    check_pass(FuseGelu(), text, 'y = Gelu <approximate: string = "none"> (x)', count=1, weights=used(text))


@pytest.mark.parametrize("nodes", TANH.values(), ids=TANH)
def test_tanh_forms(nodes: str) -> None:
    text = graph(nodes)
    check_pass(FuseGelu(), text, 'y = Gelu <approximate: string = "tanh"> (x)', count=1, weights=used(text))


def test_below_opset_20_it_is_a_contrib_op() -> None:
    erf, tanh = graph(ERF["torch"]), graph(TANH["Pow"])
    check_pass(FuseGelu(), erf, "y = com.microsoft.Gelu (x)", count=1, opset=17, weights=used(erf))
    check_pass(FuseGelu(), tanh, "y = com.microsoft.FastGelu (x)", count=1, opset=17, weights=used(tanh))


def test_without_a_kernel_it_stays() -> None:
    text, context = graph(ERF["torch"]), Context(target=get_target("openvino"))
    check_pass(FuseGelu(), text, count=0, opset=17, weights=used(text), context=context)
    assert context.misses[0].why == (
        "target openvino has no com.microsoft::Gelu and opset 17 has no standard Gelu"
    )


def test_quick_gelu_and_silu() -> None:
    quick = graph("u = Mul (x, alpha)  t = Sigmoid (u)  y = Mul (x, t)")
    model = check_pass(FuseGelu(), quick, ["QuickGelu"], count=1, opset=17, weights=used(quick))
    assert model.graph.node(0).attributes.get_float("alpha") == pytest.approx(1.702)
    silu = graph("t = Sigmoid (x)  y = Mul (t, x)")
    check_pass(FuseGelu(), silu, "y = com.microsoft.QuickGelu <alpha: float = 1> (x)", count=1)


def test_quick_gelu_needs_its_kernel() -> None:
    context = Context(target=get_target("tensorrt"))
    check_pass(FuseGelu(), graph("t = Sigmoid (x)  y = Mul (t, x)"), count=0, context=context)
    assert context.misses[0].why == "target tensorrt has no com.microsoft::QuickGelu"


def test_a_gate_is_no_gelu() -> None:
    context = Context()
    text = graph("u = Abs (x)  t = Sigmoid (x)  y = Mul (t, u)")
    check_pass(FuseGelu(), text, count=0, context=context)
    assert context.misses == []


def test_other_constants_do_not_match() -> None:
    text = graph(ERF["torch"]).replace("root2", "two")
    check_pass(FuseGelu(), text, count=0, weights=used(text))


def test_inside_fits_but_not_around() -> None:
    context = Context()
    text = graph("u = Div (x, root2)  t = Erf (u)  s = Add (t, one)  y = Mul (s, half)")
    check_pass(FuseGelu(), text, count=0, weights=used(text), context=context)
    assert context.misses[0].why == "looks like GELU inside, but not around it"


def test_inner_value_used_elsewhere_stays() -> None:
    context = Context()
    text = graph(ERF["torch"], y="float[N, 3] y, float[N, 3] t")
    check_pass(FuseGelu(), text, count=0, weights=used(text), context=context)
    assert context.misses[0].why == "the Erf inside is used elsewhere too"


def test_a_constant_that_raises_the_rank_stays() -> None:
    text = graph(ERF["torch"], x="float[3] x", y="float[1, 1, 3] y")
    weights = used(text) | {"half": np.full((1, 1, 1), 0.5, np.float32)}
    check_pass(FuseGelu(), text, count=0, weights=weights)


def test_a_constant_that_may_raise_the_rank_stays() -> None:
    """Found by `make fuzz-graphs`: nothing says that x has any dim."""
    text = graph(ERF["torch"], x="float[1] x", y="float[1] y")
    weights = used(text) | {"half": np.full((1,), 0.5, np.float32)}
    model = parse(text, weights=weights)
    model.graph.inputs[0].shape = None
    assert FuseGelu().rewrite(model, Context()) == 0
    check_pass(FuseGelu(), text, ["Gelu"], count=1, weights=weights)


def test_float16_constants_are_read_at_their_precision() -> None:
    text = graph(ERF["torch"], x="float16[N, 3] x", y="float16[N, 3] y")
    model = parse(text, weights=used(text, np.float16))
    assert FuseGelu().rewrite(model, Context()) == 1
    assert [node.op_type for node in model.graph] == ["Gelu"]


def test_two_of_them_share_constants_which_go_last() -> None:
    second = re.sub(r"\bx\b", "y", re.sub(r"\b([utsmy])\b", r"\1_2", ERF["torch"]))
    text = graph(ERF["torch"] + second, y="float[N, 3] y_2")
    model = check_pass(FuseGelu(), text, ["Gelu", "Gelu"], count=2, weights=used(text))
    assert list(model.graph.initializers) == []


def test_inside_if_and_function() -> None:
    inside = ERF["torch"]
    text = f"""
        <ir_version: 10, opset_import: ["": 20, "f": 1]>
        g (bool c, float[N] z) => (float[M] r)
        <float half = {{0.5}}, float one = {{1.0}}, float root2 = {{1.41421356}}> {{
            x = f.silu (z)
            r = If (c) <
                then_branch = t () => (float[M] y) {{ {inside} }},
                else_branch = e () => (float[M] d) {{ d = Neg (x) }}
            >
        }}
        <domain: "f", opset_import: ["": 20]>
        silu (x) => (y) {{
            t = Sigmoid (x)
            y = Mul (x, t)
        }}
    """
    model = check_pass(FuseGelu(), parse(text), count=2)
    assert [node.op_type for node in model.graph.all_nodes()] == ["silu", "If", "Gelu", "Neg"]
    function = next(iter(model.functions.values()))
    assert [node.op_identifier() for node in function] == [("com.microsoft", "QuickGelu", "")]
    assert function.opset_imports["com.microsoft"] == 1
    assert "com.microsoft" not in model.graph.opset_imports


def test_metadata_is_merged_and_names_the_pass() -> None:
    text = graph(ERF["torch"])
    model = parse(text, weights=used(text))
    for node in model.graph:
        node.metadata_props.update({"scope": node.op_type, node.op_type: "seen"})
    FuseGelu().rewrite(model, Context())
    metadata = model.graph.node(0).metadata_props
    assert metadata["scope"] == "Mul"
    assert metadata["Erf"] == "seen"
    assert metadata[MADE_BY] == "fuse-gelu"
