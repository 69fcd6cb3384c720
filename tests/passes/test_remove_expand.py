import numpy as np
import pytest

from burnish.manifest import DimRange
from burnish.passes.cleanup.remove_expand import RemoveExpand
from burnish.testing import check_pass

SHAPE = "s = Shape (x)"


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_what_broadcasts_needs_no_expand(batch: int) -> None:
    check_pass(
        RemoveExpand(),
        before=f"""
            g (float[batch, 4] x, float[batch, 1] z) => (float[batch, 4] y) {{
                {SHAPE}  e = Expand (z, s)  y = Div (x, e)
            }}
        """,
        after="y = Div (x, z)",
        count=1,
        dims={"batch": DimRange(batch, batch)},
    )


def test_through_operators_that_work_on_the_smaller_tensor() -> None:
    model = check_pass(
        RemoveExpand(),
        before="""
            g (float[batch, 2, sequence, sequence] x, bool[batch, 1, 1, sequence] m)
                => (float[batch, 2, sequence, sequence] y)
            <float zero = {0.0}, float low = {-9.0}, int64[1] one = {1}, int64[1] two = {2}>
            {
                b = Shape <end = 1> (x)
                k = Shape <start = 2> (x)
                s = Concat <axis = 0> (b, one, k)
                e = Expand (m, s)
                w = Where (e, zero, low)
                n = Exp (w)
                y = Add (x, n)
            }
        """,
        after="w = Where (m, zero, low)\nn = Exp (w)\ny = Add (x, n)",
        count=1,
    )
    assert str(model.graph.node(0).outputs[0].shape) == "[batch,1,1,sequence]"


def test_an_output_stays_expanded() -> None:
    check_pass(
        RemoveExpand(),
        before=f"""
            g (float[batch, 4] x, float[batch, 1] z) => (float[batch, 4] y) {{
                {SHAPE}  e = Expand (z, s)  y = Neg (e)
            }}
        """,
        count=0,
    )


def test_an_operator_that_does_not_broadcast_keeps_its_expand() -> None:
    check_pass(
        RemoveExpand(),
        before=f"""
            g (float[batch, 4] x, float[batch, 1] z) => (float[batch, 8] y) {{
                {SHAPE}  e = Expand (z, s)  y = Concat <axis = 1> (x, e)
            }}
        """,
        count=0,
    )


def test_one_use_that_needs_it_is_enough() -> None:
    check_pass(
        RemoveExpand(),
        before=f"""
            g (float[batch, 4] x, float[batch, 1] z) => (float[batch, 4] y, float[batch, 1] r) {{
                {SHAPE}  e = Expand (z, s)  y = Mul (x, e)  r = ReduceSum (e, axes)
            }}
        """,
        weights={"axes": np.array([1])},
        count=0,
    )


def test_two_expanded_operands_keep_one_of_them() -> None:
    check_pass(
        RemoveExpand(),
        before=f"""
            g (float[batch, 4] x, float[batch, 1] z) => (float[batch, 4] y) {{
                {SHAPE}  e = Expand (z, s)  n = Neg (z)  f = Expand (n, s)  y = Mul (e, f)
            }}
        """,
        after=["Shape", "Neg", "Expand", "Mul"],
        count=1,
    )


def test_dims_of_different_names_prove_nothing() -> None:
    check_pass(
        RemoveExpand(),
        before="""
            g (float[a, 4] x, float[b, 4] z, float[c, 4] v) => (float[d, 4] y) {
                s = Shape (v)  e = Expand (z, s)  y = Add (x, e)
            }
        """,
        count=0,
        dims={"a": DimRange(3, 3), "b": DimRange(1, 1), "c": DimRange(3, 3)},
    )


def test_expand_of_expand() -> None:
    check_pass(
        RemoveExpand(),
        before="""
            g (float[batch, 1, 1] x) => (float[batch, 3, 2] y)
            <int64[3] one = {1, 3, 1}, int64[3] two = {1, 3, 2}>
            { a = Expand (x, one)  y = Expand (a, two) }
        """,
        after="y = Expand (x, two)",
        count=1,
    )


def test_expand_of_expand_that_both_matter() -> None:
    check_pass(
        RemoveExpand(),
        before="""
            g (float[batch, 1, 1] x) => (float[batch, 3, 2] y)
            <int64[3] one = {1, 3, 1}, int64[3] two = {1, 1, 2}>
            { a = Expand (x, one)  y = Expand (a, two) }
        """,
        count=0,
    )


def test_inside_a_branch() -> None:
    check_pass(
        RemoveExpand(),
        before="""
            g (bool c, float[batch, 4] x, float[batch, 1] z) => (float[B, 4] y) {
                y = If (c) <
                    then_branch = t () => (float[B, 4] p) {
                        s = Shape (x)  e = Expand (z, s)  p = Add (x, e)
                    },
                    else_branch = e () => (float[B, 4] q) { q = Relu (x) }
                >
            }
        """,
        count=1,
    )


def test_a_use_in_a_branch_is_left_alone() -> None:
    check_pass(
        RemoveExpand(),
        before="""
            g (bool c, float[batch, 4] x, float[batch, 1] z) => (float[B, 4] y) {
                s = Shape (x)
                e = Expand (z, s)
                y = If (c) <
                    then_branch = t () => (float[B, 4] p) { p = Neg (e) },
                    else_branch = e () => (float[B, 4] q) { q = Add (x, e) }
                >
            }
        """,
        count=0,
    )
