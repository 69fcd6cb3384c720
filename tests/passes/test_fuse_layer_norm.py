import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_layer_norm import FuseLayerNorm
from burnish.passes.matching import MADE_BY
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

WEIGHTS = {
    "two": np.float32(2.0), "eps": np.float32(1e-5), "one": np.float32(1.0),
    "half": np.float32(0.5), "minus": np.float32(-0.5),
    "scale": np.linspace(0.5, 1.5, 4, dtype=np.float32),
    "bias": np.linspace(-1.0, 1.0, 4, dtype=np.float32),
}  # fmt: skip
HEAD = """
    m = ReduceMean <axes = [-1]> (x)  d = Sub (x, m)  q = Pow (d, two)
    v = ReduceMean <axes = [-1]> (q)  e = Add (v, eps)  r = Sqrt (e)
"""
FORMS = {
    "torch": HEAD + "n = Div (d, r)  w = Mul (n, scale)  y = Add (w, bias)",
    "operands swapped": HEAD.replace("(v, eps)", "(eps, v)")
    + "n = Div (d, r)  w = Mul (scale, n)  y = Add (bias, w)",
    "square by Mul": HEAD.replace("Pow (d, two)", "Mul (d, d)")
    + "n = Div (d, r)  w = Mul (n, scale)  y = Add (w, bias)",
    "two subtractions": HEAD + "f = Sub (x, m)  n = Div (f, r)  w = Mul (n, scale)  y = Add (w, bias)",
    "Reciprocal": HEAD + "i = Reciprocal (r)  n = Mul (d, i)  w = Mul (n, scale)  y = Add (w, bias)",
    "one divided": HEAD + "i = Div (one, r)  n = Mul (i, d)  w = Mul (n, scale)  y = Add (w, bias)",
    "Pow -0.5": HEAD.replace("Sqrt (e)", "Pow (e, minus)")
    + "n = Mul (d, r)  w = Mul (n, scale)  y = Add (w, bias)",
    "Pow 0.5": HEAD.replace("Sqrt (e)", "Pow (e, half)")
    + "n = Div (d, r)  w = Mul (n, scale)  y = Add (w, bias)",
    "scale on the inverse": HEAD
    + "i = Reciprocal (r)  s = Mul (i, scale)  n = Mul (d, s)  y = Add (n, bias)",
    "Keras": HEAD
    + """i = Reciprocal (r)  s = Mul (i, scale)  a = Mul (x, s)  b = Mul (m, s)
         c = Sub (bias, b)  y = Add (c, a)""",
}


def graph(nodes: str, x: str = "float[B, S, 4] x", y: str = "float[B, S, 4] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in WEIGHTS.items() if f"{name})" in nodes or f"{name}," in nodes}


@pytest.mark.parametrize("nodes", FORMS.values(), ids=FORMS)
def test_forms(nodes: str) -> None:
    model = check_pass(
        FuseLayerNorm(), graph(nodes), ["LayerNormalization"], count=1, opset=17, weights=used(nodes)
    )
    node = model.graph.node(0)
    assert [value.name for value in node.inputs] == ["x", "scale", "bias"]
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-5)
    assert node.attributes.get_int("axis") == -1
    assert sorted(model.graph.initializers) == ["bias", "scale"]


def test_axes_as_input() -> None:
    nodes = FORMS["torch"].replace("<axes = [-1]> (x)", "(x, axes)").replace("<axes = [-1]> (q)", "(q, axes)")
    for axes in ([-1], [2]):
        weights = used(nodes) | {"axes": np.array(axes, np.int64)}
        check_pass(FuseLayerNorm(), graph(nodes), ["LayerNormalization"], count=1, weights=weights)


def test_without_scale_and_bias() -> None:
    nodes = HEAD + "y = Div (d, r)"
    model = check_pass(FuseLayerNorm(), graph(nodes), count=1, opset=17, weights=used(nodes))
    node = model.graph.node(0)
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), np.ones(4, np.float32))
    assert len(node.inputs) == 2


def test_without_scale_the_size_must_be_known() -> None:
    context, nodes = Context(), HEAD + "y = Div (d, r)"
    text = graph(nodes, x="float[B, S, D] x", y="float[B, S, D] y")
    check_pass(FuseLayerNorm(), text, count=0, opset=17, weights=used(nodes), context=context)
    assert context.misses[0].why == "without a scale, the size of the last axis must be known"


def test_scale_that_differs_by_position_stays_outside() -> None:
    nodes = HEAD + "n = Div (d, r)  y = Mul (n, z)"
    text = graph(nodes, x="float[B, S, 4] x, float[B, S, 4] z")
    check_pass(FuseLayerNorm(), text, ["LayerNormalization", "Mul"], count=1, opset=17, weights=used(nodes))


