import onnx_ir as ir
import pytest

from burnish.passes.shapes import Shapes
from burnish.testing import parse


def shape_of(nodes: str, inputs: str) -> str:
    model = parse(f"g ({inputs}) => (z) {{ {nodes}  z = Identity (y) }}")
    value = next(v for node in model.graph for v in node.outputs if v.name == "y")
    shape = Shapes(model)[value].shape
    return "?" if shape is None else ",".join(map(str, shape))


LSTM = "com.microsoft.DynamicQuantizeLSTM <hidden_size = 7{}> (x, w, r, b, , , , , s, p, s, p)"
STEPS = "float[t, n, 4] x, int8[1, 4, 28] w, int8[1, 7, 28] r, float[1, 56] b, float[1] s, int8[1] p"
FLOATS = "float[n, m, 4] x, int8[4, 5] w, float s"
BYTES = "uint8[n, m, 4] x, int8[4, 5] w, float s"
PAIR = "uint8[n, 4] x, float s, uint8 p"


@pytest.mark.parametrize(
    ("nodes", "inputs", "shape"),
    [
        (f"y = {LSTM.format('')}", STEPS, "t,1,n,7"),
        (f"a, y = {LSTM.format('')}", STEPS, "1,n,7"),
        (f'a, b1, y = {LSTM.format(", direction = " + chr(34) + "bidirectional" + chr(34))}', STEPS, "2,n,7"),
        ("y = com.microsoft.DynamicQuantizeMatMul (x, w, s)", FLOATS, "n,m,5"),
        ("y = com.microsoft.MatMulIntegerToFloat (x, w, s, s)", BYTES, "n,m,5"),
        ("y = com.microsoft.QLinearAdd (x, s, p, x, s, p, s, p)", PAIR, "n,4"),
        ("y = com.microsoft.QLinearMul (x, s, p, c, s, p, s, p)", f"{PAIR}, uint8[1] c", "n,4"),
        ("y = com.microsoft.QLinearSigmoid (x, s, p, s, p)", PAIR, "n,4"),
    ],
)  # fmt: skip
def test_shapes_of_quantised_operators(nodes: str, inputs: str, shape: str) -> None:
    assert shape_of(nodes, inputs) == shape


def test_the_type_of_a_scaled_product_is_that_of_its_scales() -> None:
    nodes = "y = com.microsoft.MatMulIntegerToFloat (x, w, s, s)"
    model = parse(f"g (uint8[n, 4] x, int8[4, 5] w, float s) => (z) {{ {nodes}  z = Identity (y) }}")
    assert Shapes(model)[model.graph.outputs[0]].dtype == ir.DataType.FLOAT


def test_branches_agree_on_what_they_have_in_common() -> None:
    then = "then_branch = t () => (float[n, 4] a) { a = Relu (x) }"
    other = "else_branch = e () => (float[n, m] b) { b = Gather <axis = 1> (x, i) }"
    shape = shape_of(f"y = If (c) <{then}, {other}>", "bool c, float[n, 4] x, int64[k] i")
    first, second = shape.split(",")
    assert first == "n"
    assert second.startswith("?")


LOOP = """
    y0, y = Loop (times, , x) <body = b (int64 i, bool go, float[n, 4] state)
        => (bool more, float[n, 4] next, float[n, 4] seen) {
        more = Identity (go)  next = Relu (x)  seen = Neg (x)
    }>
"""


def test_what_a_loop_collects_has_the_sizes_of_a_turn() -> None:
    shape = shape_of(LOOP, "int64 times, float[3, 4] x").split(",")
    assert shape[0].startswith("?")
    assert shape[1:] == ["3", "4"]


def test_of_what_a_loop_carries_nothing_is_said() -> None:
    assert shape_of(LOOP.replace("y0, y =", "y, y1 ="), "int64 times, float[3, 4] x") == "?"
