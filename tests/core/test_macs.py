"""Multiply-accumulates of single nodes, against numbers worked out by hand."""

import numpy as np
import pytest

from burnish.inspection import macs_by_node
from burnish.model import signature
from burnish.testing import parse


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("text", "weights", "expected"),
    [
        ("(float[2, 3, 4] x) => (float[2, 3, 5] y) { y = MatMul (x, w) }", {"w": ones(4, 5)}, 2 * 3 * 4 * 5),
        ("(float[4, 3] x) => (float[3, 5] y) { y = Gemm <transA = 1> (x, w) }", {"w": ones(4, 5)}, 3 * 4 * 5),
        ("(float[4, 3] x) => (float[3, 5] y) { y = com.microsoft.FusedMatMul <transA = 1> (x, w) }",
         {"w": ones(4, 5)}, 3 * 4 * 5),
        ("(float[1, 4, 6, 6] x) => (float[1, 8, 4, 4] y) { y = Conv <group = 2> (x, w) }",
         {"w": ones(8, 2, 3, 3)}, 8 * 4 * 4 * 2 * 9),
        # 2 x 3 positions of width 8: the projections, then the scores and their product with the values
        ("(float[2, 3, 8] x) => (float[2, 3, 8] y) { y = com.microsoft.Attention <num_heads = 2> (x, w, b) }",
         {"w": ones(8, 24), "b": ones(24)}, 2 * 3 * 8 * 24 + 2 * (2 * 3 * 3 * 8)),
        ("""(float[2, 3, 8] q, float[2, 5, 8] k) => (float[2, 3, 8] y) {
            y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, k)
         }""", {}, 2 * (2 * 3 * 5 * 8)),
        ("(float[2, 3, 8] x) => (float[2, 3, 4] y) { y = com.microsoft.DynamicQuantizeMatMul (x, w, s) }",
         {"w": np.ones((8, 4), np.uint8), "s": np.float32(1)}, 2 * 3 * 8 * 4),
    ],
)  # fmt: skip
def test_macs(text: str, weights: dict[str, np.ndarray], expected: int) -> None:
    model = parse(f"g {text}", weights=weights)
    found, note = macs_by_node(model, signature(model))
    assert found is not None, note
    assert list(found.values()) == [expected]
    assert "not counted" not in note


def test_what_is_not_counted_is_named() -> None:
    text = """g (bool c, float[2, 2] x) => (float[2, 2] y) {
        a = Einsum <equation = "ij,jk->ik"> (x, x)
        y = If (c) <
            then_branch = t () => (float[2, 2] p) { p = MatMul (a, x) },
            else_branch = e () => (float[2, 2] q) { q = Neg (a) }
        >
    }"""
    model = parse(text)
    found, note = macs_by_node(model, signature(model))
    assert found == {}
    assert note.endswith("; not counted: 1 Einsum, 1 MatMul")


def test_a_cache_of_unknown_length_is_not_counted() -> None:
    model = parse("""g (float[1, 3, 8] q, float[1, 2, p, 4] pk, float[1, 2, p, 4] pv) => (float[1, 3, 8] y) {
        y, k2, v2 = com.microsoft.MultiHeadAttention <num_heads = 2> (q, q, q, , , , pk, pv)
    }""")
    found, note = macs_by_node(model, signature(model))
    assert found == {}
    assert "not counted: 1 com.microsoft::MultiHeadAttention" in note
