import numpy as np

from burnish.passes.base import Context
from burnish.passes.cleanup.deduplicate_initializers import DeduplicateInitializers
from burnish.testing import check_pass, parse

TWO = "g (float[N, 2] x) => (float[N, 2] y) { a = Mul (x, w)  y = Add (a, v) }"
W = np.array([[1.0, 2.0]], np.float32)


def test_equal_bytes_become_one() -> None:
    model = check_pass(
        DeduplicateInitializers(),
        TWO,
        "a = Mul (x, w)\ny = Add (a, w)",
        weights={"w": W, "v": W.copy()},
        count=1,
    )
    assert list(model.graph.initializers) == ["w"]


def test_another_shape_or_dtype_stays() -> None:
    model = parse(TWO, weights={"w": W, "v": W.reshape(2)})
    assert DeduplicateInitializers().rewrite(model, Context()) == 0
    text = "g (float[N] x, int32[N] i) => (float[N] y, int32[N] j) { y = Add (x, w)  j = Add (i, v) }"
    zeros = {"w": np.zeros(1, np.float32), "v": np.zeros(1, np.int32)}
    check_pass(DeduplicateInitializers(), text, weights=zeros, count=0)


def test_zero_and_minus_zero_differ() -> None:
    weights = {"w": np.zeros((1, 2), np.float32), "v": -np.zeros((1, 2), np.float32)}
    check_pass(DeduplicateInitializers(), TWO, weights=weights, count=0)


def test_inputs_with_a_default_stay() -> None:
    text = "g (float[N, 2] x, float[1, 2] v) => (float[N, 2] y) { a = Mul (x, w)  y = Add (a, v) }"
    check_pass(DeduplicateInitializers(), text, weights={"w": W, "v": W}, count=0)


def test_outputs_stay() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y, float[1, 2] v) { y = Mul (x, w) }"
    check_pass(DeduplicateInitializers(), text, weights={"w": W, "v": W}, count=0)


def test_tied_weights_of_three_users() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { a = Mul (x, u)  b = Mul (a, v)  y = Mul (b, w) }"
    weights = {"u": W, "v": W, "w": W}
    model = check_pass(DeduplicateInitializers(), text, weights=weights, count=2)
    assert len(model.graph.initializers) == 1


def test_a_branch_uses_the_outer_one() -> None:
    model = check_pass(
        DeduplicateInitializers(),
        before="""
            g (bool c, float[N] x) => (float[N] y)
            <float[1] w = {2.0}>
            {
                a = Mul (x, w)
                y = If (c) <
                    then_branch = t () => (float[N] p) <float[1] v = {2.0}> { p = Add (a, v) },
                    else_branch = e () => (float[N] q) <float[1] u = {2.0}> { q = Sub (a, u) }
                >
            }
        """,
        count=2,
    )
    assert {value.name for node in model.graph.all_nodes() for value in node.inputs if value} >= {"w"}


def test_two_branches_do_not_see_each_other() -> None:
    check_pass(
        DeduplicateInitializers(),
        before="""
            g (bool c, float[N] x) => (float[N] y) {
                y = If (c) <
                    then_branch = t () => (float[N] p) <float[1] v = {2.0}> { p = Add (x, v) },
                    else_branch = e () => (float[N] q) <float[1] u = {2.0}> { q = Sub (x, u) }
                >
            }
        """,
        count=0,
    )


def test_strings_are_compared_as_strings() -> None:
    text = "g (string[N] x) => (bool[N] y, bool[N] z) { y = Equal (x, u)  z = Equal (x, v) }"
    same = {"u": np.array(["ab"], object), "v": np.array(["ab"], object)}
    model = parse(text, weights=same)
    assert DeduplicateInitializers().rewrite(model, Context()) == 1
    other = {"u": np.array(["a", "bc"], object), "v": np.array(["ab", "c"], object)}
    model = parse(text, weights=other)
    assert DeduplicateInitializers().rewrite(model, Context()) == 0
