import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_matmul import FuseMatMul
from burnish.target import get_target
from burnish.testing import check_pass, parse

INPUTS = "float[B, S, 4] a, float[B, T, 4] b"
NUMBERS = {
    "half": np.float32(0.5),
    "two": np.float32(2.0),
    "zero": np.float32(0),
    "vector": np.array([0.5], np.float32),
}
TURNED = "t = Transpose <perm = [0, 2, 1]> (b)  "


def graph(nodes: str, inputs: str = INPUTS, output: str = "float[B, S, T] y") -> str:
    return f"g ({inputs}) => ({output}) {{ {nodes} }}"


def weights(nodes: str) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in NUMBERS.items() if f", {name})" in nodes}


HALVED = "FusedMatMul <alpha: float = 0.5, transB: int = 1> (a, b)"


@pytest.mark.parametrize(
    ("nodes", "after"),
    [
        (TURNED + "y = MatMul (a, t)", "FusedMatMul <transB: int = 1> (a, b)"),
        (TURNED + "m = MatMul (a, t)  y = Div (m, two)", HALVED),
        (TURNED + "s = Div (t, two)  y = MatMul (a, s)", HALVED),
        ("s = Mul (b, half)  t = Transpose <perm = [0, 2, 1]> (s)  q = Mul (a, half)  y = MatMul (q, t)",
         "FusedMatMul <alpha: float = 0.25, transB: int = 1> (a, b)"),
    ],
)  # fmt: skip
def test_transposes_and_factors(nodes: str, after: str) -> None:
    expected = f"y = com.microsoft.{after}"
    check_pass(FuseMatMul(), graph(nodes), expected, count=1, weights=weights(nodes))


def test_both_sides_of_four_axes() -> None:
    nodes = """t = Transpose <perm = [0, 1, 3, 2]> (a)  u = Transpose <perm = [0, 1, 3, 2]> (b)
        m = MatMul (t, u)  y = Mul (m, two)"""
    inputs, output = "float[B, 2, 4, S] a, float[1, 2, T, 4] b", "float[B, 2, S, T] y"
    model = check_pass(FuseMatMul(), graph(nodes, inputs, output), count=1, weights=weights(nodes))
    (node,) = model.graph
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "alpha": 2.0, "transA": 1, "transB": 1,
    }  # fmt: skip


def test_twice_transposed_is_as_it_was() -> None:
    nodes = TURNED + "u = Transpose <perm = [0, 2, 1]> (t)  y = MatMul (a, u)"
    text = graph(nodes, "float[B, S, 4] a, float[B, 4, 5] b", "float[B, S, 5] y")
    model = check_pass(FuseMatMul(), text, count=1)
    assert [len(node.attributes) for node in model.graph] == [0]


REFUSED = {
    "read elsewhere": (
        TURNED + "y = MatMul (a, t)  z = Neg (t)", INPUTS, "float[B, S, T] y, float[B, 4, T] z", None),
    "a result": (TURNED + "y = MatMul (a, t)", INPUTS, "float[B, S, T] y, float[B, 4, T] t", None),
    "another order": (
        "t = Transpose <perm = [1, 0, 2]> (b)  y = MatMul (a, t)", "float[B, S, 4] a, float[4, B, T] b",
        "float[B, S, T] y", None),
    "a vector of one number": (
        "m = MatMul (a, b)  y = Mul (m, vector)", "float[B, S, 4] a, float[B, 4, T] b",
        "float[B, S, T] y", None),
    "nothing is left": (
        "m = MatMul (a, b)  y = Mul (m, zero)", "float[B, S, 4] a, float[B, 4, T] b", "float[B, S, T] y",
        "the factors are 0, or do not fit into one number"),
    "a number over the product": (
        "m = MatMul (a, b)  y = Div (k, m)", "float k, float[B, S, 4] a, float[B, 4, T] b",
        "float[B, S, T] y", None),
    "matrices": (
        "m = MatMul (a, b)  y = Mul (m, two)", "float[S, 4] a, float[4, T] b", "float[S, T] y",
        "its operands are not of one known rank of at least 3"),
    "another rank": (
        "m = MatMul (a, b)  y = Mul (m, two)", "float[B, S, 4] a, float[4, T] b", "float[B, S, T] y",
        "its operands are not of one known rank of at least 3"),
    "float64": (
        TURNED + "y = MatMul (a, t)", INPUTS.replace("float", "double"), "double[B, S, T] y",
        "FusedMatMul takes float32, or the type is not known"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "inputs", "output", "why"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_stays(nodes: str, inputs: str, output: str, why: str | None) -> None:
    context = Context()
    text = graph(nodes, inputs, output)
    check_pass(FuseMatMul(), text, count=0, weights=weights(nodes), context=context)
    assert [miss.why for miss in context.misses[:1]] == ([] if why is None else [why])


def test_a_target_without_the_kernel() -> None:
    context = Context(target=get_target("openvino"))
    assert FuseMatMul().rewrite(parse(graph(TURNED + "y = MatMul (a, t)")), context) == 0
    assert context.misses[0].why == "target openvino has no com.microsoft::FusedMatMul"
