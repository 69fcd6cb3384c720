import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.merge_concats_splits import MergeConcatsSplits
from burnish.testing import check_pass, parse

NUMBERS = {
    "m1": np.array([-1]), "m2": np.array([-2]), "k0": np.array([0]), "k1": np.array([1]), "k2": np.array([2]),
    "k3": np.array([3]), "k4": np.array([4]), "k6": np.array([6]), "far": np.array([2**62]),
    "s13": np.array([1, 3]), "s22": np.array([2, 2]), "back": np.array([-1]), "s112": np.array([1, 1, 2]),
}  # fmt: skip


def used(text: str) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array for name, array in NUMBERS.items() if name in words}


GONE = [
    "a, b = Split <axis = 1> (r, s13)  y = Concat <axis = 1> (a, b)",
    "a, b = Split <axis = -1, num_outputs = 2> (r)  y = Concat <axis = 1> (a, b)",
    "a = Slice (r, k0, k3, k1)  b = Slice (r, k3, far, k1)  y = Concat <axis = 1> (a, b)",
    "a = Slice (r, k0, k3, k1)  b = Slice (r, k3, k4, k1)  y = Concat <axis = 1> (a, b)",
    "a = Slice (r, k0, m1, k1)  b = Slice (r, m1, far, k1)  y = Concat <axis = 1> (a, b)",
    "a = Slice (r, k0, k3, k0)  b = Slice (r, k3, far, k0)  y = Concat <axis = 0> (a, b)",
    "a = Slice (r, k0, k6, k0)  b = Slice (r, k6, far, k0)  y = Concat <axis = 0> (a, b)",
    (
        "a = Slice (r, k0, m2, k0)  b = Slice (r, m2, m1, k0)  c = Slice (r, m1, far, k0)"
        "  y = Concat <axis = 0> (a, b, c)"
    ),
    (
        "a = Slice (r, k0, k1, k0)  b = Slice (r, k1, k6, k0)  c = Slice (r, k6, far, k0)"
        "  y = Concat <axis = 0> (a, b, c)"
    ),
]


@pytest.mark.parametrize("nodes", GONE)
def test_what_is_put_together_again_was_there(nodes: str) -> None:
    text = f"g (float[N, 4] x) => (float[N, 4] y) {{ r = Relu (x)  {nodes} }}"
    check_pass(MergeConcatsSplits(), text, "y = Relu (x)", count=1, weights=used(nodes))


@pytest.mark.parametrize("rows", range(6))
def test_slices_that_follow_one_another_are_all_there_is_at_any_size(rows: int) -> None:
    for nodes in GONE[2:]:
        model = f"g (float[{rows or 'N'}, 4] x) => (float[M, 4] y) {{ r = Relu (x)  {nodes} }}"
        check_pass(MergeConcatsSplits(), model, ["Relu"], count=1, weights=used(nodes))


KEPT = [
    "a, b = Split <axis = 1> (x, s13)  y = Concat <axis = 1> (b, a)",
    "a, b = Split <axis = 1> (x, s22)  y = Concat <axis = 0> (a, b)",
    "a, b, c = Split <axis = 1> (x, s112)  y = Concat <axis = 1> (a, b)",
    "a = Slice (x, k0, k2, k1)  b = Slice (x, k3, far, k1)  y = Concat <axis = 1> (a, b)",
    "a = Slice (x, k1, k2, k1)  b = Slice (x, k2, far, k1)  y = Concat <axis = 1> (a, b)",
    "a = Slice (x, k0, k2, k0)  b = Slice (x, k2, k6, k0)  y = Concat <axis = 0> (a, b)",
    # with one row: a, b and c take 0, 0 and 1 rows by these bounds, but [1:-1] of three rows is not [0:-1]
    (
        "a = Slice (x, k0, k1, k0)  b = Slice (x, k1, m1, k0)  c = Slice (x, m1, far, k0)"
        "  y = Concat <axis = 0> (a, b, c)"
    ),
    "a = Slice (x, k0, k2, k1)  b = Slice (z, k2, far, k1)  y = Concat <axis = 1> (a, b)",
    "a = Concat <axis = 0> (x, z)  y, u = Split <axis = 0, num_outputs = 2> (a)",
    "a = Concat <axis = 1> (x, z)  y, u = Split <axis = 0, num_outputs = 2> (a)",
    "a = Concat <axis = 0> (x, z)  y = Slice (a, k2, far, k0)",
    "a = Concat <axis = 1> (x, z)  y = Slice (a, k0, k3, k1)",
    "a = Concat <axis = 1> (x, z)  b = Concat <axis = 0> (a, a)  y = Neg (b)",
    "a = Concat <axis = 1> (x, z)  b = Concat <axis = 1> (a, z)  y = MatMul (b, a)",
    "a = Slice (x, k1, far, k0)  y = Slice (a, m1, far, k0)",
    "a = Slice (x, k1, far, k0)  b = Slice (a, k1, far, k0)  y = Add (a, b)",
]


