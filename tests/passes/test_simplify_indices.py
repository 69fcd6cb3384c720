import numpy as np
import pytest

from burnish.manifest import DimRange
from burnish.model import copy_model, signature, to_bytes
from burnish.passes.base import Context
from burnish.passes.cleanup.simplify_indices import SimplifyIndices
from burnish.passes.recipe import Recipe
from burnish.passes.recipes import CLEAN_UP
from burnish.runtime.reference import Reference
from burnish.testing import check_pass, parse

TABLE = np.arange(40, dtype=np.float32).reshape(10, 4)
RANGE = "n = Shape <start = 1, end = 2> (x)  k = Squeeze (n)  r = Range (zero, k, one)"
SCALARS = "<int64 zero = {0}, int64 one = {1}, int64[1] minus = {-1}>"


def test_a_lookup_of_sliced_constants_is_sliced() -> None:
    check_pass(
        SimplifyIndices(),
        before="""
            g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y) {
                n = Shape <start = 1, end = 2> (x)
                p = Slice (positions, start, n, axis)
                e = Gather (table, p)
                y = Add (x, e)
            }
        """,
        weights={
            "positions": np.arange(10)[None, ::-1].copy(),
            "table": TABLE,
            "start": np.array([0]),
            "axis": np.array([1]),
        },
        after=["Shape", "Slice", "Add"],
        count=1,
        dims={"sequence": DimRange(0, 10)},
    )


def test_a_lookup_that_would_grow_the_model_stays() -> None:
    check_pass(
        SimplifyIndices(max_bytes=100),
        before="""
            g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y) {
                n = Shape <start = 1, end = 2> (x)
                p = Slice (positions, start, n, axis)
                e = Gather (table, p)
                y = Add (x, e)
            }
        """,
        weights={
            "positions": np.zeros((1, 100), np.int64) + np.arange(100) % 10,
            "table": TABLE,
            "start": np.array([0]),
            "axis": np.array([1]),
        },
        count=0,
        dims={"sequence": DimRange(0, 10)},
    )


def test_gather_elements_of_sliced_constants() -> None:
    check_pass(
        SimplifyIndices(),
        before="""
            g (int64[batch, sequence] x) => (int64[batch, sequence] y) {
                n = Shape <start = 1, end = 2> (x)
                p = Slice (positions, start, n, axis)
                e = GatherElements <axis = 1> (types, p)
                y = Add (x, e)
            }
        """,
        weights={
            "positions": np.arange(10)[None],
            "types": np.arange(10)[None] % 3,
            "start": np.array([0]),
            "axis": np.array([1]),
        },
        after=["Shape", "Slice", "Add"],
        count=1,
        dims={"sequence": DimRange(0, 10)},
    )


def test_one_index_everywhere_is_one_row() -> None:
    check_pass(
        SimplifyIndices(),
        before="""
            g (float[batch, sequence, 4] x, int64[batch, sequence] ids) => (float[batch, sequence, 4] y) {
                s = Shape (ids)
                t = Expand (types, s)
                e = Gather (table, t)
                y = Mul (x, e)
            }
        """,
        weights={"types": np.full((1, 1), 3), "table": TABLE},
        after=["Shape", "Concat", "Expand", "Mul"],
        count=1,
    )


@pytest.mark.parametrize("index", [10, -11])
def test_a_row_that_is_not_there_stays_an_error(index: int) -> None:
    model = parse(
        """
        g (int64[batch, sequence] ids) => (float[batch, sequence, 4] y) {
            s = Shape (ids)  t = Expand (types, s)  y = Gather (table, t)
        }
        """,
        weights={"types": np.full((1, 1), index), "table": TABLE},
    )
    assert SimplifyIndices().rewrite(model, Context()) == 0


def test_positions_from_a_range_are_a_slice() -> None:
    check_pass(
        SimplifyIndices(),
        before=f"""
            g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
            <int64 zero = {{0}}, int64 one = {{1}}, int64[1] axes = {{0}}>
            {{ {RANGE}  p = Unsqueeze (r, axes)  e = Gather (table, p)  y = Add (x, e) }}
        """,
        weights={"table": TABLE},
        after=["Shape", "Slice", "Add"],
        count=1,
        dims={"sequence": DimRange(0, 10)},
    )


def test_positions_that_are_unsqueezed_after_the_lookup() -> None:
    check_pass(
        SimplifyIndices(),
        before=f"""
            g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
            <int64 zero = {{0}}, int64 one = {{1}}, int64[1] axes = {{0}}>
            {{ {RANGE}  e = Gather (table, r)  u = Unsqueeze (e, axes)  y = Add (x, u) }}
        """,
        weights={"table": TABLE},
        after=["Shape", "Slice", "Unsqueeze", "Add"],
        count=1,
        dims={"sequence": DimRange(0, 10)},
    )


def test_positions_that_nothing_bounds_stay() -> None:
    """Gather refuses more positions than there are rows; a Slice would give fewer rows without a word."""
    check_pass(
        SimplifyIndices(),
        before=f"""
            g (float[batch, sequence, 4] x) => (float[sequence, 4] y) {SCALARS}
            {{ {RANGE}  e = Gather (table, r)  y = Neg (e) }}
        """,
        weights={"table": TABLE},
        count=0,
        dims={"sequence": DimRange(0, 10)},
    )


