import numpy as np
import onnx_ir as ir
import pytest

from burnish.manifest import DimRange
from burnish.passes.base import Context
from burnish.passes.cleanup.merge_reshapes import MergeReshapes
from burnish.testing import check_pass, parse

CHAINS = [
    ("Unsqueeze (a, one)", "Unsqueeze (b, two)", "Unsqueeze"),
    ("Unsqueeze (a, one)", "Squeeze (b, one)", None),
    ("Unsqueeze (a, one)", "Flatten <axis = 1> (b)", "Reshape"),
    ("Flatten <axis = 2> (a)", "Reshape (b, split)", "Reshape"),
    ("Reshape (a, split)", "Reshape (b, flat)", "Reshape"),
    ("Reshape (a, split)", "Reshape (b, back)", None),
    ("Transpose <perm = [1, 0, 2]> (a)", "Transpose <perm = [0, 2, 1]> (b)", "Transpose"),
    ("Transpose <perm = [1, 0, 2]> (a)", "Transpose <perm = [1, 0, 2]> (b)", None),
    ("Transpose (a)", "Transpose (b)", None),
]
WEIGHTS = {
    "one": np.array([1]),
    "two": np.array([2]),
    "split": np.array([-1, 2, 2, 2]),
    "flat": np.array([-1, 8]),
    "back": np.array([-1, 4, 2]),
}


@pytest.mark.parametrize(("first", "second", "left"), CHAINS)
def test_two_in_a_row(first: str, second: str, left: str | None) -> None:
    rank = {"Flatten <axis = 1> (b)": 2, "Reshape (b, flat)": 2, "Unsqueeze (b, two)": 5}.get(second, 3)
    rank = 4 if "split" in second else rank
    dims = ", ".join(f"D{axis}" for axis in range(rank))
    check_pass(
        MergeReshapes(),
        before=f"""
            g (float[N, 4, 2] x) => (float[{dims}] y) {{ a = Relu (x) b = {first} c = {second} y = Neg (c) }}
        """,
        weights={name: array for name, array in WEIGHTS.items() if name in first + second},
        after=["Relu", *([left] if left else []), "Neg"],
        count=1,
    )


def test_axes_of_merged_unsqueezes() -> None:
    model = check_pass(
        MergeReshapes(),
        before="""
            g (float[A, B] x) => (float[C, D, E, F, G] y)
            <int64[1] zero = {0}, int64[1] last = {-1}, int64[1] one = {1}>
            { a = Unsqueeze (x, zero)  b = Unsqueeze (a, last)  y = Unsqueeze (b, one) }
        """,
        after=["Unsqueeze"],
        count=2,
    )
    assert ir.convenience.get_const_tensor(model.graph.node(0).inputs[1]).numpy().tolist() == [0, 1, 4]


def test_the_key_transpose_of_the_exporter() -> None:
    check_pass(
        MergeReshapes(),
        before="""
            g (float[batch, sequence, 4, 8] x) => (float[batch, 4, 8, sequence] y)
            <int64[1] minus = {-1}, int64[1] four = {4}, int64[1] eight = {8}>
            {
                k = Transpose <perm = [0, 2, 1, 3]> (x)
                b = Shape <start = 0, end = 1> (x)
                s = Shape <start = 1, end = 2> (x)
                t = Concat <axis = 0> (minus, s, eight)
                r = Reshape (k, t)
                m = Transpose <perm = [0, 2, 1]> (r)
                u = Concat <axis = 0> (b, four, eight, s)
                y = Reshape (m, u)
            }
        """,
        after="y = Transpose <perm: ints = [0, 2, 3, 1]> (x)",
        count=2,
    )


def test_a_reshape_that_splits_otherwise_stays() -> None:
    check_pass(
        MergeReshapes(),
        before="""
            g (float[2, 3, 4, 5] x) => (float[3, 2, 5, 4] y)
            <int64[3] merged = {6, 4, 5}, int64[4] other = {3, 2, 5, 4}>
            { r = Reshape (x, merged)  m = Transpose <perm = [0, 2, 1]> (r)  y = Reshape (m, other) }
        """,
        count=0,
    )


def test_a_transpose_with_another_use_stays() -> None:
    check_pass(
        MergeReshapes(),
        before="""
            g (float[2, 3, 4] x) => (float[2, 4, 3] y, float[4, 2, 3] z) {
                y = Transpose <perm = [0, 2, 1]> (x)
                z = Transpose <perm = [1, 0, 2]> (y)
            }
        """,
        count=0,
    )


def test_a_reshape_with_another_use_is_passed_by() -> None:
    check_pass(
        MergeReshapes(),
        before="""
            g (float[N, 8] x) => (float[N, 2, 4] y, float[N, 4, 2] z)
            <int64[3] one = {0, 2, 4}, int64[3] two = {0, 4, 2}>
            { y = Reshape (x, one)  z = Reshape (y, two) }
        """,
        after=["Reshape", "Reshape"],
        count=1,
    )