@pytest.mark.parametrize("nodes", KEPT)
def test_kept(nodes: str) -> None:
    outputs = "y, u" if " u " in nodes else "y"
    text = f"g (float[N, 4] x, float[M, 4] z) => ({outputs}) {{ {nodes} }}"
    model = parse(text, weights=used(nodes))
    assert MergeConcatsSplits().rewrite(model, Context()) == 0


def test_concats_in_a_row() -> None:
    text = """g (float[N, 4] x, float[N, 3] z) => (float[N, 18] y) {
        a = Concat <axis = 1> (x, z)  b = Concat <axis = -1> (z, x)  y = Concat <axis = 1> (a, x, b)
    }"""
    check_pass(MergeConcatsSplits(), text, "y = Concat <axis: int = 1> (x, z, x, z, x)", count=2)


def test_all_parts_among_others() -> None:
    text = """g (float[N, 4] x, float[N, 3] z) => (float[N, 10] y) {
        a, b = Split <axis = 1> (x, s13)  y = Concat <axis = 1> (z, a, b, z)
    }"""
    check_pass(
        MergeConcatsSplits(), text, "y = Concat <axis: int = 1> (z, x, z)", count=1, weights=used("s13")
    )


def test_a_split_gives_the_parts_of_a_concat() -> None:
    text = """g (float[N, 1] x, float[N, 3] z) => (float[N, 1] y, float[N, 3] v) {
        r = Relu (x)  s = Neg (z)  a = Concat <axis = 1> (r, s)  p, q = Split <axis = -1> (a, s13)
        y = Neg (p)  v = Relu (q)
    }"""
    after = "r = Relu (x)\ns = Neg (z)\ny = Neg (r)\nv = Relu (s)"
    check_pass(MergeConcatsSplits(), text, after, count=1, weights=used("s13"))


def test_a_split_whose_parts_are_outputs_hands_over_one_value_once() -> None:
    for inputs, count in (("r, s", 1), ("r, r", 0)):
        text = f"""g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) {{
            r = Relu (x)  s = Neg (x)  a = Concat <axis = 1> ({inputs})  y, z = Split <axis = 1> (a, s22)
            t = Add (s, s)
        }}"""
        assert MergeConcatsSplits().rewrite(parse(text, weights=used("s22")), Context()) == count


@pytest.mark.parametrize(
    ("cut", "part"),
    [
        ("Slice (a, k0, k4, k1)", "x"),
        ("Slice (a, k4, far, k1)", "z"),
        ("Slice (a, k4, k6, k1)", "z"),
        ("Slice (a, m2, far, m1)", "z"),
    ],
)
def test_a_slice_that_takes_one_part_of_a_concat(cut: str, part: str) -> None:
    nodes = f"a = Concat <axis = 1> (x, z)  b = {cut}  y = Neg (b)"
    text = f"g (float[N, 4] x, float[N, 2] z) => (float[N, K] y) {{ {nodes} }}"
    check_pass(MergeConcatsSplits(), text, f"y = Neg ({part})", count=1, weights=used(cut))


def test_a_part_of_symbolic_size() -> None:
    text = """g (float[N, 4] x, float[M, 4] z) => (float[M, 4] y, float[K, 4] u) {
        a = Concat <axis = 0> (x, z)  n = Shape <end = 1> (x)  b = Slice (a, n, far, k0)  y = Relu (b)
        m = Shape <end = 1> (z)  o = Neg (m)  c = Slice (a, o, far, k0)  u = Relu (c)
    }"""
    model = check_pass(MergeConcatsSplits(), text, count=1, weights=used("far k0"))  # c is all when M is 0
    assert model.graph.node(-1).inputs[0].name == "c"


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("k1, far, k0", "k2, far, k0"), ("k1, k4, k0", "k1, k6, k0"), ("k2, k3, k0", "k2, far, k0"),
        ("k0, far, k0", "k1, k3, k1"), ("far, m2, k0, back", "k1, m1, k1"), ("k1, m1, k1", "m2, far, k0"),
    ],
)  # fmt: skip
def test_slices_in_a_row(first: str, second: str, size: int) -> None:
    text = f"""g (float[{size}, 4] x) => (float[A, B] y) {{
        a = Slice (x, {first})  b = Slice (a, {second})  y = Relu (b)
    }}"""
    check_pass(MergeConcatsSplits(), text, ["Slice", "Relu"], count=1, weights=used(f"{first}, {second}"))


def test_an_output_that_is_an_input_is_copied_once() -> None:
    text = """
        g (float[N, 4] x) => (float[N, 4] y) <int64[2] sizes = {1, 3}> {
            a, b = Split <axis = 1> (x, sizes)
            y = Concat <axis = 1> (a, b)
        }
    """
    check_pass(MergeConcatsSplits(), text, ["Identity"], count=1)
