import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fold_batch_norm import FoldBatchNorm
from burnish.passes.matching import MADE_BY
from burnish.testing import check_pass, parse

NORM = "BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, variance)"


def arrays(channels: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes |= dict.fromkeys(("gamma", "beta", "mean", "variance"), (channels,))
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {"variance": np.abs(found["variance"]) + np.float32(0.5)}


def image(nodes: str, channels: int = 4, out: int = 6, y: str | None = None) -> str:
    result = y or f"float[N, {out}, H2, W2] y"
    return f"g (float[N, {channels}, 8, 8] x) => ({result}) {{ {nodes} }}"


def rows(nodes: str, x: str = "float[N, 3] x", y: str = "float[N, 5] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


@pytest.mark.parametrize("group", [1, 2])
def test_conv_with_bias(group: int) -> None:
    model = check_pass(
        FoldBatchNorm(),
        image(f"c = Conv <group = {group}, pads = [1, 1, 1, 1]> (x, w, b)  y = {NORM}"),
        ["Conv"],
        count=1,
        weights=arrays(6, w=(6, 4 // group, 3, 3), b=(6,)),
    )
    assert sorted(model.graph.initializers) == ["b_folded", "w_folded"]
    assert model.graph.node(0).attributes.get_ints("pads") == (1, 1, 1, 1)


def test_conv_without_bias_gets_one() -> None:
    model = check_pass(
        FoldBatchNorm(), image(f"c = Conv (x, w)  y = {NORM}"), ["Conv"], count=1,
        weights=arrays(6, w=(6, 4, 3, 3)),
    )  # fmt: skip
    assert [value.name for value in model.graph.node(0).inputs] == ["x", "w_folded", "w_folded_bias"]


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(group: int) -> None:
    check_pass(
        FoldBatchNorm(),
        image(f"c = ConvTranspose <group = {group}> (x, w)  y = {NORM}"),
        ["ConvTranspose"],
        count=1,
        weights=arrays(6, w=(4, 6 // group, 3, 3)),
    )


@pytest.mark.parametrize("bias", [(5,), (1, 5), (1,), ()], ids=str)
def test_gemm_with_alpha_and_beta(bias: tuple[int, ...]) -> None:
    model = check_pass(
        FoldBatchNorm(),
        rows(f"c = Gemm <alpha = 0.5, beta = 3.0> (x, w, b)  y = {NORM}"),
        ["Gemm"],
        count=1,
        weights=arrays(5, w=(3, 5), b=bias),
    )
    assert "beta" not in model.graph.node(0).attributes


def test_gemm_transposed_without_bias() -> None:
    text = rows(f"c = Gemm <transB = 1> (x, w)  y = {NORM}")
    check_pass(FoldBatchNorm(), text, ["Gemm"], count=1, weights=arrays(5, w=(5, 3)))


def test_matmul_becomes_gemm() -> None:
    text = rows(f"c = MatMul (x, w)  y = {NORM}")
    check_pass(FoldBatchNorm(), text, ["Gemm"], count=1, weights=arrays(5, w=(3, 5)))


def test_two_norms_in_a_row() -> None:
    text = image(f"c = Conv (x, w)  d = {NORM}  y = {NORM.replace('(c', '(d')}")
    check_pass(FoldBatchNorm(), text, ["Conv"], count=2, weights=arrays(6, w=(6, 4, 3, 3)))


def test_shared_weights_are_kept_for_the_other() -> None:
    weights = arrays(6, w=(6, 4, 3, 3), b=(6,))
    text = image(f"c = Conv (x, w, b)  n = {NORM}  o = Conv (x, w, b)  y = Add (n, o)")
    model = check_pass(FoldBatchNorm(), text, ["Conv", "Conv", "Add"], count=1, weights=weights)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weights["w"])
    assert sorted(model.graph.initializers) == ["b", "b_folded", "w", "w_folded"]


def stays(text: str, why: str | None, weights: dict[str, np.ndarray], opset: int = 20) -> None:
    context = Context()
    check_pass(FoldBatchNorm(), text, count=0, weights=weights, context=context, opset=opset)
    assert [miss.why for miss in context.misses] == ([] if why is None else [why])


def test_result_used_elsewhere_stays() -> None:
    text = image(f"c = Conv (x, w)  n = {NORM}  r = Relu (c)  y = Add (n, r)")
    stays(text, "the Conv inside is used elsewhere too", arrays(6, w=(6, 4, 3, 3)))


def test_weights_that_are_inputs_stay() -> None:
    text = image(f"c = Conv (x, w)  y = {NORM}").replace(") =>", ", float[6, 4, 3, 3] w) =>")
    stays(text, "the weights of the Conv are not constant", arrays(6))


def test_training_mode_stays() -> None:
    norm = NORM.replace("<", "<training_mode = 1, ")
    text = image(f"c = Conv (x, w)  y, m, v = {norm}")
    model = parse(text, weights=arrays(6, w=(6, 4, 3, 3)))
    context = Context()
    assert FoldBatchNorm().rewrite(model, context) == 0
    assert context.misses[0].why == "the normalisation is in training mode"


def test_matmul_of_rank_3_stays() -> None:
    text = rows(f"c = MatMul (x, w)  y = {NORM}", x="float[N, 5, 3] x", y="float[N, 5, 5] y")
    why = "channels are the second axis, which a MatMul sums into only at rank 2"
    stays(text, why, arrays(5, w=(3, 5)))


def test_norm_after_something_else_stays() -> None:
    stays(image(f"c = Relu (x)  y = {NORM}", out=4), None, arrays(4))


def test_inside_if_and_function() -> None:
    weights = arrays(6, w=(6, 4, 3, 3))
    text = """
        <ir_version: 10, opset_import: ["": 20, "f": 1]>
        g (bool p, float[N, 4, 8, 8] x) => (float[M, 2, 6, 6] y)
        <float[6] gamma = {1., 2., 3., 4., 5., 6.}, float[6] beta = {1., 2., 3., 4., 5., 6.},
         float[6] mean = {1., 2., 3., 4., 5., 6.}, float[6] variance = {1., 2., 3., 4., 5., 6.}> {
            h = If (p) <
                then_branch = t () => (float[M, 6, 6, 6] a) { c = Conv (x, w)  a = NORM },
                else_branch = e () => (float[M, 6, 6, 6] d) { d = Conv (x, w) }
            >
            y = f.small (h)
        }
        <domain: "f", opset_import: ["": 20]>
        small (x) => (y) {
            w = Constant <value = float[2, 6, 1, 1] {1., 2., 3., 4., 5., 6., 6., 5., 4., 3., 2., 1.}> ()
            s = Constant <value = float[2] {2.0, 3.0}> ()
            c = Conv (x, w)
            y = BatchNormalization (c, s, s, s, s)
        }
    """.replace("NORM", NORM)
    model = check_pass(FoldBatchNorm(), parse(text, weights={"w": weights["w"]}), count=2)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Conv", "Conv", "small"]
    function = next(iter(model.functions.values()))
    assert [node.op_type for node in function] == ["Constant", "Constant", "Conv"]
    assert sorted(model.graph.initializers) == ["w", "w_folded", "w_folded_bias"]


def test_metadata_and_name() -> None:
    model = parse(image(f"c = Conv (x, w)  y = {NORM}"), weights=arrays(6, w=(6, 4, 3, 3)))
    model.graph.node(0).metadata_props["from"] = "conv"
    model.graph.node(0).name, model.graph.node(1).name = "conv", "bn"
    FoldBatchNorm().rewrite(model, Context())
    (node,) = model.graph
    assert node.name == "conv"
    assert dict(node.metadata_props) == {"from": "conv", MADE_BY: "fold-batch-norm"}


@pytest.mark.parametrize(("dtype", "variance"), [("float16", 1e-6), ("float", 0.0)])
def test_weights_that_would_overflow_stay(dtype: str, variance: float) -> None:
    kind = np.float16 if dtype == "float16" else np.float32
    given = {name: np.ones(2, kind) for name in ("gamma", "beta", "mean")}
    weights = {"w": np.full((2, 2, 1), 3000, kind), **given, "variance": np.full(2, variance, kind)}
    norm = NORM.replace("0.01", "0.0")
    text = f"g ({dtype}[N, 2, 3] x) => ({dtype}[N, 2, 3] y) {{ c = Conv (x, w)  y = {norm} }}"
    context = Context()
    assert FoldBatchNorm().rewrite(parse(text, weights=weights), context) == 0
    assert [miss.why for miss in context.misses] == [
        "the constants do not fit each other, or overflow together"
    ]
