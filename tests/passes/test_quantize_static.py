"""quantize-static on Linears and tables: structure, misses, numbers."""

import numpy as np
import pytest

from burnish.errors import RecipeError
from burnish.passes.base import Context, Range
from burnish.passes.quantize.quantize_static import QuantizeStatic
from burnish.passes.recipe import Recipe
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 24)).astype(np.float32) * 0.2
B = RNG.standard_normal(24).astype(np.float32)


def context(bound: float = 4.0, **fields: object) -> Context:
    return Context(calibrate=lambda model, names: {name: Range(-bound, bound) for name in names}, **fields)


def test_matmul_with_bias() -> None:
    model = check_pass(
        QuantizeStatic(),
        before="""
            g (float[N, S, 16] x) => (float[N, S, 24] y) {
                m = MatMul (x, w)
                y = Add (m, b)
            }
        """,
        after="""
            [x_q] x_q = QuantizeLinear (x, x_scale, zero_uint8)
            [x_dq] x_dq = DequantizeLinear (x_q, x_scale, zero_uint8)
            [w_s8_dq] w_s8_dq = DequantizeLinear <axis: int = 1> (w_s8, w_scale, zeros_s8)
            m = MatMul (x_dq, w_s8_dq)
            [b_s32_dq] b_s32_dq = DequantizeLinear <axis: int = 0> (b_s32, b_scale)
            y = Add (m, b_s32_dq)
        """,
        count=1,
        context=context(),
        weights={"w": W, "b": B},
    )
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert set(arrays) == {
        "x_scale", "zero_uint8", "w_s8", "w_scale", "zeros_s8", "b_s32", "b_scale",
    }  # fmt: skip
    assert arrays["w_s8"].dtype == np.int8
    assert arrays["b_s32"].dtype == np.int32
    assert arrays["zero_uint8"] in (127, 128)
    np.testing.assert_array_equal(np.abs(arrays["w_s8"]).max(axis=0), 127)
    np.testing.assert_allclose(arrays["b_scale"], arrays["x_scale"] * arrays["w_scale"], rtol=1e-6)


@pytest.mark.parametrize("bias", ["b, m", "m, b"])
def test_bias_on_either_side_of_add(bias: str) -> None:
    text = f"g (float[N, 16] x) => (float[N, 24] y) {{ m = MatMul (x, w)  y = Add ({bias}) }}"
    check_pass(QuantizeStatic(), text, count=1, context=context(), weights={"w": W, "b": B})


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_keeps_its_form(trans_b: int) -> None:
    model = check_pass(
        QuantizeStatic(),
        f"g (float[N, 16] x) => (float[N, 24] y) {{ y = Gemm <transB = {trans_b}> (x, w, b) }}",
        after=[*["QuantizeLinear"], *["DequantizeLinear"] * 3, "Gemm"],
        count=1,
        context=context(),
        weights={"w": W.T.copy() if trans_b else W, "b": B},
    )
    weight = next(node for node in model.graph if node.outputs[0].name == "w_s8_dq")
    assert weight.attributes["axis"].as_int() == 1 - trans_b


def test_gemm_factors_are_folded() -> None:
    model = check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] y) { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
        count=1,
        context=context(),
        weights={"w": W, "b": B},
    )
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    assert not {"alpha", "beta"} & gemm.attributes.keys()


def test_readers_of_one_value_share_its_pair() -> None:
    model = check_pass(
        QuantizeStatic(),
        before="""
            g (float[N, 16] x) => (float[N, 24] p, float[N, 24] q, float[N, 16] r) {
                h = Tanh (x)
                p = MatMul (h, w)
                q = MatMul (h, v)
                r = Neg (h)
            }
        """,
        count=2,
        context=context(1.0),
        weights={"w": W, "v": W[::-1].copy()},
    )
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1
    reader = next(node for node in model.graph if node.op_type == "Neg")
    assert reader.inputs[0] is not None
    assert reader.inputs[0].name == "h"


def test_chain_of_linears_keeps_float_between() -> None:
    check_pass(
        QuantizeStatic(),
        before="""
            g (float[N, 16] x) => (float[N, 16] y) {
                a = MatMul (x, w)
                b = Relu (a)
                y = MatMul (b, v)
            }
        """,
        after=[
            "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Relu",
            "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul",
        ],
        count=2,
        context=context(8.0),
        weights={"w": W, "v": W.T.copy()},
    )  # fmt: skip