def test_reading_everything_in_order_reads_nothing() -> None:
    check_pass(
        SimplifyIndices(),
        before=f"""
            g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y) {SCALARS}
            {{ {RANGE}  a = Neg (x)  e = Gather <axis = 1> (a, r)  y = Abs (e) }}
        """,
        after="a = Neg (x)\ny = Abs (a)",
        count=1,
    )


MASK = """
    g (bool[batch, sequence] x, float[batch, 2, sequence, sequence] z)
        => (float[batch, 2, sequence, sequence] y)
    <int64 zero = {0}, int64 one = {1}, int64[1] minus = {-1}, float nought = {0.0}, float low = {-9.0},
     int64[3] tail = {1, 2, 3}, int64[3] head = {0, 1, 2}, int64[3] row = {0, 1, 3},
     bool yes = {1}, int64[1] ones = {1}>
    {
        bs = Shape <end = 1> (x)
        b = Squeeze (bs)
        ss = Shape <start = 1> (x)
        s = Squeeze (ss)
        rb = Range (zero, b, one)
        rs = Range (zero, s, one)
        ib = Unsqueeze (rb, tail)
        is = Unsqueeze (rs, head)
        iq = Unsqueeze (rs, row)
        ge = GreaterOrEqual (iq, zero)
        all = And (yes, ge)
        most = Max (ib, is)
        shape = Shape (most)
        eb = Expand (ib, shape)
        es = Expand (is, shape)
        ub = Unsqueeze (eb, minus)
        us = Unsqueeze (es, minus)
        where = Concat <axis = -1> (ub, us)
        m = GatherND (x, where)
        both = And (all, m)
        target = Concat <axis = 0> (bs, ones, ss, ss)
        mask = Expand (both, target)
        bias = Where (mask, nought, low)
        y = Add (z, bias)
    }
"""


def test_the_mask_of_the_exporter_is_the_mask() -> None:
    """What torch 2.13 writes for `attention_mask[batch, key]`: GatherND by ranges, and an And with true."""
    model = check_pass(SimplifyIndices(), MASK, count=3)
    assert "GatherND" not in [node.op_type for node in model.graph]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 7), (3, 16), (2, 0), (0, 3)])
def test_the_clean_up_leaves_three_nodes_of_it(sizes: tuple[int, int]) -> None:
    model = parse(MASK)
    original = copy_model(model)
    for pass_ in Recipe.parse(CLEAN_UP).passes:
        pass_.rewrite(model, Context())
    assert [node.op_type for node in model.graph] == ["Unsqueeze", "Where", "Add"]
    assert signature(model) == signature(original)
    batch, sequence = sizes
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.random((batch, sequence)) < 0.5,
        "z": rng.standard_normal((batch, 2, sequence, sequence)).astype(np.float32),
    }
    before, after = (Reference(to_bytes(each))(feeds)["y"] for each in (original, model))
    np.testing.assert_array_equal(before, after)


def test_a_mask_of_another_batch_is_not_read_whole() -> None:
    text = MASK.replace(
        "bool[batch, sequence] x,", "bool[rows, sequence] x, bool[batch, sequence] ids,"
    ).replace("bs = Shape <end = 1> (x)", "bs = Shape <end = 1> (ids)")
    model = parse(text)
    SimplifyIndices().rewrite(model, Context())
    assert "GatherND" in [node.op_type for node in model.graph]


def test_a_causal_mask_is_not_true_everywhere() -> None:
    check_pass(
        SimplifyIndices(),
        before="""
            g (bool[sequence, sequence] x) => (bool[sequence, sequence] y)
            <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] last = {1}>
            {
                n = Shape <end = 1> (x)
                k = Squeeze (n)
                r = Range (zero, k, one)
                row = Unsqueeze (r, first)
                column = Unsqueeze (r, last)
                causal = LessOrEqual (row, column)
                y = And (causal, x)
            }
        """,
        count=0,
    )


def test_or_with_false_and_inside_a_branch() -> None:
    model = check_pass(
        SimplifyIndices(),
        before="""
            g (bool c, bool[N] x, int64[N] i) => (bool[M] y)
            <int64 zero = {0}, int64 one = {1}>
            {
                n = Shape (x)
                k = Squeeze (n)
                r = Range (zero, k, one)
                y = If (c) <
                    then_branch = t () => (bool[M] p) {
                        no = Less (r, zero)  a = Not (x)  o = Or (no, a)  p = Not (o)
                    },
                    else_branch = e () => (bool[M] q) { q = Not (x) }
                >
            }
        """,
        count=1,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Not", "Not", "Not"]


def test_functions_and_missing_shapes_are_left_alone() -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (bool[N] x) => (bool[M] y) { y = local.f (x) }
        <domain: "local", opset_import: ["": 20]>
        f (x) => (y) {
            n = Shape (x)  k = Squeeze (n)
            zero = Constant <value_int = 0> ()  one = Constant <value_int = 1> ()
            r = Range (zero, k, one)  yes = GreaterOrEqual (r, zero)  y = And (yes, x)
        }
        """
    )
    assert SimplifyIndices().rewrite(model, Context()) == 0
