"""External data: outside the folder, behind links, too short, hidden in places where few look."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from burnish import reader
from burnish.errors import ExternalDataError
from burnish.model import load_model
from burnish.model_file import check_model_file

Build = Callable[[Path], onnx.ModelProto]
node = helper.make_node


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3))


def model(
    *nodes: onnx.NodeProto, tensors: Sequence[TensorProto] = (), functions: Sequence[onnx.FunctionProto] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)


def external(*entries: tuple[str, object], name: str = "w", dims: Sequence[int] = (2, 3)) -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in entries:
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def outside(*entries: tuple[str, object], data: int | None = 24) -> Build:
    """A model whose tensor `w` is external, and a file `w.bin` of `data` bytes."""

    def build(folder: Path) -> onnx.ModelProto:
        if data is not None:
            (folder / "w.bin").write_bytes(bytes(data))
        return model(node("Add", ["x", "w"], ["y"]), tensors=[external(*entries)])

    return build


def linked(how: Callable[[Path, Path], object]) -> Build:
    """As `outside`, but `w.bin` is a link of some kind to a file in another folder."""

    def build(folder: Path) -> onnx.ModelProto:
        secret = folder.parent / "secret.bin"
        secret.write_bytes(bytes(24))
        how(secret, folder / "w.bin")
        return model(node("Add", ["x", "w"], ["y"]), tensors=[external(("location", "w.bin"))])

    return build


def in_a_linked_folder(folder: Path) -> onnx.ModelProto:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "w.bin").write_bytes(bytes(24))
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    return model(node("Add", ["x", "w"], ["y"]), tensors=[external(("location", "sub/w.bin"))])


def in_a_constant(folder: Path) -> onnx.ModelProto:
    constant = node("Constant", [], ["k"], name="hidden", value=external(("location", "../w.bin"), name=""))
    return model(constant, node("Add", ["x", "k"], ["y"]))


def in_a_function(folder: Path) -> onnx.ModelProto:
    constant = node(
        "Constant", [], ["k"], name="hidden", value=external(("location", "/etc/passwd"), name="")
    )
    nodes = [constant, node("Add", ["a", "k"], ["b"])]
    function = helper.make_function("my", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])
    return model(node("F", ["x"], ["y"], domain="my"), functions=[function])


def in_a_sparse_tensor(folder: Path) -> onnx.ModelProto:
    proto = model(node("Add", ["x", "w"], ["y"]))
    sparse = proto.graph.sparse_initializer.add(dims=[2, 3])
    sparse.values.CopyFrom(external(("location", "../w.bin"), name="hidden", dims=[2]))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1]), "i"))
    return proto


def in_training(folder: Path) -> onnx.ModelProto:
    proto = model(node("Relu", ["x"], ["y"]))
    proto.training_info.add().algorithm.initializer.append(external(("location", "../w.bin"), name="hidden"))
    return proto


def overlapping(folder: Path) -> onnx.ModelProto:
    (folder / "w.bin").write_bytes(bytes(100))
    tensors = [external(("location", "w.bin"), ("offset", 20 * i), name=f"w{i}") for i in range(2)]
    return model(node("Add", ["x", "w0"], ["h"]), node("Add", ["h", "w1"], ["y"]), tensors=tensors)


def itself(folder: Path) -> onnx.ModelProto:
    return model(node("Add", ["x", "w"], ["y"]), tensors=[external(("location", "m.onnx"))])


EXTERNAL: list[tuple[str, Build, str, str]] = [
    ("missing", outside(("location", "gone.bin")), "EXT_MISSING", "'gone.bin'"),
    ("in a missing folder", outside(("location", "sub/w.bin")), "EXT_MISSING", "'sub/w.bin'"),
    ("below a file", outside(("location", "w.bin/w.bin")), "EXT_MISSING", "'w.bin/w.bin'"),
    (
        "offset beyond",
        outside(("location", "w.bin"), ("offset", 1 << 40)),
        "EXT_BOUNDS",
        "but the file has 24",
    ),
    ("length beyond", outside(("location", "w.bin"), ("length", 1 << 50)), "EXT_BOUNDS", "'w'"),
    (
        "length below the dims",
        outside(("location", "w.bin"), ("length", 20)),
        "EXT_BOUNDS",
        "its dims need 24",
    ),
    ("negative offset", outside(("location", "w.bin"), ("offset", -5)), "EXT_BOUNDS", "'-5'"),
    ("offset in words", outside(("location", "w.bin"), ("offset", "ten")), "EXT_BOUNDS", "'ten'"),
    ("offset in other digits", outside(("location", "w.bin"), ("offset", "²")), "EXT_BOUNDS", "offset"),
    ("file too short", outside(("location", "w.bin"), data=10), "EXT_BOUNDS", "the file has 10"),
    ("overlap", overlapping, "EXT_BOUNDS", "'w1'"),
    ("no location", outside(("offset", 0)), "EXT_PATH", "names no data file"),
    ("location twice", outside(("location", "w.bin"), ("location", "../w.bin")), "EXT_PATH", "'w'"),
    ("parent folder", outside(("location", "../secret.bin")), "EXT_PATH", "'../secret.bin'"),
    ("parent in the middle", outside(("location", "a/../../secret.bin")), "EXT_PATH", "'w'"),
    ("absolute", outside(("location", "/etc/passwd")), "EXT_PATH", "'/etc/passwd'"),
    ("Windows separators", outside(("location", "..\\secret.bin")), "EXT_PATH", "'w'"),
    ("Windows drive", outside(("location", "C:w.bin")), "EXT_PATH", "'C:w.bin'"),
    ("trailing dot", outside(("location", "w.bin.")), "EXT_PATH", "'w.bin.'"),
    ("NUL", outside(("location", "w.bin\0.png")), "EXT_PATH", "w.bin\\x00.png"),
    ("the folder itself", outside(("location", ".")), "EXT_PATH", "'.'"),
    ("300 letters", outside(("location", "n" * 300)), "EXT_PATH", "nnnn"),
    ("look-alike", outside(("location", "w․bin")), "EXT_MISSING", "w․bin"),
    ("symlink", linked(lambda secret, path: path.symlink_to(secret)), "EXT_PATH", "symbolic link"),
    ("symlink inside", linked(lambda secret, path: path.symlink_to("m.onnx")), "EXT_PATH", "symbolic link"),
    ("symlinked folder", in_a_linked_folder, "EXT_PATH", "symbolic link"),
    ("hard link", linked(lambda secret, path: path.hardlink_to(secret)), "EXT_PATH", "hard link"),
    ("pipe", linked(lambda secret, path: os.mkfifo(path)), "EXT_PATH", "not a regular file"),
    ("folder", linked(lambda secret, path: path.mkdir()), "EXT_PATH", "folder"),
    ("the model itself", itself, "EXT_PATH", "'m.onnx'"),
    ("hidden in a Constant", in_a_constant, "EXT_PATH", "node 'hidden'"),
    ("hidden in a function", in_a_function, "EXT_PATH", "node 'hidden'"),
    ("hidden in a sparse tensor", in_a_sparse_tensor, "EXT_PATH", "'hidden'"),
    ("hidden in training", in_training, "EXT_PATH", "'hidden'"),
]


@pytest.mark.parametrize("without_dir_fd", [False, True], ids=["", "as-on-windows"])
@pytest.mark.parametrize(
    ("build", "code", "culprit"), [c[1:] for c in EXTERNAL], ids=[c[0] for c in EXTERNAL]
)
@pytest.mark.timeout(20)
def test_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: Build,
    code: str,
    culprit: str,
    without_dir_fd: bool,
) -> None:
    if without_dir_fd:
        monkeypatch.setattr(reader.os, "supports_dir_fd", set())
    path = tmp_path / "d" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(build(path.parent).SerializeToString())
    for check in (load_model, check_model_file):
        with pytest.raises(ExternalDataError) as caught:
            check(path)
        assert caught.value.code == code
        assert culprit in caught.value.what
        assert str(caught.value).count("\n") == 1


def test_tied_weights_share_their_bytes(tmp_path: Path) -> None:
    tensors = [external(("location", "w.bin"), name=name) for name in ("w", "w2")]
    proto = model(node("Add", ["x", "w"], ["a"]), node("Add", ["a", "w2"], ["y"]), tensors=tensors)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(24))
    assert check_model_file(tmp_path / "m.onnx").data == {"w.bin": 24}


def test_in_a_folder_below_and_with_a_dot(tmp_path: Path) -> None:
    proto = model(node("Add", ["x", "w"], ["y"]), tensors=[external(("location", "./sub/w.bin"))])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    weights = load_model(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert weights is not None
    np.testing.assert_array_equal(weights.numpy(), np.arange(6).reshape(2, 3))


def test_the_working_folder_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model(node("Add", ["x", "w"], ["y"]), tensors=[external(("location", "w.bin"))])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(24))
    monkeypatch.chdir(tmp_path)
    loaded = load_model("m.onnx")
    monkeypatch.chdir("/")
    weights = loaded.graph.initializers["w"].const_value
    assert weights is not None
    assert not weights.numpy().any()
