import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.unpack_attention import UnpackAttention
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

_RANDOM = np.random.default_rng(5)
WEIGHTS = {
    "w": _RANDOM.standard_normal((16, 48), np.float32) / 4,
    "b": _RANDOM.standard_normal(48, np.float32),
    "wide": _RANDOM.standard_normal((16, 56), np.float32) / 4,
    "bwide": _RANDOM.standard_normal(56, np.float32),
    "sizes": np.array([16, 16, 16]),
}
X, OUT = "float[batch, seq, 16] x", "float[batch, seq, 16] z"
ALL = ["MatMul", "Split", "MultiHeadAttention"]


def attention(inputs: str = "x, w, b", attributes: str = "num_heads = 2") -> str:
    return f"z = com.microsoft.Attention <{attributes}> ({inputs})"


def test_becomes_a_matrix_product_and_attention() -> None:
    model = check_pass(
        UnpackAttention(), f"g ({X}) => ({OUT}) {{ {attention()} }}", ALL, count=1, weights=WEIGHTS
    )
    product = next(iter(model.graph))
    assert [value.name for value in product.inputs if value] == ["x", "w"]
    assert product.metadata_props["burnish.pass"] == "unpack-attention"
    assert [str(dim) for dim in product.outputs[0].shape or ()] == ["batch", "seq", "48"]


@pytest.mark.parametrize("opset", [12, 13, 17, 23])
def test_split_as_the_opset_has_it(opset: int) -> None:
    check_pass(
        UnpackAttention(),
        f"g ({X}) => ({OUT}) {{ {attention()} }}",
        ALL,
        count=1,
        opset=opset,
        weights=WEIGHTS,
    )


def test_mask_scale_and_filter_are_kept() -> None:
    attributes = "num_heads = 2, scale = 0.3, mask_filter_value = -50.0"
    text = f"g ({X}, int32[batch, seq] mask) => ({OUT}) {{ {attention('x, w, b, mask', attributes)} }}"
    model = check_pass(UnpackAttention(), text, ALL, count=1, weights=WEIGHTS)
    *_, last = model.graph
    assert last.inputs[4] is model.graph.inputs[1]
    assert last.attributes.get_float("mask_filter_value", 0.0) == -50.0


def test_bias_on_scores_and_direction_are_kept() -> None:
    text = f"""g ({X}, float[batch, 1, seq, seq] bias) => ({OUT}) {{
        {attention("x, w, b, , , bias", "num_heads = 2, unidirectional = 1")} }}"""
    model = check_pass(UnpackAttention(), text, ALL, count=1, weights=WEIGHTS)
    *_, last = model.graph
    assert last.attributes.get_int("unidirectional", 0) == 1
    assert last.inputs[5] is model.graph.inputs[1]


def test_values_of_another_size() -> None:
    attributes = "num_heads = 2, qkv_hidden_sizes = [16, 16, 24]"
    text = f"g ({X}) => (float[batch, seq, 24] z) {{ {attention('x, wide, bwide', attributes)} }}"
    check_pass(UnpackAttention(), text, ALL, count=1, weights=WEIGHTS)


def test_inside_a_branch() -> None:
    text = f"""g (bool c, {X}) => ({OUT}) {{
        z = If (c) <
            then_branch = t () => (float[batch, seq, 16] zt) {{ {attention().replace("z =", "zt =")} }},
            else_branch = e () => (float[batch, seq, 16] ze) {{ ze = Relu (x) }}
        >
    }}"""
    model = check_pass(UnpackAttention(), text, count=1, weights=WEIGHTS)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", *ALL, "Relu"]


@pytest.mark.parametrize(
    ("inputs", "declared", "why"),
    [
        ("x, w, b, mask", ", int32[batch] mask", "mask is not provably"),
        ("x, w, b, mask", ", int32[batch, seq, seq] mask", "mask is not provably"),
        ("x, w, b, , past", ", float[2, batch, 2, before, 8] past", "cache"),
    ],
)
def test_what_it_cannot_express_stays(inputs: str, declared: str, why: str) -> None:
    model = parse(f"g ({X}{declared}) => ({OUT}) {{ {attention(inputs)} }}", weights=WEIGHTS)
    context = Context()
    assert UnpackAttention().rewrite(model, context) == 0
    assert why in context.misses[0].why


def test_stays_where_the_other_operator_has_no_kernel() -> None:
    model = parse(f"g ({X}) => ({OUT}) {{ {attention()} }}", weights=WEIGHTS)
    context = Context(TARGETS["tensorrt"])
    assert UnpackAttention().rewrite(model, context) == 0
    assert "MultiHeadAttention" in context.misses[0].why


def test_the_standard_operator_is_left_alone() -> None:
    text = "g (float[b, 2, s, 8] q) => (float[b, 2, s, 8] z) { z = Attention (q, q, q) }"
    check_pass(UnpackAttention(), text, ["Attention"], count=0, opset=23)
