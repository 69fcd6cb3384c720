import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.remove_no_op import RemoveNoOp
from burnish.testing import check_pass, parse

NOTHING = [
    "Cast <to = 1> (a)",
    "CastLike (a, x)",
    "Transpose <perm = [0, 1, 2]> (a)",
    "Reshape (a, same)",
    "Reshape (a, copied)",
    "Expand (a, ones)",
    "Tile (a, ones)",
    "Slice (a, start, end)",
    "Concat <axis = 1> (a)",
    "Max (a)",
    "Sum (a)",
    "Dropout (a)",
    "Pad (a, nothing)",
    "Split <axis = 2, num_outputs = 1> (a)",
    "Mul (a, one)",
    "Mul (one, a)",
    "Div (a, one)",
    "Pow (a, one)",
    "Where (yes, a, other)",
    "Where (no, other, a)",
]
WEIGHTS = {
    "same": np.array([-1, 4, 2]),
    "copied": np.array([0, 0, 0]),
    "ones": np.array([1, 1, 1]),
    "start": np.array([0, 0, 0]),
    "end": np.array([2**62, 4, 2**31]),
    "nothing": np.zeros(6, np.int64),
    "one": np.ones(1, np.float32),
    "yes": np.ones((4, 1), bool),
    "no": np.zeros((), bool),
    "other": np.zeros((), np.float32),
}


@pytest.mark.parametrize("expression", NOTHING)
def test_what_does_nothing_goes(expression: str) -> None:
    used = {name: array for name, array in WEIGHTS.items() if name in expression}
    check_pass(
        RemoveNoOp(),
        before=f"g (float[N, 4, 2] x) => (float[N, 4, 2] y) {{ a = Relu (x) b = {expression} y = Neg (b) }}",
        weights=used,
        after="a = Relu (x)\ny = Neg (a)",
        count=1,
        opset=18,
    )


SOMETHING = [
    "Cast <to = 10> (a)",
    "Transpose <perm = [0, 1, 2]> (t)",
    "Reshape (t, same)",
    "Slice (a, start, end, axes, back)",
    "Slice (a, start, less)",
    "Concat <axis = 1> (a, a)",
    "Clip (a)",  # infinities become the largest finite numbers
    "Clip (a, zero)",
    "Pad (a, some)",
    "Mul (a, two)",
    "Mul (a, onecolumn)",
    "Add (a, zero)",  # -0.0 + 0.0 is 0.0
    "Div (one, a)",
    "Pow (one, a)",
    "Where (yes, other, a)",
    "Where (mixed, a, other)",
    "Where (yes, a, onecolumn)",
]


@pytest.mark.parametrize("expression", SOMETHING)
def test_what_does_something_stays(expression: str) -> None:
    weights = WEIGHTS | {
        "less": np.array([2**31, 3, 2**31]),
        "axes": np.array([0, 1, 2]),
        "back": np.array([1, -1, 1]),
        "some": np.array([0, 0, 0, 0, 0, 1]),
        "zero": np.zeros((), np.float32),
        "mixed": np.array([True, False]),
        "two": np.array([1, 2], np.float32),
        "onecolumn": np.ones((3, 1, 1, 1), np.float32),
    }
    model = parse(
        f"g (float[N, 4, 2] x) => (y) {{ a = Relu (x)  t = Transpose (a)  b = {expression}  y = Neg (b) }}",
        weights={name: array for name, array in weights.items() if name in expression},
        opset=18,
    )
    removed = RemoveNoOp().rewrite(model, Context())
    assert removed == (1 if "perm = [0, 1, 2]> (t)" in expression else 0)


def test_integers_and_booleans() -> None:
    check_pass(
        RemoveNoOp(),
        before="""
            g (int64[N] i, bool[N] b) => (int64[N] y, bool[N] z)
            <int64[1] zero = {0}, bool yes = {1}, bool no = {0}>
            {
                i1 = Add (i, zero)  i2 = Sub (i1, zero)  i3 = Clip (i2)  y = Neg (i3)
                b1 = And (yes, b)   b2 = Or (b1, no)     z = Not (b2)
            }
        """,
        after="y = Neg (i)\nz = Not (b)",
        count=5,
    )


