"""Op counts and ranks out of the bytes, against what onnx itself says."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from burnish.errors import ModelError
from burnish.runtime.outline import Outline, op_counts, outlines, rankless_inputs

Make = Callable[[str], bytes]

NESTED = """
    g (bool c, float[n] x) => (float[n] y) {
        y = If (c) <
            then_branch = t () => (float[n] a) { r = Relu (x)  a = Neg (r) },
            else_branch = e () => (float[n] b) {
                b = If (c) <
                    then_branch = u () => (float[n] d) { d = Neg (x) },
                    else_branch = v () => (float[n] f) { f = com.microsoft.Gelu (x) }
                >
            }
        >
    }
"""


def test_counts_reach_into_subgraphs(make: Make) -> None:
    assert op_counts(make(NESTED)) == {"If": 2, "Neg": 2, "Relu": 1, "com.microsoft::Gelu": 1}


def test_outlines_are_those_of_the_main_graph() -> None:
    model = onnx.parser.parse_graph("g (float[n, 4] x) => (float[n, 2] y) { y, z = Split <axis = 1> (x) }")
    model.node[0].name = "halves"
    proto = onnx.helper.make_model(model, opset_imports=[onnx.helper.make_opsetid("", 13)])
    assert outlines(proto.SerializeToString()) == [Outline("halves", ("x",), ("y", "z"))]


def test_outlines_stop_at_bodies(make: Make) -> None:
    assert outlines(make(NESTED)) == [Outline("", ("c",), ("y",))]


def test_counts_reach_into_functions() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 21, "own": 1]>
        g (float[n] x) => (float[n] y) { y = own.twice (x) }
        <domain: "own", opset_import: ["": 21]>
        twice (a) => (b) { b = Add (a, a) }
    """
    assert op_counts(onnx.parser.parse_model(text).SerializeToString()) == {"Add": 1, "own::twice": 1}


def test_weights_are_not_read(make: Make, tmp_path: Path) -> None:
    proto = onnx.ModelProto.FromString(make("g (float[n] x) => (float[n] y) { y = Relu (x) }"))
    tensor = proto.graph.initializer.add(name="w", data_type=1, dims=[1 << 20], raw_data=b"\x0a" * (4 << 20))
    assert len(tensor.raw_data) == 4 << 20
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert op_counts(tmp_path / "m.onnx") == {"Relu": 1}


def test_inputs_without_a_rank(make: Make) -> None:
    proto = onnx.ModelProto.FromString(make("g (float s, float[n] x) => (float[n] y) { y = Mul (s, x) }"))
    assert rankless_inputs(proto.SerializeToString()) == frozenset()
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    assert rankless_inputs(proto.SerializeToString()) == {"x"}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_damage_is_an_error(cut: int, make: Make) -> None:
    with pytest.raises(ModelError) as caught:
        op_counts(make(NESTED)[:-cut])
    assert caught.value.code == "MODEL_PARSE"
