"""pack-attention: an attention that is one operator takes in its projections."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.pack_attention import PackAttention
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

_RANDOM = np.random.default_rng(7)
WEIGHTS = {
    name: _RANDOM.standard_normal(shape, np.float32) / 4
    for name, shape in {
        "wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wide": (16, 24), "turned": (16, 16),
        "bq": (16,), "bk": (16,), "bv": (16,), "bwide": (24,), "own": (48,), "odd": (40,),
    }.items()
}  # fmt: skip
X, OUT = "float[batch, seq, 16] x", "float[batch, seq, 16] z"
PRODUCTS = "q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)"
BIASED = """
    q0 = MatMul (x, wq) k0 = MatMul (x, wk) v0 = MatMul (x, wv)
    q = Add (q0, bq) k = Add (bk, k0) v = Add (v0, bv)"""


def attention(inputs: str = "q, k, v", attributes: str = "num_heads = 2", before: str = PRODUCTS) -> str:
    return f"{before} z = com.microsoft.MultiHeadAttention <{attributes}> ({inputs})"


def test_three_products_become_one_matrix() -> None:
    model = check_pass(
        PackAttention(), f"g ({X}) => ({OUT}) {{ {attention()} }}", ["Attention"], count=1, weights=WEIGHTS
    )
    node = next(iter(model.graph))
    assert node.metadata_props["burnish.pass"] == "pack-attention"
    assert [list(model.graph.initializers[v.name or ""].shape or ()) for v in node.inputs[1:] if v] == [
        [16, 48],
        [48],
    ]


@pytest.mark.parametrize("opset", [12, 17, 23])
def test_biases_are_joined(opset: int) -> None:
    text = f"g ({X}) => ({OUT}) {{ {attention(before=BIASED)} }}"
    check_pass(PackAttention(), text, ["Attention"], count=1, opset=opset, weights=WEIGHTS)


def test_a_bias_of_the_attention_is_added_to_them() -> None:
    text = f"g ({X}) => ({OUT}) {{ {attention('q, k, v, own', before=BIASED)} }}"
    check_pass(PackAttention(), text, ["Attention"], count=1, weights=WEIGHTS)


def test_mask_scale_and_filter_are_kept() -> None:
    attributes = "num_heads = 2, scale = 0.3, mask_filter_value = -50.0"
    text = f"g ({X}, int32[batch, seq] mask) => ({OUT}) {{ {attention('q, k, v, , mask', attributes)} }}"
    model = check_pass(PackAttention(), text, ["Attention"], count=1, weights=WEIGHTS)
    node = next(iter(model.graph))
    assert node.inputs[3] is model.graph.inputs[1]
    assert node.attributes.get_float("mask_filter_value", 0.0) == -50.0


def test_bias_on_scores_and_direction_are_kept() -> None:
    text = f"""g ({X}, float[batch, 1, seq, seq] bias) => ({OUT}) {{
        {attention("q, k, v, , , bias", "num_heads = 2, unidirectional = 1")} }}"""
    model = check_pass(PackAttention(), text, ["Attention"], count=1, weights=WEIGHTS)
    node = next(iter(model.graph))
    assert node.attributes.get_int("unidirectional", 0) == 1
    assert node.inputs[5] is model.graph.inputs[1]


def test_values_of_another_size() -> None:
    before = "q = MatMul (x, wq) k = MatMul (x, wk) v0 = MatMul (x, wide) v = Add (v0, bwide)"
    text = f"g ({X}) => (float[batch, seq, 24] z) {{ {attention(before=before)} }}"
    model = check_pass(PackAttention(), text, ["Attention"], count=1, weights=WEIGHTS)
    assert next(iter(model.graph)).attributes.get_ints("qkv_hidden_sizes", ()) == (16, 16, 24)


def test_products_of_gemm_with_rows_flattened() -> None:
    gemm = "{0}2 = Gemm <transB = 1> (rows, w{0}, b{0}) {0} = Reshape ({0}2, shape)"
    before = "rows = Reshape (x, flat) " + " ".join(gemm.format(each) for each in "qkv")
    sizes = {"flat": np.array([-1, 16]), "shape": np.array([-1, 5, 16])}
    text = f"g (float[batch, 5, 16] x) => (float[batch, 5, 16] z) {{ {attention(before=before)} }}"
    check_pass(PackAttention(), text, ["Attention"], count=1, weights=WEIGHTS | sizes)


def test_inside_a_branch() -> None:
    body = attention().replace("z =", "zt =")
    text = f"""g (bool c, {X}) => ({OUT}) {{
        z = If (c) <
            then_branch = t () => (float[batch, seq, 16] zt) {{ {body} }},
            else_branch = e () => (float[batch, seq, 16] ze) {{ ze = Relu (x) }}
        >
    }}"""
    model = check_pass(PackAttention(), text, count=1, weights=WEIGHTS)
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Attention", "Relu"]


def changed(old: str, new: str) -> str:
    return attention(before=PRODUCTS.replace(old, new))


HEADS = "float[batch, 2, past, 8]"
CACHED = "z, kept = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)"
NEAR_MISSES = {
    f"g ({X}, float[batch, seq, 16] y) => ({OUT}) {{ {changed('(x, wk)', '(y, wk)')} }}": "from one input",
    f"g ({X}) => ({OUT}, float[batch, seq, 16] k) {{ {attention()} }}": "something else reads",
    f"g ({X}, float[16, 16] w) => ({OUT}) {{ {changed('wq', 'w')} }}": "not all products",
    f"g ({X}) => ({OUT}) {{ {changed('MatMul (x, wk)', 'Relu (x)')} }}": "not all products",
    f"g ({X}, float[48] b) => ({OUT}) {{ {attention('q, k, v, b')} }}": "bias is not constant",
    f"g ({X}, int32[batch] mask) => ({OUT}) {{ {attention('q, k, v, , mask')} }}": "[batch, keys]",
    f"g ({X}, {HEADS} a, {HEADS} b) => ({OUT}) {{ {attention('q, k, v, , , , a, b')} }}": "cache",
    f"g ({X}) => ({OUT}, float[batch, 2, seq, 8] kept) {{ {PRODUCTS} {CACHED} }}": "cache",
}


@pytest.mark.parametrize(("text", "why"), NEAR_MISSES.items())
def test_what_is_not_packed_and_why(text: str, why: str) -> None:
    model = parse(text, weights=WEIGHTS)
    context = Context()
    assert PackAttention().rewrite(model, context) == 0
    assert why in context.misses[0].why


def test_a_target_without_the_operator() -> None:
    model = parse(f"g ({X}) => ({OUT}) {{ {attention()} }}", weights=WEIGHTS)
    context = Context(target=TARGETS["tensorrt"])
    assert PackAttention().rewrite(model, context) == 0
    assert "has no com.microsoft::Attention" in context.misses[0].why