@pytest.mark.parametrize("batch", [0, 2])
def test_a_size_that_cannot_be_copied_stays(batch: int) -> None:
    """[batch, sequence, 8] takes two sizes, and a -1 is not safe beside a dim that may be empty."""
    check_pass(
        MergeReshapes(),
        before="""
            g (float[sequence, batch, 8] x) => (float[batch, R, 8] y)
            <int64[1] eight = {8}, int64[2] flat = {-1, 8}>
            {
                f = Reshape (x, flat)
                b = Shape <start = 1, end = 2> (x)
                s = Shape <start = 0, end = 1> (x)
                t = Concat <axis = 0> (b, s, eight)
                y = Reshape <allowzero = 1> (f, t)
            }
        """,
        count=0,
        dims={"batch": DimRange(batch, batch), "sequence": DimRange(3, 3)},
    )


def test_old_opsets_have_axes_as_attributes() -> None:
    check_pass(
        MergeReshapes(),
        before="""
            g (float[A, B] x) => (float[C, D, E, F] y) {
                a = Unsqueeze <axes = [0]> (x)  y = Unsqueeze <axes = [3]> (a)
            }
        """,
        after="y = Unsqueeze <axes: ints = [0, 3]> (x)",
        opset=11,
        count=1,
    )


def test_inside_a_branch() -> None:
    model = check_pass(
        MergeReshapes(),
        before="""
            g (bool c, float[N, 4] x) => (float[M, 4] y) {
                y = If (c) <
                    then_branch = t () => (float[M, 4] p) {
                        a = Transpose (x)  b = Transpose (a)  p = Neg (b)
                    },
                    else_branch = e () => (float[M, 4] q) { q = Relu (x) }
                >
            }
        """,
        count=1,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Neg", "Relu"]


def test_inside_a_function_without_shapes() -> None:
    model = check_pass(
        MergeReshapes(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N, M] x) => (float[N, M] y) { y = local.f (x) }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) {
                k = Constant <value_ints = [-1]> ()
                a = Unsqueeze (x, k)
                b = Squeeze (a, k)
                c = Transpose <perm = [1, 0]> (b)
                d = Transpose <perm = [1, 0]> (c)
                y = Relu (d)
            }
        """,
        count=2,
    )
    assert [[node.op_type for node in f] for f in model.functions.values()] == [["Relu"]]


def test_the_metadata_of_the_last_one_is_kept() -> None:
    model = parse(
        """
        g (float[2, 3, 4] x) => (float[3, 4, 2] y) {
            a = Transpose <perm = [1, 0, 2]> (x)  y = Transpose <perm = [0, 2, 1]> (a)
        }
        """
    )
    model.graph.node(1).metadata_props["namespace"] = "layer.0"
    assert MergeReshapes().rewrite(model, Context()) == 1
    assert model.graph.node(0).metadata_props["namespace"] == "layer.0"


def test_heads_of_multi_head_attention() -> None:
    """torch folds the heads into the batch and takes them out again, with sizes that are computed."""
    model = check_pass(
        MergeReshapes(),
        before="""
            g (float[sequence, batch, 8] x) => (float[batch, 4, sequence, 2] y)
            <int64[1] two = {2}, int64[1] four = {4}>
            {
                s = Shape <start = 0, end = 1> (x)
                b = Shape <start = 1, end = 2> (x)
                r = Mul (b, four)
                t = Concat <axis = 0> (s, r, two)
                m = Reshape <allowzero = 1> (x, t)
                p = Transpose <perm = [1, 0, 2]> (m)
                u = Concat <axis = 0> (b, four, s, two)
                y = Reshape <allowzero = 1> (p, u)
            }
        """,
        after=["Reshape", "Transpose"],
        count=1,
        dims={"batch": DimRange(0, 3)},
    )
    assert ir.convenience.get_const_tensor(model.graph.node(0).inputs[1]).numpy().tolist() == [0, 0, 4, 2]


def test_a_dim_that_is_added_to_be_moved_and_dropped() -> None:
    check_pass(
        MergeReshapes(),
        before="""
            g (float[sequence, batch, 3, 4] x) => (float[3, sequence, batch, 4] y)
            <int64[1] zero = {0}, int64[1] last = {-2}>
            {
                u = Unsqueeze (x, zero)
                t = Transpose <perm = [3, 1, 2, 0, 4]> (u)
                y = Squeeze (t, last)
            }
        """,
        after="y = Transpose <perm: ints = [2, 0, 1, 3]> (x)",
        count=1,
    )


def test_empty_dims_have_no_factors() -> None:
    model = parse(
        """
        g (float[0, 4] x) => (float[6, 0] y) <int64[3] one = {2, 0, 3}, int64[2] two = {6, 0}>
        {
            r = Reshape <allowzero = 1> (x, one)
            t = Transpose <perm = [0, 2, 1]> (r)
            y = Reshape <allowzero = 1> (t, two)
        }
        """
    )
    check_pass(MergeReshapes(), model, count=0)
