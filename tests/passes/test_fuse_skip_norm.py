import numpy as np
import pytest

from burnish.manifest import DimRange
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_skip_norm import FuseSkipNorm
from burnish.passes.matching import MADE_BY
from burnish.target import get_target
from burnish.testing import check_pass, parse

WEIGHTS = {
    "scale": np.linspace(0.5, 1.5, 4, dtype=np.float32),
    "shift": np.linspace(-1.0, 1.0, 4, dtype=np.float32),
    "bias": np.linspace(2.0, 1.0, 4, dtype=np.float32),
}
XS = "float[B, S, 4] x, float[B, S, 4] s"
NORM = "y = LayerNormalization <axis = -1, epsilon = 0.001> (a, scale, shift)"

SAME = {"S": DimRange(5, 5), "T": DimRange(5, 5)}


def graph(nodes: str, x: str = XS, y: str = "float[B, S, 4] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


def weights(text: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in WEIGHTS.items() if name in text}


def fuse(text: str, after: str, **options: object) -> None:
    check_pass(FuseSkipNorm(), text, after, count=1, weights=weights(text), **options)


def stays(text: str, why: str, **options: object) -> None:
    context = Context()
    given = weights(text) | options.pop("weights", {})
    check_pass(FuseSkipNorm(), text, count=0, weights=given, context=context, **options)
    assert [miss.why for miss in context.misses] == [why]


def test_sum_and_norm() -> None:
    fuse(
        graph("a = Add (x, s) " + NORM),
        "y = com.microsoft.SkipLayerNormalization <epsilon: float = 0.001> (x, s, scale, shift)",
    )


def test_rank_2_without_shift() -> None:
    fuse(
        graph(
            "a = Add (x, s)  y = LayerNormalization (a, scale)",
            x="float[N, 4] x, float[N, 4] s",
            y="float[N, 4] y",
        ),
        "y = com.microsoft.SkipLayerNormalization <epsilon: float = 1e-05> (x, s, scale)",
    )


@pytest.mark.parametrize("operands", ["l, s", "s, l"])
def test_bias_of_the_linear_before_goes_along(operands: str) -> None:
    fuse(
        graph(f"l = Add (bias, x)  a = Add ({operands}) " + NORM),
        "y = com.microsoft.SkipLayerNormalization <epsilon: float = 0.001> (x, s, scale, shift, bias)",
    )


def test_a_biased_value_added_to_itself_keeps_its_add() -> None:
    """Found by random graphs: the Add was taken along, and read as the other summand."""
    model = check_pass(
        FuseSkipNorm(), graph(f"l = Add (x, bias)  a = Add (l, l)  {NORM}", x="float[B, S, 4] x"),
        ["Add", "SkipLayerNormalization"], count=1, weights=WEIGHTS,
    )  # fmt: skip
    assert [len(node.inputs) for node in model.graph] == [2, 4]


def test_bias_without_shift() -> None:
    fuse(
        graph("l = Add (x, bias)  a = Add (l, s)  y = LayerNormalization (a, scale)"),
        'y = com.microsoft.SkipLayerNormalization <epsilon: float = 1e-05> (x, s, scale, "", bias)',
    )


def test_biased_value_used_elsewhere_keeps_its_add() -> None:
    fuse(
        graph("l = Add (x, bias)  a = Add (l, s) " + NORM, y="float[B, S, 4] y, float[B, S, 4] l"),
        """
            l = Add (x, bias)
            y = com.microsoft.SkipLayerNormalization <epsilon: float = 0.001> (l, s, scale, shift)
        """,
    )


def test_sum_used_later_becomes_the_fourth_output() -> None:
    fuse(
        graph("a = Add (x, s)  z = Relu (a) " + NORM + " o = Add (y, z)", y="float[B, S, 4] o"),
        """
            y, "", "", a = com.microsoft.SkipLayerNormalization <epsilon: float = 0.001> (x, s, scale, shift)
            z = Relu (a)
            o = Add (y, z)
        """,
    )


def test_sum_that_is_a_graph_output() -> None:
    model = parse(graph("a = Add (x, s) " + NORM, y="float[B, S, 4] a, float[B, S, 4] y"), weights=WEIGHTS)
    check_pass(FuseSkipNorm(), model, ["SkipLayerNormalization"], count=1)


def test_rms_normalization() -> None:
    norm = "y = RMSNormalization <epsilon = 0.001> (a, scale)"
    fuse(
        graph("a = Add (x, s) " + norm),
        "y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon: float = 0.001> (x, s, scale)",
        opset=23,
    )
    fuse(
        graph("l = Add (x, bias)  a = Add (s, l) " + norm),
        """
            y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon: float = 0.001>
            (x, s, scale, bias)
        """.replace("\n            (", " ("),
        opset=23,
    )


def test_broadcast_sum_stays() -> None:
    why = "the two summands do not provably have one shape"
    stays(graph("a = Add (x, s) " + NORM, x="float[B, S, 4] x, float[1, S, 4] s"), why)
    stays(graph("a = Add (x, s) " + NORM, x="float[B, S, 4] x, float[B, T, 4] s"), why, dims=SAME)
    stays(graph("a = Add (x, bias) " + NORM, x="float[B, S, 4] x"), why)


def test_rank_4_stays() -> None:
    sizes = "float[A, B, S, 4]"
    stays(
        graph("a = Add (x, s) " + NORM, x=f"{sizes} x, {sizes} s", y=f"{sizes} y"),
        "com.microsoft::SkipLayerNormalization takes rank 2 or 3, not 4",
    )


def test_scale_must_be_a_constant_vector() -> None:
    why = "scale and bias must be constant vectors"
    text = graph("a = Add (x, s) " + NORM.replace("scale", "k").replace("shift", "shift"))
    stays(text, why, weights={"k": np.ones((1, 1, 4), np.float32)})
    moving = graph(
        "a = Add (x, s)  k = ReduceMax <keepdims = 0> (a, axes) " + NORM.replace("scale", "k"),
    )
    stays(moving, why, weights={"axes": np.array([0, 1], np.int64)})


def test_more_axes_stay() -> None:
    norm = NORM.replace("-1", "1").replace("scale", "k").replace("shift", "k")
    stays(
        graph("a = Add (x, s) " + norm, x="float[B, 2, 4] x, float[B, 2, 4] s", y="float[B, 2, 4] y"),
        "normalises over more than the last axis",
        weights={"k": np.ones((2, 4), np.float32)},
    )


def test_mean_that_is_used_stays() -> None:
    text = graph(
        "a = Add (x, s)  y, m = LayerNormalization (a, scale)", y="float[B, S, 4] y, float[B, S, 1] m"
    )
    stays(text, "its mean or deviation is used")


def test_without_a_kernel_it_stays() -> None:
    context = Context(target=get_target("openvino"))
    text = graph("a = Add (x, s) " + NORM)
    check_pass(FuseSkipNorm(), text, count=0, weights=weights(text), context=context)
    assert context.misses[0].why == "target openvino has no com.microsoft::SkipLayerNormalization"


def test_unnamed_dims_prove_nothing() -> None:
    text = graph("a = Add (x, s) " + NORM, x="float[?, S, 4] x, float[?, S, 4] s")
    assert FuseSkipNorm().rewrite(parse(text, weights=WEIGHTS), Context()) == 0


def test_inside_if_but_not_in_a_function_without_shapes() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20, "f": 1]>
        g (bool c, float[N, 4] x, float[N, 4] s) => (float[M, 4] y) <float[4] k = {1.0, 2.0, 3.0, 4.0}> {
            y = If (c) <
                then_branch = t () => (float[M, 4] p) { a = Add (x, s)  p = LayerNormalization (a, k) },
                else_branch = e () => (float[M, 4] q) { q = f.norm (x, s) }
            >
        }
        <domain: "f", opset_import: ["": 20]>
        norm (x, s) => (y) {
            k = Constant <value = float[4] {4.0, 3.0, 2.0, 1.0}> ()
            a = Add (x, s)
            y = LayerNormalization (a, k)
        }
    """
    context = Context()
    model = check_pass(FuseSkipNorm(), parse(text), count=1, context=context)
    assert [miss.why for miss in context.misses] == ["the two summands do not provably have one shape"]
    assert [n.op_type for n in model.graph.all_nodes()] == ["If", "SkipLayerNormalization", "norm"]


def test_metadata_of_all_three_is_kept() -> None:
    text = graph("l = Add (x, bias)  a = Add (l, s) " + NORM)
    model = parse(text, weights=weights(text))
    for node in model.graph:
        node.metadata_props[f"was {node.outputs[0].name}"] = "yes"
    FuseSkipNorm().rewrite(model, Context())
    (node,) = model.graph
    expected = {"was l": "yes", "was a": "yes", "was y": "yes", MADE_BY: "fuse-skip-norm"}
    assert dict(node.metadata_props) == expected
