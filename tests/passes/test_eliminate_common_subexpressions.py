import numpy as np

from burnish.passes.base import Context
from burnish.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from burnish.testing import check_pass, parse

Cse = EliminateCommonSubexpressions


def test_equal_nodes_become_one_and_what_follows_too() -> None:
    check_pass(
        Cse(),
        before="""
            g (float[N] x) => (float[N] y) {
                a = Relu (x)  b = Relu (x)
                c = Neg (a)   d = Neg (b)
                y = Add (c, d)
            }
        """,
        after="a = Relu (x)\nc = Neg (a)\ny = Add (c, c)",
        count=2,
    )


def test_attributes_matter() -> None:
    check_pass(
        Cse(),
        before="""
            g (float[N, 3] x) => (float[N, 3] y) {
                a = Softmax <axis = 0> (x)
                b = Softmax <axis = 1> (x)
                y = Add (a, b)
            }
        """,
        count=0,
    )


def test_tensor_attributes_are_compared_by_value() -> None:
    check_pass(
        Cse(),
        before="""
            g (int64[2] n) => (float[A, B] y) {
                a = ConstantOfShape <value: tensor = float[1] {1.0}> (n)
                b = ConstantOfShape <value: tensor = float[1] {1.0}> (n)
                c = ConstantOfShape <value: tensor = float[1] {2.0}> (n)
                d = Add (a, b)
                y = Add (d, c)
            }
        """,
        after=["ConstantOfShape", "ConstantOfShape", "Add", "Add"],
        count=1,
    )


def test_order_of_operands_where_it_cannot_matter() -> None:
    check_pass(
        Cse(),
        before="""
            g (float[N] x, float[N] z) => (float[N] y) {
                a = Add (x, z)  b = Add (z, x)
                c = Sub (x, z)  d = Sub (z, x)
                e = Mul (a, b)  f = Mul (c, d)
                y = Add (e, f)
            }
        """,
        after=["Add", "Sub", "Sub", "Mul", "Mul", "Add"],
        count=1,
    )


def test_equal_small_constants_are_the_same_operand() -> None:
    check_pass(
        Cse(),
        before="g (float[N] x) => (float[N] y) { a = Add (x, u)  b = Add (x, v)  y = Mul (a, b) }",
        weights={"u": np.ones(1, np.float32), "v": np.ones(1, np.float32)},
        after=["Add", "Mul"],
        count=1,
    )


def test_random_operators_stay() -> None:
    model = parse(
        """
        g (float[N] x) => (float[N] y) {
            a = RandomUniformLike (x)  b = RandomUniformLike (x)
            y = Add (a, b)
        }
        """
    )
    assert Cse().rewrite(model, Context()) == 0


def test_outputs_keep_their_names() -> None:
    check_pass(
        Cse(),
        before="g (float[N] x) => (float[N] y, float[N] z) { a = Neg (x)  y = Neg (x)  z = Abs (a) }",
        after="y = Neg (x)\nz = Abs (y)",
        count=1,
    )
    check_pass(
        Cse(),
        before="g (float[N] x) => (float[N] y, float[N] z) { y = Neg (x)  z = Neg (x) }",
        after="y = Neg (x)\nz = Neg (x)",
        count=0,
    )


def test_a_branch_reuses_what_came_before_it_but_not_after() -> None:
    model = check_pass(
        Cse(),
        before="""
            g (bool c, float[N] x) => (float[N] y) {
                a = Neg (x)
                b = If (c) <
                    then_branch = t () => (float[N] p) { r = Neg (x)  s = Abs (x)  p = Add (r, s) },
                    else_branch = e () => (float[N] q) { u = Neg (x)  q = Relu (u) }
                >
                d = Abs (x)
                e = Add (a, d)
                y = Add (b, e)
            }
        """,
        count=2,
    )
    assert [node.op_type for node in model.graph.all_nodes()].count("Abs") == 2


def test_the_output_of_a_branch_stays_in_the_branch() -> None:
    check_pass(
        Cse(),
        before="""
            g (bool c, float[N] x) => (float[N] y, float[N] a) {
                a = Neg (x)
                y = If (c) <
                    then_branch = t () => (float[N] p) { p = Neg (x) },
                    else_branch = e () => (float[N] q) { q = Relu (x) }
                >
            }
        """,
        count=0,
    )


def test_inside_a_function() -> None:
    model = check_pass(
        Cse(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N] x) => (float[N] y) { y = local.f (x) }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) { a = Neg (x)  b = Neg (x)  y = Mul (a, b) }
        """,
        count=1,
    )
    assert [[node.op_type for node in f] for f in model.functions.values()] == [["Neg", "Mul"]]


def test_reshapes_to_the_same_shape_are_equal_in_whatever_words() -> None:
    check_pass(
        Cse(),
        before="""
            g (float[N, 1, 8] x) => (float[N, 8] y, float[8, N] z)
            <int64[2] to = {-1, 8}, int64[1] one = {1}> {
                a = Reshape (x, to)  b = Squeeze (x, one)  c = Flatten <axis = 2> (x)
                d = Relu (a)  e = Add (b, d)
                y = Mul (e, c)  f = Squeeze (x, one)
                z = Transpose <perm = [1, 0]> (f)
            }
        """,
        after=["Reshape", "Relu", "Add", "Mul", "Transpose"],
        count=3,
    )


def test_reshapes_of_which_one_size_is_unknown_stay_two() -> None:
    check_pass(
        Cse(),
        before="""
            g (float[A, B] x) => (float[C, D] y, float[E, F] z) {
                s = Shape (x)  m = Abs (s)  n = Neg (s)  p = Neg (n)
                a = Reshape (x, m)  b = Reshape (x, p)
                y = Relu (a)  z = Neg (b)
            }
        """,
        count=0,
    )


def test_reshapes_to_other_shapes_stay() -> None:
    check_pass(
        Cse(),
        before="""
            g (float[N, 1, 8] x) => (float[N, 8] y, float[8, N] z)
            <int64[2] to = {8, -1}, int64[1] one = {1}> {
                a = Reshape (x, to)  b = Squeeze (x, one)
                z = Relu (a)  y = Neg (b)
            }
        """,
        count=0,
    )