def test_symbolic_dims() -> None:
    check_pass(
        RemoveNoOp(),
        before="""
            g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
            <int64[1] four = {4}, int64[1] zero = {0}, int64[1] axis = {1}>
            {
                s = Shape <end = 2> (x)
                t = Concat <axis = 0> (s, four)
                s1 = Shape <start = 1, end = 2> (x)
                a = Neg (x)
                b = Reshape (a, t)
                c = Expand (b, t)
                d = Slice (c, zero, s1, axis)
                y = Relu (d)
            }
        """,
        after="a = Neg (x)\ny = Relu (a)",
        count=3,
    )


def test_dims_of_different_names_may_differ() -> None:
    text = """
        g (float[a, 4] x, float[b, 4] z) => (float[c, 4] y) { s = Shape (z)  e = Expand (x, s)  y = Relu (e) }
    """
    assert RemoveNoOp().rewrite(parse(text), Context()) == 0


@pytest.mark.parametrize("no_op", ["Cast <to = 1> (x)", "Slice (x, zero, far)", "Dropout (x)"])
def test_between_an_input_and_an_output_an_identity_is_left(no_op: str) -> None:
    weights = {"zero": np.array([0]), "far": np.array([2**62])} if "zero" in no_op else {}
    text = f"g (float[N] x) => (float[N] y) {{ y = {no_op} }}"
    check_pass(RemoveNoOp(), text, "y = Identity (x)", count=1, weights=weights)


def test_an_output_takes_its_name_along() -> None:
    check_pass(
        RemoveNoOp(),
        "g (float[N] x) => (float[N] y) { a = Relu (x)  y = Cast <to = 1> (a) }",
        after="y = Relu (x)",
        count=1,
    )


def test_dropout_in_training_and_with_its_mask_stays() -> None:
    model = parse("g (float[N] x) => (float[N] y, bool[N] m) { a = Relu (x)  y, m = Dropout (a) }")
    assert RemoveNoOp().rewrite(model, Context()) == 0
    text = """
        g (float[N] x) => (float[N] y) <float r = {0.5}, bool t = {1}> { a = Relu (x)  y = Dropout (a, r, t) }
    """
    assert RemoveNoOp().rewrite(parse(text), Context()) == 0


def test_inside_branches_and_functions() -> None:
    model = check_pass(
        RemoveNoOp(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (bool c, float[N] x) => (float[N] y) {
                y = If (c) <
                    then_branch = t () => (float[N] p) { a = Cast <to = 1> (x)  p = Neg (a) },
                    else_branch = e () => (float[N] q) { q = local.f (x) }
                >
            }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) { t = Transpose <perm = [0]> (x)  y = Relu (t) }
        """,
        count=2,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Neg", "f"]


RESIZES = {
    "to its own sizes": ('mode = "linear", nearest_mode = "floor"', "a, , , same", 1),
    "the nearest of itself": ('mode = "nearest"', "a, , , same", 1),
    "to other sizes": ('mode = "linear", nearest_mode = "floor"', "a, , , more", 0),
    "by scales that round to its sizes": (
        'mode = "nearest", coordinate_transformation_mode = "asymmetric"', "a, , scales", 0,
    ),
    "of a region": (
        'mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"', "a, region, , same", 0,
    ),
    "cubic": ('mode = "cubic"', "a, , , same", 0),
}  # fmt: skip


@pytest.mark.parametrize(("attributes", "inputs", "count"), RESIZES.values(), ids=RESIZES)
def test_resize(attributes: str, inputs: str, count: int) -> None:
    weights = {
        "same": np.array([1, 2, 4, 5]), "more": np.array([1, 2, 8, 10]),
        "scales": np.array([1, 1, 1.2, 1.1], np.float32),
        "region": np.array([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8], np.float32),
    }  # fmt: skip
    nodes = f"a = Relu (x) b = Resize <{attributes}> ({inputs}) y = Neg (b)"
    sizes = "1, 2, 8, 10" if "more" in inputs else "1, 2, 4, 5"
    check_pass(
        RemoveNoOp(),
        before=f"g (float[1, 2, 4, 5] x) => (float[{sizes}] y) {{ {nodes} }}",
        weights={name: array for name, array in weights.items() if name in inputs},
        after="a = Relu (x)\ny = Neg (a)" if count else None,
        count=count,
    )
