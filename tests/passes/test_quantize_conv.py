"""quantize-static on Convs and the ops between them."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.base import Context, Range
from burnish.passes.quantize.quantize_static import QuantizeStatic
from burnish.target import TARGETS
from burnish.testing import check_pass

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.4).astype(np.float32)


def context(bounds: Mapping[str, tuple[float, float]] = {}, **fields: object) -> Context:
    def calibrate(model: ir.Model, names: list[str]) -> dict[str, Range]:
        return {name: Range(*bounds.get(name, (-4.0, 4.0))) for name in names}

    return Context(calibrate=calibrate, **fields)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_conv_rounds_its_output() -> None:
    model = check_pass(
        QuantizeStatic(),
        "g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w, b) }",
        after="""
            [x_q] x_q = QuantizeLinear (x, x_scale, zero_uint8)
            [x_dq] x_dq = DequantizeLinear (x_q, x_scale, zero_uint8)
            [w_s8_dq] w_s8_dq = DequantizeLinear <axis: int = 0> (w_s8, w_scale, zeros_s8)
            [b_s32_dq] b_s32_dq = DequantizeLinear <axis: int = 0> (b_s32, b_scale)
            y_float = Conv (x_dq, w_s8_dq, b_s32_dq)
            [y_float_q] y_float_q = QuantizeLinear (y_float, y_scale, zero_uint8)
            [y_float_dq] y = DequantizeLinear (y_float_q, y_scale, zero_uint8)
        """,
        count=1,
        context=context({"y": (-8.0, 8.0)}),
        weights={"w": normal(4, 3, 3, 3), "b": normal(4)},
    )
    assert model.graph.initializers["w_scale"].const_value.numpy().shape == (4,)


@pytest.mark.parametrize(
    ("activation", "bounds", "stays"),
    [
        ("Relu (c)", (0.0, 9.0), False),
        ("Relu (c)", (-1.0, 9.0), True),  # a range that was edited: the Relu is still needed
        ("Clip (c, zero, six)", (0.0, 6.0), False),
        ("Clip (c, zero, six)", (0.0, 7.0), True),
        ("Clip (c, , six)", (-2.0, 6.0), False),
    ],
)
def test_relu_and_clip_become_the_range(activation: str, bounds: tuple[float, float], stays: bool) -> None:
    model = check_pass(
        QuantizeStatic(),
        f"""
            g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)
                <float zero = {{0.0}}, float six = {{6.0}}>
            {{ c = Conv (x, w)  y = {activation} }}
        """,
        count=1,
        context=context({"y": bounds}),
        weights={"w": normal(4, 3, 3, 3)},
    )
    assert ("Relu" in ops(model) or "Clip" in ops(model)) is stays
    assert model.graph.outputs[0].name == "y"


RESIDUAL = """
    g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        r = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (r, w2)
        s = Add (b, r)
        t = Relu (s)
        y = Conv <pads = [1, 1, 1, 1]> (t, w3)
    }
