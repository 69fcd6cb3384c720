import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.unflatten_linear import UnflattenLinear
from burnish.testing import check_pass

_RNG = np.random.default_rng(0)
ARRAYS = {
    "w": _RNG.standard_normal((4, 6)).astype(np.float32),
    "wt": _RNG.standard_normal((6, 4)).astype(np.float32),
    "v": _RNG.standard_normal((6, 4)).astype(np.float32), "b": _RNG.standard_normal(6).astype(np.float32),
    "c": _RNG.standard_normal(4).astype(np.float32), "g": _RNG.standard_normal(4).astype(np.float32),
    "rows": np.array([-1, 4]), "zero": np.array(0),
}  # fmt: skip
BACK = """
    s0 = Shape <start = 0, end = 2> (x)  six = Constant <value_ints = [6]> ()
    four = Constant <value_ints = [4]> ()
    to6 = Concat <axis = 0> (s0, six)  to4 = Concat <axis = 0> (s0, four)
"""


def run(nodes: str, count: int, *, inputs: str = "float[B, S, 4] x", outputs: str = "float[B, S, 6] y",
        context: Context | None = None) -> list[str]:  # fmt: skip
    used = {name: array for name, array in ARRAYS.items() if any(f", {name}{end}" in nodes for end in ",)")}
    text = f"g ({inputs}) => ({outputs}) {{ {BACK} {nodes} }}"
    model = check_pass(
        UnflattenLinear(), text, count=count, opset=20, weights=used, context=context or Context()
    )
    made = {node.op_type: node for node in model.graph}
    if count and "MatMul" in made:
        weight = made["MatMul"].inputs[1]
        assert isinstance(weight, ir.Value)
        assert weight.is_initializer()
    return [node.op_type for node in model.graph if node.op_type not in ("Shape", "Constant", "Concat")]


@pytest.mark.parametrize(
    ("gemm", "left"),
    [
        ("Gemm (r, w, b)", ["MatMul", "Add"]),
        ("Gemm (r, w)", ["MatMul"]),
        ("Gemm <transB = 1> (r, wt, b)", ["MatMul", "Add"]),
        ("MatMul (r, w)", ["MatMul"]),
    ],
)
def test_a_product_of_rows(gemm: str, left: list[str]) -> None:
    assert run(f"r = Reshape (x, rows)  z = {gemm}  y = Reshape (z, to6)", 1) == left


def test_four_axes() -> None:
    nodes = """r = Reshape (x, rows)  z = Gemm (r, w, b)  s1 = Shape <start = 0, end = 3> (x)
        to = Concat <axis = 0> (s1, six)  y = Reshape (z, to)"""
    made = run(nodes, 1, inputs="float[B, S, 3, 4] x", outputs="float[B, S, 3, 6] y")
    assert made == ["MatMul", "Add"]


FEED_FORWARD = """
    r = Reshape (x, rows)  n = LayerNormalization <axis = 1> (r, g, c)  h = Gemm (n, w, b)  a = Relu (h)
    z = Gemm (a, v, c)  t = Add (r, z)
"""


def test_a_whole_feed_forward_layer() -> None:
    made = run(FEED_FORWARD + "y = Reshape (t, to4)", 1, outputs="float[B, S, 4] y")
    assert made == ["LayerNormalization", "MatMul", "Add", "Relu", "MatMul", "Add", "Add"]


def test_two_that_are_flattened_apart() -> None:
    nodes = (
        "r = Reshape (x, rows)  q = Reshape (k, rows)  z = Gemm (r, w, b)  p = Gemm (q, w)  t = Mul (z, p)  "
    )
    nodes += "y = Reshape (t, to6)  p3 = Reshape (p, to6)  y2 = Neg (p3)"
    outputs = "float[B, S, 6] y, float[B, S, 6] y2"
    made = run(nodes, 1, inputs="float[B, S, 4] x, float[B, S, 4] k", outputs=outputs)
    assert made == ["MatMul", "Add", "MatMul", "Mul", "Neg"]


REFUSED = {
    "rows of other axes": (
        "r = Reshape (x, rows)  q = Reshape (k, rows)  z = Sub (r, q)  y = Reshape (z, to4)",
        "float[B, S, 4] x, float[S, B, 4] k", "float[B, S, 4] y"),
    "across rows": (
        "r = Reshape (x, rows)  z = Gemm (r, w, b)  t = CumSum (z, zero)  y = Reshape (t, to6)",
        "float[B, S, 4] x", "float[B, S, 6] y"),
    "a softmax over rows": (
        "r = Reshape (x, rows)  t = Softmax <axis = 0> (r)  y = Reshape (t, to4)",
        "float[B, S, 4] x", "float[B, S, 4] y"),
    "a result of the graph": (
        "r = Reshape (x, rows)  z = Gemm (r, w, b)  y = Reshape (z, to6)",
        "float[B, S, 4] x", "float[B, S, 6] y, float[R, 6] z"),
    "a factor": (
        "r = Reshape (x, rows)  z = Gemm <alpha = 0.5> (r, w, b)  y = Reshape (z, to6)",
        "float[B, S, 4] x", "float[B, S, 6] y"),
    "weights that are no constants": (
        "r = Reshape (x, rows)  z = Gemm (r, k, b)  y = Reshape (z, to6)",
        "float[B, S, 4] x, float[4, 6] k", "float[B, S, 6] y"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "inputs", "outputs"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_said(nodes: str, inputs: str, outputs: str) -> None:
    context = Context()
    run(nodes, 0, inputs=inputs, outputs=outputs, context=context)
    assert context.misses
    assert context.misses[0].why.startswith("what is flattened")


def test_a_squeeze_flattens_too() -> None:
    nodes = "one = Constant <value_ints = [1]> ()  r = Squeeze (x, one)  p = Gemm (r, w, b)"
    inputs, outputs = "float[B, 1, 4] x", "float[B, 1, 6] y"
    left = run(f"{nodes}  y = Unsqueeze (p, one)", 1, inputs=inputs, outputs=outputs)
    assert left == ["MatMul", "Add"]