def test_weight_per_tensor_has_one_scale() -> None:
    model = check_pass(
        QuantizeStatic(weights="tensor"),
        "g (float[N, 16] x) => (float[N, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        count=1,
        context=context(),
        opset=11,
        weights={"w": W, "b": B},
    )
    assert model.graph.initializers["w_scale"].const_value.numpy().shape == ()


def test_reduced_range_leaves_a_bit_of_the_weight() -> None:
    model = check_pass(
        QuantizeStatic(reduce_range=True),
        "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }",
        count=1,
        context=context(),
        weights={"w": W},
    )
    stored = model.graph.initializers["w_s8"].const_value.numpy()
    np.testing.assert_array_equal(np.abs(stored).max(axis=0), 63)


def test_old_opset_has_no_channels() -> None:
    seen = context()
    check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }",
        count=0,
        context=seen,
        opset=11,
        weights={"w": W},
    )
    assert "Opset 11 has no QDQ per channel" in seen.misses[0].why


def test_without_calibration_nothing_and_said() -> None:
    seen = Context()
    text = "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }"
    check_pass(QuantizeStatic(), text, count=0, context=seen, weights={"w": W})
    assert "calibration" in seen.misses[0].why


def test_value_without_range_stays_float() -> None:
    seen = Context(calibrate=lambda model, names: {})
    text = "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }"
    check_pass(QuantizeStatic(), text, count=0, context=seen, weights={"w": W})
    assert "No calibrated range for 'x'" in seen.misses[0].why


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul (x, z)",  # two activations
        "m = Gemm <transA = 1> (x, u)",
        "m = Gemm (x, w, z)",  # the bias is computed
    ],
)
def test_not_a_linear(body: str) -> None:
    inputs = "float[16, 16] x, float[16, 16] z" if "MatMul" in body else "float[16, 16] x, float[24] z"
    text = f"g ({inputs}) => (float[16, K] y) {{ {body}  y = Neg (m) }}"
    weights = {"w": W, "u": W}
    used = {name: array for name, array in weights.items() if f", {name}" in body}
    check_pass(QuantizeStatic(), text, count=0, context=context(), weights=used)


def test_half_precision_is_said() -> None:
    seen = context()
    text = "g (float16[N, 16] x) => (float16[N, 24] y) { y = MatMul (x, w) }"
    check_pass(QuantizeStatic(), text, count=0, context=seen, weights={"w": W.astype(np.float16)})
    assert "FLOAT16" in seen.misses[0].why


def test_add_of_a_full_matrix_is_no_bias() -> None:
    model = check_pass(
        QuantizeStatic(),
        "g (float[1, 16] x) => (float[4, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        count=1,
        context=context(),
        weights={"w": W, "b": RNG.standard_normal((4, 24)).astype(np.float32)},
    )
    add = next(node for node in model.graph if node.op_type == "Add")
    assert add.inputs[1] is not None
    assert add.inputs[1].name == "b"


def test_product_that_is_an_output_keeps_its_bias_float() -> None:
    model = check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] m, float[N, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        count=1,
        context=context(),
        weights={"w": W, "b": B},
    )
    assert "b" in model.graph.initializers


def test_excluded_by_name() -> None:
    model = parse(
        "g (float[N, 16] x) => (float[N, 24] p, float[N, 24] q) { p = MatMul (x, w)  q = MatMul (x, v) }",
        weights={"w": W, "v": W},
    )
    for node in model.graph:
        node.name = f"/layer/{node.outputs[0].name}"
    after = check_pass(QuantizeStatic(exclude="/layer/p|other"), model, count=1, context=context())
    assert "w" in after.graph.initializers
    assert "v_s8" in after.graph.initializers


def test_bad_exclude_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="exclude"):
        QuantizeStatic(exclude="(")


def test_options_round_trip_as_text() -> None:
    text = "quantize-static{weights=tensor,exclude=/head.*,embeddings=false,min_speedup=1.2}"
    assert str(Recipe.parse(text)) == text


def test_huge_bias_raises_the_weight_scale() -> None:
    bias = B.copy()
    bias[3] = 1e7
    model = check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        count=1,
        context=context(1e-3),
        weights={"w": W, "b": bias},
    )
    stored = model.graph.initializers["b_s32"].const_value.numpy()
    assert np.abs(stored).max() == 2**30


def test_all_zero_weight_and_range() -> None:
    check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        count=1,
        context=context(0.0),
        weights={"w": np.zeros_like(W), "b": B},
    )
