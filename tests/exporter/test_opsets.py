"""An `.onnx` file as a source: moved to another opset, and compared with what it was."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import burnish
from burnish.cli import main
from burnish.errors import ExportError
from burnish.exporter.opsets import conversions
from burnish.manifest import DimRange
from burnish.model import load_model, save_model, signature

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

SQUEEZED = """<ir_version: 7, opset_import: ["" : 11]> g (float[N,1,3] x) => (float[N,3] y) {
    s = Squeeze<axes=[1]>(x)
    y = Softmax<axis=1>(s)
}"""
BRANCHES = """<ir_version: 7, opset_import: ["" : 11]> g (float[N,1,3] x, bool c) => (float[N,3] y) {
    y = If(c) <
        then_branch = t () => (float[N,3] a) { a = Squeeze<axes=[1]>(x) },
        else_branch = e () => (float[N,3] b) { b = ReduceSum<axes=[1], keepdims=0>(x) }
    >
}"""
LOOP = """<ir_version: 7, opset_import: ["" : 11]> g (float[1,3] x, int64 n, bool c) => (float[1,3] y) {
    y = Loop(n, c, x) <body = b (int64 i, bool ci, float[1,3] h) => (bool co, float[1,3] ho) {
        co = Identity(ci)
        u = Unsqueeze<axes=[0]>(h)
        s = Squeeze<axes=[0]>(u)
        ho = Add(s, h)
    }>
}"""
CUSTOM = """<ir_version: 7, opset_import: ["" : 11, "com.microsoft" : 1]>
g (float[N,1,3] x) => (float[N,3] y) {
    s = Squeeze<axes=[1]>(x)
    y = com.microsoft.Gelu(s)
}"""
FUNCTION = """<ir_version: 8, opset_import: ["" : 15, "mine" : 1]> g (float[N,3] x) => (float[N,3] y) {
    y = mine.twice(x)
}
<domain: "mine", opset_import: ["" : 15]> twice (a) => (b) { b = Add(a, a) }"""
REDUCED = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N] y) {
    y = ReduceMean<axes=[1], keepdims=0>(x)
}"""
EIGHTEEN = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"""


def saved(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("text", [SQUEEZED, BRANCHES, LOOP, CUSTOM, FUNCTION, REDUCED, EIGHTEEN])
def test_graphs_are_moved_and_compared(tmp_path: Path, text: str, opset: int) -> None:
    path = saved(tmp_path, text)
    before = path.read_bytes()
    made = burnish.export(path, opset=opset, output=tmp_path / "out.onnx")
    assert path.read_bytes() == before
    proto = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.version for entry in proto.opset_import if entry.domain == ""} == {opset}
    (receipt,) = made.manifest.receipts
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error < 1e-6
    assert f"-> {opset} by" in receipt.notes[0]
    assert len(receipt.assignments) >= 1


@pytest.mark.parametrize("name", ["squeezenet", "resnet50", "shufflenet"])
def test_models_of_the_onnx_package(name: str) -> None:
    made = burnish.export(LIGHT / f"light_{name}.onnx", opset=20)
    assert made.model.graph.opset_imports[""] == 20
    assert made.manifest.receipts[0].notes[0] == "opset 9 -> 20 by onnx's converter"


def test_the_same_opset_is_a_checked_copy(tmp_path: Path) -> None:
    made = burnish.export(saved(tmp_path, REDUCED), opset=17)
    assert made.manifest.receipts[0].notes[0] == "opset 17, as it was"
    assert made.manifest.receipts[0].max_rel_error == 0.0


def test_downwards_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, EIGHTEEN.replace('"" : 18', '"" : 21'))
    with pytest.raises(ExportError, match="burnish does not convert downwards") as caught:
        burnish.export(path, opset=20, output=tmp_path / "out.onnx")
    assert caught.value.code == "EXPORT_OPSET"
    assert "--opset 21" in caught.value.hint
    assert not (tmp_path / "out.onnx").exists()


def test_an_operator_without_a_converter_is_named() -> None:
    model = ir.from_proto(onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 8]> g (float[1,3] x, int64[1,3] i) => (float[1,3] y) '
        "{ y = Scatter(x, i, x) }"
    ))  # fmt: skip
    model.graph[0].name = "/scatter"
    with pytest.raises(ExportError) as caught:
        list(conversions(model, 20))
    assert caught.value.code == "EXPORT_OPSET"
    assert "Scatter (node '/scatter')" in caught.value.what


def test_weights_and_origins_stay(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((300, 300)).astype(np.float32)
    model = _with_weight(weight)
    save_model(model, tmp_path / "in.onnx", signature(model), external_threshold=0)
    assert list(tmp_path.glob("in.*.data"))
    made = burnish.export(tmp_path / "in.onnx", opset=20, output=tmp_path / "out.burnish")
    np.testing.assert_array_equal(made.model.graph.initializers["w"].const_value.numpy(), weight)
    assert [n.metadata_props.get("burnish.origins") for n in made.model.graph if n.op_type == "MatMul"] == [
        "mine"
    ]
    assert load_model(tmp_path / "out.burnish" / "model.onnx").graph.opset_imports[""] == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "fill-mask"}, "task is for a model of PyTorch"),
        ({"dtype": "float16"}, "dtype is for"),
        ({"weights": "keep"}, "weights is for"),
        ({"last_logits_only": False}, "last_logits_only is for"),
        ({"example_inputs": {"x": np.ones((2, 300), np.float32)}}, "example_inputs is for"),
        ({"dynamic": {"x": {0: "batch"}}}, "dynamic is for"),
        ({"decode_tokens": 3}, "decode_tokens is for"),
        ({"ranges": {"M": (1, 4)}}, "Did you mean 'N'|Known are: N"),
        ({"ranges": {"N": (4, 1)}}, "cannot range from 4 to 1"),
    ],
)
def test_what_is_for_modules_only_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    model = _with_weight(np.ones((300, 300), np.float32))
    save_model(model, tmp_path / "in.onnx", signature(model))
    with pytest.raises(ExportError, match=says):
        burnish.export(tmp_path / "in.onnx", opset=20, output=tmp_path / "out.onnx", **options)
    assert not (tmp_path / "out.onnx").exists()


def test_ranges_of_dims_are_kept_and_compared(tmp_path: Path) -> None:
    model = _with_weight(np.ones((300, 300), np.float32))
    save_model(model, tmp_path / "in.onnx", signature(model))
    made = burnish.export(tmp_path / "in.onnx", opset=20, ranges={"N": (2, 3)}, dtype="auto", task=None)
    assert made.manifest.dims == {"N": DimRange(2, 3)}
    assert {each["N"] for each in made.manifest.receipts[-1].assignments} == {2, 3}


def test_the_command_speaks_of_the_model_before(tmp_path: Path) -> None:
    model = _with_weight(np.ones((300, 300), np.float32))
    save_model(model, tmp_path / "in.onnx", signature(model))
    done = CliRunner().invoke(main, ["export", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx")])
    assert done.exit_code == 0, done.output
    assert "against the model before" in done.stdout
    assert "PyTorch" not in done.stdout


def _with_weight(weight: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["N", 300]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    product = ir.node("MatMul", [x, w], metadata_props={"burnish.origins": "mine"})
    mean = ir.node("ReduceMean", [product.outputs[0]], {"axes": [1], "keepdims": 0})
    product.outputs[0].name, mean.outputs[0].name = "z", "y"
    mean.outputs[0].shape, mean.outputs[0].type = ir.Shape(["N"]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [mean.outputs[0]], nodes=[product, mean], initializers=[w], opset_imports={"": 13})
    return ir.Model(graph, ir_version=8)