def test_scale_with_leading_ones_becomes_a_vector() -> None:
    nodes = FORMS["torch"]
    weights = used(nodes) | {"scale": WEIGHTS["scale"].reshape(1, 1, 4)}
    model = check_pass(FuseLayerNorm(), graph(nodes), count=1, opset=17, weights=weights)
    assert model.graph.node(0).inputs[1].shape == (4,)


def test_below_opset_17_it_is_onnxruntimes() -> None:
    nodes = FORMS["torch"]
    check_pass(FuseLayerNorm(), graph(nodes), ["LayerNormalization"], count=1, opset=11, weights=used(nodes))


def test_below_opset_17_other_targets_keep_the_arithmetic() -> None:
    nodes, context = FORMS["torch"], Context(target=TARGETS["openvino"])
    check_pass(FuseLayerNorm(), graph(nodes), count=0, opset=16, weights=used(nodes), context=context)
    assert context.misses[0].why == "target openvino has no LayerNormalization at opset 16"


def test_another_axis_stays() -> None:
    context, nodes = Context(), FORMS["torch"].replace("[-1]", "[1]")
    text = graph(nodes, x="float[B, 4, 4] x", y="float[B, 4, 4] y")
    check_pass(FuseLayerNorm(), text, count=0, opset=17, weights=used(nodes), context=context)
    assert context.misses[0].why == "normalises over axes [1], not over the last one only"


def test_inner_value_used_elsewhere_stays() -> None:
    context, nodes = Context(), FORMS["torch"]
    text = graph(nodes, y="float[B, S, 4] y, float[B, S, 1] v")
    check_pass(FuseLayerNorm(), text, count=0, opset=17, weights=used(nodes), context=context)
    assert context.misses[0].why == "the ReduceMean inside is used elsewhere too"


def test_a_variance_of_something_else_is_not_one() -> None:
    context, nodes = Context(), FORMS["torch"].replace("(d, two)", "(x, two)")
    check_pass(FuseLayerNorm(), graph(nodes), count=0, opset=17, weights=used(nodes), context=context)
    assert context.misses == []


def test_inside_loop_body_and_function() -> None:
    text = f"""
        <ir_version: 10, opset_import: ["": 17, "f": 1]>
        g (int64 n, bool c, float[2, 4] a) => (float[2, 4] z)
        <float two = {{2.0}}, float eps = {{0.00001}}, float[4] scale = {{1.0, 2.0, 3.0, 4.0}}> {{
            h = f.norm (a)
            z = Loop (n, c, h) <body = b (int64 i, bool k, float[2, 4] x) => (bool l, float[2, 4] y) {{
                l = Identity (k) {HEAD} n0 = Div (d, r)  y = Mul (n0, scale)
            }}>
        }}
        <domain: "f", opset_import: ["": 17]>
        norm (x0) => (y) {{
            w = Constant <value = float[4, 4] {{1, 2, 0, 1, 0, 2, 0, 1, 3, 3, 3, 1, 2, 2, 1, 2}}> ()
            x = MatMul (x0, w)
            two = Constant <value = float {{2.0}}> ()
            eps = Constant <value = float {{0.00001}}> ()
            s = Constant <value = float[4] {{1.0, 2.0, 3.0, 4.0}}> ()
            {HEAD}
            n = Div (d, r)  y = Mul (n, s)
        }}
    """
    model = check_pass(FuseLayerNorm(), parse(text), count=2)
    ops = [node.op_type for node in model.graph.all_nodes()]
    assert ops == ["norm", "Loop", "Identity", "LayerNormalization"]
    function = next(iter(model.functions.values()))
    assert [node.op_type for node in function] == ["Constant", "MatMul", "Constant", "LayerNormalization"]


@pytest.mark.parametrize("last", ["Mul (n, n)", "Add (n, n)", "Mul (n, d)"])
def test_a_step_of_the_pattern_is_no_scale_of_it(last: str) -> None:
    text = f"g (float[4] x) => (float[4] y) {{ {HEAD} n = Div (d, r)  y = {last} }}"
    count = last != "Mul (n, d)"
    check_pass(FuseLayerNorm(), text, count=count, weights=used(text), opset=17)


def test_a_scale_may_spread_an_axis_that_is_1_at_run_time() -> None:
    text = f"g (float[N, K] x) => (float[N, L] y) {{ {HEAD} n = Div (d, r)  y = Mul (n, scale) }}"
    assert FuseLayerNorm().rewrite(parse(text, weights=used(text), opset=17), Context()) == 0


def test_metadata_is_merged_and_names_the_pass() -> None:
    nodes = FORMS["torch"]
    model = parse(graph(nodes), weights=used(nodes), opset=17)
    for node in model.graph:
        node.metadata_props[node.op_type] = "seen"
    assert FuseLayerNorm().rewrite(model, Context()) == 1
    metadata = model.graph.node(0).metadata_props
    assert metadata[MADE_BY] == "fuse-layer-norm"
    assert {"ReduceMean", "Sqrt", "Add"} <= metadata.keys()
