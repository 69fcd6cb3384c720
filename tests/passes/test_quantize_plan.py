"""The plan: JSON that a person may edit; and the arithmetic under it."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.passes.base import Context, Range
from burnish.passes.quantize import numbers
from burnish.passes.quantize.lower_qdq import lower
from burnish.passes.quantize.plan import NodePlan, Plan, TensorPlan, decode_plan, encode_plan
from burnish.passes.quantize.quantize_static import QuantizeStatic
from burnish.target import TARGETS
from burnish.testing import parse, text_of

RNG = np.random.default_rng(0)
NET = """
    g (float[N, 16] x) => (float[N, 16] y) {
        a = MatMul (x, w1)
        b = Relu (a)
        y = MatMul (b, w2)
    }
"""
WEIGHTS = {name: RNG.standard_normal((16, 16)).astype(np.float32) for name in ("w1", "w2")}
CONTEXT = Context(calibrate=lambda model, names: {name: Range(-3.0, 5.0) for name in names})


def test_plan_round_trips() -> None:
    plan = QuantizeStatic().plan(parse(NET, weights=WEIGHTS), CONTEXT)
    assert decode_plan(encode_plan(plan)) == plan
    assert encode_plan(plan) == encode_plan(decode_plan(encode_plan(plan)))


def test_plan_says_modes_and_ranges() -> None:
    plan = QuantizeStatic().plan(parse(NET, weights=WEIGHTS), CONTEXT)
    assert [(node.value, node.op, node.mode) for node in plan.nodes] == [
        ("a", "MatMul", "static"),
        ("y", "MatMul", "static"),
    ]
    assert plan.tensors[:2] == (
        TensorPlan("x", "activation", low=-3.0, high=5.0),
        TensorPlan("w1", "weight", "channel", 1),
    )


def test_planning_changes_nothing() -> None:
    model = parse(NET, weights=WEIGHTS)
    before = text_of(model)
    QuantizeStatic().plan(model, CONTEXT)
    assert text_of(model) == before


def test_edited_plan_is_obeyed() -> None:
    model = parse(NET, weights=WEIGHTS)
    plan = decode_plan(
        encode_plan(QuantizeStatic().plan(model, CONTEXT)).replace(
            b'"mode": "static",\n      "op": "MatMul",\n      "value": "y"',
            b'"mode": "float",\n      "op": "MatMul",\n      "value": "y"',
        )
    )
    assert plan.mode("y") == "float"
    assert lower(model, plan, Context()) == 1
    assert "w2" in model.graph.initializers


def test_plan_that_lost_a_range_leaves_the_node_float() -> None:
    model, seen = parse(NET, weights=WEIGHTS), Context()
    plan = QuantizeStatic().plan(model, CONTEXT)
    kept = tuple(tensor for tensor in plan.tensors if tensor.value != "b")
    assert lower(model, msgspec.structs.replace(plan, tensors=kept), seen) == 1
    assert "No calibrated range for 'b'" in seen.misses[0].why


def test_join_whose_input_was_edited_to_float_stays_float() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            b = Conv <pads = [1, 1, 1, 1]> (a, w)
            s = Add (a, b)
            y = Conv <pads = [1, 1, 1, 1]> (s, w)
        }
    """
    model, seen = parse(text, weights={"w": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32)}), Context()
    plan = QuantizeStatic().plan(model, CONTEXT)
    assert lower(model, plan.float_only({"b": "by hand"}), seen) == 2
    assert "An input is not int8" in seen.misses[0].why


def test_malformed_plan() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_plan(b'{"nodes": [{"value": "a", "op": "MatMul", "mode": "int4"}]}')


def test_float_only_says_why() -> None:
    plan = Plan((NodePlan("a", "MatMul", "static"),))
    assert plan.float_only({"a": "slow"}).nodes == (NodePlan("a", "MatMul", "float", "slow"),)
    assert plan.mode("unknown") == "float"


@given(low=st.floats(-1e6, 1e6, width=32), width=st.floats(0, 1e6, width=32))
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_activation_range_is_covered_and_zero_is_exact(target: str, low: float, width: float) -> None:
    rules = TARGETS[target].qdq
    assert rules is not None
    scale, zero = numbers.activation_params(low, low + width, rules)
    lowest = -127 if rules.symmetric else 0
    ends = np.array([lowest, 127 if rules.symmetric else 255], np.float64)
    real = (ends - int(zero)) * float(scale)
    assert real[0] <= min(low, 0.0) + float(scale) * 0.51
    assert real[1] >= max(low + width, 0.0) - float(scale) * 0.51
    assert scale > 0


def test_rounding_is_to_even_and_symmetric() -> None:
    weight = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0, -127.0]], np.float32)
    rounded = numbers.quantize_weight(weight, np.float32(1.0), None)
    assert rounded.tolist() == [[0, 2, 2, 0, -2, 127, -127]]


def test_channels_have_scales_of_their_own() -> None:
    weight = np.array([[1.0, 0.0], [-2.54, 0.0]], np.float32)
    np.testing.assert_allclose(numbers.weight_scale(weight, 1), [0.02, 1.0], rtol=1e-6)
    np.testing.assert_allclose(numbers.weight_scale(weight, 0), [1 / 127, 0.02], rtol=1e-6)
    assert numbers.weight_scale(weight, None).shape == ()


def test_bias_has_the_scale_of_the_sum() -> None:
    bias, scale = np.array([1.0, -2.0], np.float32), np.array([0.5, 0.25], np.float32)
    rounded, factor = numbers.quantize_bias(bias, 0.1, scale)
    np.testing.assert_allclose(rounded * factor.astype(np.float64), bias, rtol=1e-6)
    assert rounded.dtype == np.int32
