"""pack-products: products of one input become one product."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.pack_products import PackProducts
from burnish.testing import check_pass, parse

_RANDOM = np.random.default_rng(11)
WEIGHTS = {
    name: _RANDOM.standard_normal(shape, np.float32) / 4
    for name, shape in {
        "a": (16, 8), "b": (16, 8), "c": (16, 3), "ba": (8,), "bb": (8,), "one": (1,), "cube": (2, 16, 8),
    }.items()
}  # fmt: skip
X = "float[batch, seq, 16] x"
TWO = "float[2, seq, 8]"
Y, Z = "float[batch, seq, 8] y", "float[batch, seq, 8] z"
PAIR = "y = MatMul (x, a) z = MatMul (x, b)"


def test_two_products_become_one_and_a_split() -> None:
    model = check_pass(PackProducts(), f"g ({X}) => ({Y}, {Z}) {{ {PAIR} }}", ["MatMul", "Split"], count=1,
                       weights=WEIGHTS)  # fmt: skip
    product, parts = model.graph
    assert [str(size) for size in product.outputs[0].shape or ()] == ["batch", "seq", "16"]
    assert parts.metadata_props["burnish.pass"] == "pack-products"
    assert "a" not in model.graph.initializers


@pytest.mark.parametrize("opset", [12, 13, 20])
def test_vectors_that_are_added_become_one(opset: int) -> None:
    text = f"""g ({X}) => (float[batch, seq, 8] o) {{
        p = MatMul (x, a) q = MatMul (x, b) y = Add (p, ba) z = Add (bb, q)
        s = Sigmoid (y) o = Mul (s, z) }}"""
    left = ["MatMul", "Add", "Split", "Sigmoid", "Mul"]
    check_pass(PackProducts(), text, left, count=1, opset=opset, weights=WEIGHTS)


def test_the_products_alone_where_not_all_have_a_vector() -> None:
    text = f"""g ({X}) => ({Y}, float[batch, seq, 3] w) {{
        p = MatMul (x, a) y = Add (p, ba) w = MatMul (x, c) }}"""
    check_pass(PackProducts(), text, ["MatMul", "Split", "Add"], count=1, weights=WEIGHTS)


def test_readers_between_the_products_come_after_the_one() -> None:
    text = f"g ({X}) => ({Y}, {Z}) {{ p = MatMul (x, a) y = Relu (p) z = MatMul (x, b) }}"
    check_pass(PackProducts(), text, ["MatMul", "Split", "Relu"], count=1, weights=WEIGHTS)


def test_rows_alone_and_no_rows() -> None:
    text = "g (float[rows, 16] x) => (float[rows, 8] y, float[rows, 8] z) { " + PAIR + " }"
    check_pass(PackProducts(), text, ["MatMul", "Split"], count=1, weights=WEIGHTS)


def test_inside_a_branch_each_graph_for_itself() -> None:
    text = f"""g (bool cond, {X}) => (float[batch, seq, 8] o) {{
        top = MatMul (x, a)
        o = If (cond) <
            then_branch = t () => (float[batch, seq, 8] s) {{
                p = MatMul (x, a) q = MatMul (x, b) s = Add (p, q) }},
            else_branch = e () => (float[batch, seq, 8] r) {{ r = Relu (top) }}
        >
    }}"""
    model = check_pass(PackProducts(), text, count=1, weights=WEIGHTS)
    assert sorted(node.op_type for node in model.graph.all_nodes()) == [
        "Add", "If", "MatMul", "MatMul", "Relu", "Split",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        f"g ({X}, float[batch, seq, 16] v) => ({Y}, {Z}) {{ y = MatMul (x, a) z = MatMul (v, b) }}",
        f"g ({X}, float[16, 8] w) => ({Y}, {Z}) {{ y = MatMul (x, a) z = MatMul (x, w) }}",
        "g (float[16] x) => (float[8] y, float[8] z) { " + PAIR + " }",
        f"g (float[2, seq, 16] x) => ({TWO} y, {TWO} z) {{ y = MatMul (x, a) z = MatMul (x, cube) }}",
    ],
)
def test_what_stays_apart(text: str) -> None:
    model = parse(text, weights=WEIGHTS)
    assert PackProducts().rewrite(model, Context()) == 0


def test_a_vector_that_would_broadcast_stays_where_it_is() -> None:
    text = f"g ({X}) => ({Y}, {Z}) {{ p = MatMul (x, a) y = Add (p, one) q = MatMul (x, b) z = Add (q, bb) }}"
    check_pass(PackProducts(), text, ["MatMul", "Split", "Add", "Add"], count=1, weights=WEIGHTS)
