"""load_model and save_model: tensors in and beside the file, lazily and deterministically."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from burnish import model as model_module
from burnish.errors import ExternalDataError, ModelError, OutputError
from burnish.manifest import Manifest, decode
from burnish.model import copy_model, load_model, save_model, signature, to_bytes
from burnish.model_file import check_model_file, read_model_file
from burnish.runtime.reference import Reference
from burnish.testing import parse

WIDE = """
    g (float[N, 64] x) => (float[N, 32] y) {
        a = MatMul (x, w)
        y = Add (a, b)
    }
"""


@pytest.fixture
def wide() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((64, 32)).astype(np.float32), "b": np.arange(32, dtype=np.float32)
    }  # fmt: skip
    return parse(WIDE, weights=weights)


def run(source: bytes | Path) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    return Reference(source)({"x": x})["y"]


def save(model: ir.Model, path: Path, **options: int) -> None:
    save_model(model, path, signature(model), **options)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weight(model: ir.Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def test_small_goes_into_one_file(wide: ir.Model, tmp_path: Path) -> None:
    save(wide, tmp_path / "m.onnx")
    assert names(tmp_path) == {"m.onnx", "m.burnish.json"}
    assert to_bytes(load_model(tmp_path / "m.onnx")) == (tmp_path / "m.onnx").read_bytes() == to_bytes(wide)


def test_large_goes_beside_it(wide: ir.Model, tmp_path: Path) -> None:
    save(wide, tmp_path / "m.onnx", external_threshold=8000)
    (data,) = (name for name in names(tmp_path) if name.endswith(".data"))
    assert re.fullmatch(r"m\.[0-9a-f]{16}\.data", data)
    assert check_model_file(tmp_path / "m.onnx").data == {data: 64 * 32 * 4}
    loaded = load_model(tmp_path / "m.onnx")
    assert isinstance(weight(loaded), ir.ExternalTensor)
    assert not isinstance(weight(loaded, "b"), ir.ExternalTensor), "128 bytes stay in the model"
    assert to_bytes(loaded) == to_bytes(wide)
    np.testing.assert_array_equal(run(tmp_path / "m.onnx"), run(to_bytes(wide)))
    onnx.checker.check_model(tmp_path / "m.onnx")


def test_the_sidecar_has_the_hashes_of_both(wide: ir.Model, tmp_path: Path) -> None:
    save(wide, tmp_path / "m.onnx", external_threshold=0)
    manifest = decode((tmp_path / "m.burnish.json").read_bytes())
    assert set(manifest.files) == names(tmp_path) - {"m.burnish.json"}
    assert all(manifest.files[name].size == (tmp_path / name).stat().st_size for name in manifest.files)
    assert [spec.name for spec in manifest.inputs] == ["x"]


def test_saving_leaves_the_model_as_it_is(wide: ir.Model, tmp_path: Path) -> None:
    before = to_bytes(wide)
    save(wide, tmp_path / "m.onnx", external_threshold=0)
    assert to_bytes(wide) == before
    assert not isinstance(weight(wide), ir.ExternalTensor)


def test_the_old_data_file_goes(wide: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for other in ("m.data", "n.0123456789abcdef.data", "m.0123456789abcdef.data.bak"):
        (tmp_path / other).write_bytes(b"")
    kept = names(tmp_path)
    save(wide, path, external_threshold=0)
    first = names(tmp_path)
    wide.graph.initializers["w"].const_value = ir.tensor(np.ones((64, 32), np.float32), name="w")
    save(wide, path, external_threshold=0)
    second = names(tmp_path)
    assert len(first) == len(second) == len(kept) + 3
    assert first != second
    save(wide, path)
    assert names(tmp_path) == kept | {"m.onnx", "m.burnish.json"}


def test_saving_over_what_it_was_loaded_from(wide: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(wide, path, external_threshold=0)
    loaded = load_model(path)
    loaded.graph.initializers["b"].const_value = ir.tensor(np.zeros(32, np.float32), name="b")
    save(loaded, path, external_threshold=0)
    np.testing.assert_array_equal(weight(load_model(path)).numpy(), weight(wide).numpy())
    save(load_model(path), path)
    assert names(tmp_path) == {"m.onnx", "m.burnish.json"}
    np.testing.assert_array_equal(weight(load_model(path)).numpy(), weight(wide).numpy())


def test_moving_external_to_external(wide: ir.Model, tmp_path: Path) -> None:
    save(wide, tmp_path / "m.onnx", external_threshold=0)
    save(load_model(tmp_path / "m.onnx"), tmp_path / "n.onnx", external_threshold=0)
    for name in names(tmp_path):
        if name.startswith("m."):
            (tmp_path / name).unlink()
    assert to_bytes(load_model(tmp_path / "n.onnx")) == to_bytes(wide)


def test_the_same_model_gives_the_same_bytes(wide: ir.Model, tmp_path: Path) -> None:
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save(copy_model(wide), folder / "m.onnx", external_threshold=0)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]


def test_a_failed_save_leaves_the_old_one(
    wide: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(wide, tmp_path / "m.onnx", external_threshold=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wide.graph.initializers["w"].const_value = ir.tensor(np.ones((64, 32), np.float32), name="w")

    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OutputError) as caught:
        save(wide, tmp_path / "m.onnx", external_threshold=0)
    assert caught.value.code == "DISK_FULL"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


DTYPES = {
    "bfloat16": np.arange(600).reshape(2, 300).astype(ml_dtypes.bfloat16),
    "float8": (np.arange(2000) % 400).astype(ml_dtypes.float8_e4m3fn),
    "int4": (np.arange(3001) % 16 - 8).astype(ml_dtypes.int4),
    "bool": np.arange(2000) % 3 == 0,
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(3),
}


@pytest.mark.parametrize("name", DTYPES)
def test_any_dtype_goes_in_and_out(name: str, tmp_path: Path) -> None:
    array = np.asarray(DTYPES[name])
    model = parse("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    value = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
    value.dtype, value.shape = weight_type(array), ir.Shape(array.shape)
    model.graph.register_initializer(value)
    save(model, tmp_path / "m.onnx", external_threshold=0)
    save(load_model(tmp_path / "m.onnx"), tmp_path / "n.onnx", external_threshold=0)
    save(load_model(tmp_path / "n.onnx"), tmp_path / "o.onnx")
    for path in ("m.onnx", "n.onnx", "o.onnx"):
        np.testing.assert_array_equal(weight(load_model(tmp_path / path)).numpy(), array)


def weight_type(array: np.ndarray) -> ir.DataType:
    return ir.DataType.from_numpy(array.dtype)


def test_strings_stay_inside(tmp_path: Path) -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    strings = ir.StringTensor([b"x" * 2000, b""], shape=ir.Shape([2]), name="w")
    model.graph.register_initializer(ir.Value(name="w", const_value=strings))
    save(model, tmp_path / "m.onnx", external_threshold=0)
    assert check_model_file(tmp_path / "m.onnx").data == {}
    assert list(weight(load_model(tmp_path / "m.onnx")).numpy()) == [b"x" * 2000, b""]


def external(location: str, name: str = "") -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def in_a_constant() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Constant", [], ["k"], value=external("k.bin")),
        helper.make_node("Add", ["x", "k"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy")
    return helper.make_graph(nodes, "g", [x], [y])


def test_external_data_of_attributes_and_functions_is_read_and_embedded(tmp_path: Path) -> None:
    """onnx-ir's own load leaves tensors in functions without their folder."""
    graph = in_a_constant()
    body = [
        helper.make_node("Constant", [], ["k"], value=external("sub/k.bin")),
        helper.make_node("Add", ["a", "k"], ["b"]),
    ]
    function = helper.make_function("my", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    graph.node[-1].output[0] = "h"
    graph.node.append(helper.make_node("F", ["h"], ["y"], domain="my"))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("k.bin", "sub/k.bin"), start=1):
        (tmp_path / name).write_bytes(np.full(3, number, np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    save(load_model(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    assert check_model_file(tmp_path / "n.onnx").data == {}
    out = Reference(tmp_path / "n.onnx")({"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_array_equal(out["y"], [[3, 3, 3]])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda path: path.unlink(), "EXT_MISSING"),
        (lambda path: path.write_bytes(b"x" * 100), "EXT_BOUNDS"),
    ],
)
def test_data_that_changed_after_loading(
    wide: ir.Model, tmp_path: Path, change: Callable[[Path], object], code: str
) -> None:
    save(wide, tmp_path / "m.onnx", external_threshold=0)
    loaded = load_model(tmp_path / "m.onnx")
    change(next(tmp_path.glob("*.data")))
    with pytest.raises(ExternalDataError, match="'w'") as caught:
        save(loaded, tmp_path / "n.onnx", external_threshold=0)
    assert caught.value.code == code
    assert not list(tmp_path.glob("n.*"))


def test_copying_weights_takes_no_memory(tmp_path: Path) -> None:
    """40 MB go from one data file to another through pieces of 4 MiB."""
    array = np.broadcast_to(np.arange(1_000_000, dtype=np.float32), (10, 1_000_000))
    model = parse("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    model.graph.register_initializer(ir.Value(name="w", const_value=ir.Tensor(array, name="w")))
    save(model, tmp_path / "m.onnx", external_threshold=0)
    code = """
import resource, sys
from pathlib import Path
from burnish.model import load_model, save_model, signature
model = load_model(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_model(model, Path(sys.argv[1]).with_name("n.onnx"), signature(model), external_threshold=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 25_000, "KiB"
    assert sorted(p.stat().st_size for p in tmp_path.glob("*.data")) == [40_000_000] * 2


def test_weights_are_not_read_before_they_are_touched(wide: ir.Model, tmp_path: Path) -> None:
    save(wide, tmp_path / "m.onnx", external_threshold=0)
    tensor = weight(load_model(tmp_path / "m.onnx"))
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    tensor.numpy()
    assert tensor.raw is not None


def test_nodes_are_sorted() -> None:
    unsorted = parse("g (float[N] x) => (float[N] y) { a = Abs (x)  y = Relu (a) }")
    proto = ir.to_proto(unsorted)
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [node.op_type for node in load(proto).graph] == ["Abs", "Relu"]


def test_nodes_of_functions_are_sorted() -> None:
    body = [helper.make_node("Neg", ["k"], ["b"]), helper.make_node("Abs", ["a"], ["k"])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    function = helper.make_function("my", "F", ["a"], ["b"], body, imports)
    x, y = (helper.make_tensor_value_info(name, 1, ["N"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="my")], "g", [x], [y])
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)
    (loaded,) = load(proto).functions.values()
    assert [node.op_type for node in loaded] == ["Abs", "Neg"]


def load(proto: onnx.ModelProto) -> ir.Model:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(proto.SerializeToString())
        return load_model(path)


def test_metadata_is_kept(wide: ir.Model) -> None:
    wide.metadata_props["author"], wide.producer_name, wide.doc_string = "me", "torch", "a model"
    wide.graph.node(0).metadata_props["namespace"] = "layer.0"
    loaded = load(ir.to_proto(wide))
    assert (loaded.metadata_props["author"], loaded.producer_name, loaded.doc_string) == (
        "me",
        "torch",
        "a model",
    )
    assert loaded.graph.node(0).metadata_props["namespace"] == "layer.0"


def huge() -> ir.Model:
    """3.2 GB of weights that take no memory: one number, repeated by a stride of 0."""
    model = parse("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    array = np.broadcast_to(np.float32(0), (800_000_000,))
    model.graph.register_initializer(ir.Value(name="w", const_value=ir.Tensor(array, name="w")))
    return model


def test_over_2_gb_in_one_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="3200000000 bytes") as caught:
        to_bytes(huge())
    assert caught.value.code == "MODEL_SIZE"


def test_what_cannot_be_written(wide: ir.Model) -> None:
    wide.graph.node(0).attributes["k"] = ir.AttrInt64("k", 1 << 70)
    with pytest.raises(ModelError, match="'g'") as caught:
        to_bytes(wide)
    assert caught.value.code == "MODEL_UNSUPPORTED"


def test_over_2_gb_goes_beside_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(model_module, "write_together", lambda files, remove: written.extend(map(str, files)))
    monkeypatch.setattr(model_module, "content", lambda places: iter([b"x"]))
    save(huge(), tmp_path / "m.onnx")
    assert [re.sub(r"[0-9a-f]{16}", "#", Path(name).name) for name in written] == [
        "m.#.data", "m.onnx", "m.burnish.json",
    ]  # fmt: skip


@pytest.mark.parametrize("make", [lambda d: d / "no" / "m.onnx", lambda d: d])
def test_a_path_that_cannot_be_written(wide: ir.Model, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(OutputError) as caught:
        save(wide, make(tmp_path))
    assert caught.value.code == "OUTPUT_PATH"
    assert names(tmp_path) == set()


def test_what_was_checked_is_what_is_returned(wide: ir.Model, tmp_path: Path) -> None:
    save(wide, tmp_path / "m.onnx")
    data, file = read_model_file(tmp_path / "m.onnx")
    assert data == to_bytes(wide)
    assert (file.size, file.opsets, file.ir_version) == (len(data), {"": 20, "com.microsoft": 1}, 10)


def test_the_manifest_given_is_the_one_written(wide: ir.Model, tmp_path: Path) -> None:
    given = signature(wide)
    save_model(wide, tmp_path / "m.onnx", Manifest(given.inputs, given.outputs, recipe="fuse-gelu"))
    assert decode((tmp_path / "m.burnish.json").read_bytes()).recipe == "fuse-gelu"


def test_a_table_is_found_behind_padding() -> None:
    model = parse(
        """
        g (int64[B, N] input_ids) => (float[B, M, 4] y) {
            longer = Pad (input_ids, pads, one)
            y = Gather <axis = 0> (table, longer)
        }
        """,
        weights={
            "pads": np.array([0, 0, 0, 3]), "one": np.array(1), "table": np.zeros((9, 4), np.float32)
        },
    )  # fmt: skip
    assert signature(model).input("input_ids").high == 9