"""
THREE = {"w1": normal(4, 4, 3, 3), "w2": normal(4, 4, 3, 3), "w3": normal(4, 4, 3, 3)}
WIDE = {"r": (0.0, 9.0), "b": (-20.0, 20.0), "t": (0.0, 25.0), "y": (-40.0, 40.0)}


def test_residual_add_is_int8() -> None:
    model = check_pass(QuantizeStatic(), RESIDUAL, count=4, context=context(WIDE), weights=THREE)
    assert "Relu" not in ops(model)
    assert ops(model).count("QuantizeLinear") == 5  # x, r, b, t, y
    add = next(node for node in model.graph if node.op_type == "Add")
    assert [value.producer().op_type for value in add.inputs] == ["DequantizeLinear"] * 2


def test_add_without_int8_reader_stays_float() -> None:
    model = check_pass(
        QuantizeStatic(),
        """
            g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
                a = Conv <pads = [1, 1, 1, 1]> (x, w1)
                b = Conv <pads = [1, 1, 1, 1]> (a, w2)
                s = Add (a, b)
                y = Tanh (s)
            }
        """,
        count=2,
        context=context(WIDE),
        weights={"w1": THREE["w1"], "w2": THREE["w2"]},
    )
    after = ops(model)
    assert after[after.index("Add") + 1] == "Tanh"


def test_copies_share_parameters() -> None:
    model = check_pass(
        QuantizeStatic(),
        """
            g (float[N, 3, 8, 8] x) => (float[N, 5] y) <int64[2] shape = {0, -1}> {
                c = Conv <pads = [1, 1, 1, 1]> (x, w)
                p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
                f = Reshape (p, shape)
                y = Gemm (f, v, b)
            }
        """,
        count=4,
        context=context({"c": (-6.0, 6.0)}),
        weights={"w": normal(4, 3, 3, 3), "v": normal(64, 5), "b": normal(5)},
    )
    quantized = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert len(quantized) == 4
    assert {node.inputs[1].name for node in quantized[1:]} == {"c_scale"}


def test_copy_to_a_float_reader_stays_float() -> None:
    model = check_pass(
        QuantizeStatic(),
        """
            g (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) {
                c = Conv <pads = [1, 1, 1, 1]> (x, w)
                p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)
                y = Tanh (p)
            }
        """,
        count=1,
        context=context(),
        weights={"w": normal(4, 3, 3, 3)},
    )
    assert ops(model)[-2:] == ["MaxPool", "Tanh"]


def test_silu_is_split_into_int8_ops() -> None:
    model = check_pass(
        QuantizeStatic(),
        """
            g (float[N, 4, 8, 8] x) => (float[N, 4, 4, 4] y) {
                c = Conv (x, w1)
                s = Sigmoid (c)
                m = Mul (c, s)
                y = Conv (m, w2)
            }
        """,
        count=4,
        context=context({"s": (0.0, 1.0), "c": (-9.0, 9.0), "m": (-0.3, 9.0), "y": (-20.0, 20.0)}),
        weights={"w1": THREE["w1"], "w2": THREE["w2"]},
    )
    assert ops(model).count("QuantizeLinear") == 5


def test_depthwise_one_dimensional_and_biasless() -> None:
    check_pass(
        QuantizeStatic(),
        "g (float[N, 4, 16] x) => (float[N, 4, 14] y) { y = Conv <group = 4> (x, w) }",
        count=1,
        context=context(),
        weights={"w": normal(4, 1, 3)},
    )


def test_computed_weight_is_said() -> None:
    seen = context()
    check_pass(
        QuantizeStatic(),
        "g (float[N, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }",
        count=0,
        context=seen,
    )
    assert "not constant" in seen.misses[0].why


def test_excluded_conv_breaks_the_chain() -> None:
    from burnish.testing import parse

    model = parse(RESIDUAL, weights=THREE)
    for node in model.graph:
        node.name = f"n/{node.outputs[0].name}"
    after = check_pass(QuantizeStatic(exclude="n/b"), model, count=2, context=context(WIDE))
    assert "w2" in after.graph.initializers
    assert "Relu" in ops(after)  # of the Add, which is float now


def test_target_that_rounds_inputs_only() -> None:
    model = check_pass(
        QuantizeStatic(),
        RESIDUAL,
        count=3,
        context=context(WIDE, target=TARGETS["tensorrt"]),
        weights=THREE,
    )
    assert ops(model).count("QuantizeLinear") == 3
    assert ops(model).count("Relu") == 2


@pytest.mark.parametrize("limit", range(5))
def test_every_prefix_of_a_residual_net_is_whole(limit: int) -> None:
    from burnish.model import to_bytes
    from burnish.runtime.reference import Reference
    from burnish.testing import parse

    model = parse(RESIDUAL, weights=THREE)
    assert QuantizeStatic().rewrite(model, context(WIDE, limit=limit)) == min(limit, 4)
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    assert Reference(to_bytes(model))({"x": x})["y"].shape == (1, 4, 8, 8)
