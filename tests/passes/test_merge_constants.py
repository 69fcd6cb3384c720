import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.cleanup.merge_constants import MergeConstants
from burnish.testing import check_pass, parse

NUMBERS = {
    "two": np.array(2, np.float32), "three": np.array([3], np.float32), "minus": np.array(-2, np.float32),
    "row": np.array([1, -2, 0.5, 4], np.float32), "other": np.array([2, -3, 0.25, 1], np.float32),
    "column": np.ones((3, 1), np.float32), "wide": np.ones((2, 3, 4), np.float32),
    "zero": np.zeros((), np.float32), "zeros": np.zeros(4, np.float32), "nought": -np.zeros(4, np.float32),
    "tiny": np.array(1e-30, np.float32), "huge": np.array(1e30, np.float32), "six": np.array(6, np.float32),
    "i2": np.array(2), "i3": np.array([3]), "max64": np.array(2**63 - 1), "nan": np.array(np.nan, np.float32),
    "clock": np.array(1.6e9, np.float32), "eps": np.array(1e-5, np.float32),
}  # fmt: skip


def used(text: str) -> dict[str, np.ndarray]:
    words = text.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: array for name, array in NUMBERS.items() if name in words}


def graph(nodes: str, dtype: str = "float", rank: int = 2) -> str:
    dims = "M, K, L" if rank == 3 else "N, 4"
    return f"g ({dtype}[N, 4] x, {dtype}[N, 4] z) => ({dtype}[{dims}] y) {{ {nodes} }}"


CHAINS = [
    ("a = Mul (x, two)  y = Mul (three, a)", "Mul"), ("a = Mul (x, row)  y = Div (a, two)", "Mul"),
    ("a = Div (x, two)  y = Div (a, row)", "Mul"), ("a = Add (x, two)  y = Add (a, three)", "Add"),
    ("a = Sub (two, x)  y = Sub (a, minus)", "Sub"), ("a = Sub (x, minus)  y = Sub (minus, a)", "Sub"),
    ("a = Sub (minus, x)  y = Sub (two, a)", "Add"), ("a = Add (row, x)  y = Add (a, other)", "Add"),
    ("a = Mul (x, two)  b = Mul (a, two)  c = Div (b, two)  y = Mul (c, three)", "Mul"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "op_type"), CHAINS)
def test_constants_in_a_row(nodes: str, op_type: str) -> None:
    check_pass(MergeConstants(), graph(nodes), [op_type], count=nodes.count("=") - 1, weights=used(nodes))


def test_integers_wrap_around_either_way() -> None:
    nodes = "a = Add (x, max64)  b = Sub (i2, a)  c = Mul (b, max64)  y = Mul (c, i3)"
    check_pass(MergeConstants(), graph(nodes, "int64"), ["Sub", "Mul"], count=2, weights=used(nodes))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("a = Add (x, huge)  y = Sub (a, huge)", True),  # rounds x
        ("a = Add (x, row)  y = Add (a, two)", True),
        ("a = Sub (x, clock)  y = Sub (a, eps)", True),  # exact where x is near the clock
        ("a = Mul (x, tiny)  y = Mul (a, tiny)", True),
        ("a = Mul (x, huge)  y = Mul (a, huge)", True),
        ("a = Mul (x, two)  y = Div (two, a)", False),
        ("a = Mul (x, two)  b = Mul (a, three)  y = Add (a, b)", False),
        ("a = Mul (x, two)  y = Add (a, three)", False),
        ("a = Mul (x, z)  y = Mul (a, two)", False),
    ],
)
def test_constants_that_stay(nodes: str, said: bool) -> None:
    context = Context()
    assert MergeConstants().rewrite(parse(graph(nodes), weights=used(nodes)), context) == 0
    assert bool(context.misses) == said


def test_constants_that_would_grow_stay() -> None:
    text = "g (float[3, 4] x) => (float[3, 4] y) { a = Mul (x, row)  y = Mul (a, column) }"
    assert MergeConstants().rewrite(parse(text, weights=used("row column")), Context()) == 0


def test_a_sum_that_loses_nothing_may_be_as_uneven_as_it_likes() -> None:
    weights = {"clock": np.array(2.0**30, np.float32), "day": np.array(128, np.float32)}
    text = graph("a = Sub (x, clock)  y = Sub (a, day)")
    check_pass(MergeConstants(), text, ["Add"], count=1, weights=weights)
