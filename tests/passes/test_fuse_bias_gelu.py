import numpy as np

from burnish.manifest import DimRange
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_bias_gelu import FuseBiasGelu
from burnish.passes.matching import MADE_BY
from burnish.target import get_target
from burnish.testing import check_pass, parse

BIAS = {"bias": np.linspace(-1.0, 1.0, 4, dtype=np.float32)}


def graph(nodes: str, x: str = "float[B, S, 4] x", y: str = "float[B, S, 4] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


PLAIN = graph("a = Add (x, bias)  y = Gelu (a)")


def test_standard_gelu() -> None:
    check_pass(FuseBiasGelu(), PLAIN, "y = com.microsoft.BiasGelu (x, bias)", count=1, weights=BIAS)


def test_bias_first_and_contrib_gelu() -> None:
    text = graph("a = Add (bias, x)  y = com.microsoft.Gelu (a)")
    check_pass(FuseBiasGelu(), text, "y = com.microsoft.BiasGelu (x, bias)", count=1, opset=17, weights=BIAS)


def test_size_is_read_from_the_weight() -> None:
    text = graph(
        "t = Transpose <perm = [1, 0]> (w)  m = MatMul (x, t)  a = Add (m, bias)  y = Gelu (a)",
        x="float[B, S, 3] x",
    )
    weights = BIAS | {"w": np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)}
    model = parse(text, weights=weights)
    for node in model.graph:
        node.outputs[0].shape = None if node.op_type != "Gelu" else node.outputs[0].shape
    check_pass(FuseBiasGelu(), model, ["Transpose", "MatMul", "BiasGelu"], count=1)


def test_tanh_form() -> None:
    text = graph('a = Add (x, bias)  y = Gelu <approximate = "tanh"> (a)')
    check_pass(FuseBiasGelu(), text, "y = com.microsoft.FastGelu (x, bias)", count=1, weights=BIAS)
    text = graph("a = Add (bias, x)  y = com.microsoft.FastGelu (a)")
    check_pass(FuseBiasGelu(), text, "y = com.microsoft.FastGelu (x, bias)", count=1, opset=17, weights=BIAS)


def test_a_tanh_form_that_has_a_bias_stays() -> None:
    text = graph("a = Add (x, bias)  y = com.microsoft.FastGelu (a, bias)")
    check_pass(FuseBiasGelu(), text, count=0, weights=BIAS)


def test_tanh_form_of_another_type_stays() -> None:
    context = Context()
    x, y = "float16[B, S, 4] x", "float16[B, S, 4] y"
    text = graph('a = Add (x, bias)  y = Gelu <approximate = "tanh"> (a)', x=x, y=y)
    model = parse(text, weights={"bias": BIAS["bias"].astype(np.float16)})
    assert FuseBiasGelu().rewrite(model, context) == 0
    assert context.misses[0].why == "com.microsoft::FastGelu does not take FLOAT16"


def test_broadcast_or_unknown_size_stays() -> None:
    for size in ("1", "D"):
        text = graph("a = Add (x, bias)  y = Gelu (a)", x=f"float[B, S, {size}] x")
        dims = None if size == "1" else {"D": DimRange(4, 4)}
        check_pass(FuseBiasGelu(), text, count=0, weights=BIAS, dims=dims)


def test_a_matrix_is_no_bias() -> None:
    text = graph("a = Add (x, b)  y = Gelu (a)", x="float[B, S, 4] x, float[S, 4] b")
    check_pass(FuseBiasGelu(), text, count=0)


def test_sum_used_elsewhere_stays() -> None:
    context = Context()
    text = graph("a = Add (x, bias)  y = Gelu (a)", y="float[B, S, 4] y, float[B, S, 4] a")
    check_pass(FuseBiasGelu(), text, count=0, weights=BIAS, context=context)
    assert context.misses[0].why == "the Add inside is used elsewhere too"


def test_without_a_kernel_it_stays() -> None:
    context = Context(target=get_target("openvino"))
    check_pass(FuseBiasGelu(), PLAIN, count=0, weights=BIAS, context=context)
    assert context.misses[0].why == "target openvino has no com.microsoft::BiasGelu"


def test_float64_stays() -> None:
    context = Context()
    text = graph("a = Add (x, bias)  y = Gelu (a)", x="double[B, S, 4] x", y="double[B, S, 4] y")
    model = parse(text, weights={"bias": BIAS["bias"].astype(np.float64)})
    assert FuseBiasGelu().rewrite(model, context) == 0
    assert context.misses[0].why == "com.microsoft::BiasGelu does not take float64"


def test_bias_shared_by_two_stays_for_both() -> None:
    text = graph("a = Add (x, bias)  h = Gelu (a)  b = Add (h, bias)  y = Gelu (b)")
    model = check_pass(FuseBiasGelu(), text, ["BiasGelu", "BiasGelu"], count=2, weights=BIAS)
    assert list(model.graph.initializers) == ["bias"]


def test_inside_if_with_an_outer_bias() -> None:
    text = """
        g (bool c, float[N, 4] x) => (float[M, 4] y) <float[4] bias = {1.0, 2.0, 3.0, 4.0}> {
            y = If (c) <
                then_branch = t () => (float[M, 4] p) { a = Add (x, bias)  p = Gelu (a) },
                else_branch = e () => (float[M, 4] q) { q = Neg (x) }
            >
        }
    """
    model = check_pass(FuseBiasGelu(), text, count=1)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "BiasGelu", "Neg"]


def test_metadata_and_node_name() -> None:
    model = parse(PLAIN, weights=BIAS)
    add, gelu = model.graph
    add.metadata_props["scope"], gelu.metadata_props["scope"] = "dense", "act"
    gelu.name = "act_1"
    FuseBiasGelu().rewrite(model, Context())
    (node,) = model.graph
    assert node.name == "act_1"
    assert dict(node.metadata_props) == {"scope": "act", MADE_BY: "fuse-bias-gelu"}
