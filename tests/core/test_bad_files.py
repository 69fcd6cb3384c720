"""Files that are no whole ONNX model: each is told what it is, by name, in two lines."""

import io
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from burnish.errors import ModelError
from burnish.model import load_model
from burnish.model_file import check_model_file
from burnish.wire import Limits

VALUES = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in ("x", "y")]
GRAPH = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", VALUES[:1], VALUES[1:])
MODEL = helper.make_model(GRAPH, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
GOOD = MODEL.SerializeToString()
TEXT = onnx.printer.to_text(MODEL).encode()


def field(number: int, data: bytes) -> bytes:
    size, length = b"", len(data)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def nested(levels: int) -> bytes:
    """An If in an If in an If, made of bytes: no library writes so deep a one."""
    graph = GRAPH.SerializeToString()
    for _ in range(levels):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(1, b"c") + field(2, b"t") + field(4, b"If") + field(5, attribute))
    return b"\x08\x09" + field(7, graph) + field(8, b"\x10\x11")


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


FORMATS: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "MODEL_PARSE", "is empty"),
    ("truncated", GOOD[:-20], "MODEL_PARSE", "truncated"),
    ("cut in a number", b"\x08", "MODEL_PARSE", "byte 1 ends inside a number"),
    ("random", np.random.default_rng(0).bytes(5000), "MODEL_PARSE", "byte"),
    ("another protobuf", b"\x08\x01" + field(2, b"meta"), "MODEL_PARSE", "no graph"),
    ("two graphs", GOOD + field(7, b""), "MODEL_PARSE", "second"),
    ("pickle 2", b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s.", "PICKLE_REFUSED", "a pickle"),
    (
        "pickle 5",
        b"\x80\x05\x95\x08\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01aK\x01s.",
        "PICKLE_REFUSED",
        "a pickle",
    ),
    ("torch.save", zipped("m/data.pkl", "m/version"), "PICKLE_REFUSED", "PyTorch checkpoint"),
    ("torch.export", zipped("m/archive_format", "m/data/weights"), "PICKLE_REFUSED", ".pt2"),
    ("zip", zipped("a.txt"), "FORMAT_UNKNOWN", "a zip archive"),
    ("safetensors", struct.pack("<Q", 16) + b'{"w": {}}       ', "FORMAT_UNKNOWN", "safetensors"),
    ("gguf", b"GGUF\x03\0\0\0", "FORMAT_UNKNOWN", "GGUF"),
    ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(99), "FORMAT_UNKNOWN", "HDF5"),
    ("tflite", b"\x1c\0\0\0TFL3" + bytes(99), "FORMAT_UNKNOWN", "TFLite"),
    ("ort", b"\x1c\0\0\0ORTM" + bytes(99), "FORMAT_UNKNOWN", ".ort"),
    ("gzip", b"\x1f\x8b\x08" + bytes(99), "FORMAT_UNKNOWN", "gzip"),
    ("tar", bytes(257) + b"ustar", "FORMAT_UNKNOWN", "tar"),
    ("numpy", b"\x93NUMPY\x01", "FORMAT_UNKNOWN", "numpy array"),
    ("program", b"\x7fELF\x02", "FORMAT_UNKNOWN", "program"),
    ("git-lfs", b"version https://git-lfs.github.com/spec/v1\n", "FORMAT_UNKNOWN", "git-lfs pointer"),
    ("html", b"\n<!DOCTYPE html><html>404</html>", "FORMAT_UNKNOWN", "HTML"),
    ("xml", b'<?xml version="1.0"?><net name="m">', "FORMAT_UNKNOWN", "XML"),
    ("onnx text", TEXT, "FORMAT_UNKNOWN", "text form"),
    ("json", b'{"irVersion": 9}', "FORMAT_UNKNOWN", "a text file"),
    ("utf-8 text", "modèle ".encode() * 2000, "FORMAT_UNKNOWN", "a text file"),
    ("2,000 levels", nested(2000), "MODEL_DEPTH", "100 deep"),
    ("bad UTF-8", GOOD.replace(b"Add", b"\xff\xfe\xfd"), "MODEL_UTF8", "node 'y'"),
]


@pytest.mark.parametrize(
    ("content", "code", "culprit"), [c[1:] for c in FORMATS], ids=[c[0] for c in FORMATS]
)
def test_refused(tmp_path: Path, content: bytes, code: str, culprit: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for check in (load_model, check_model_file):
        with pytest.raises(ModelError) as caught:
            check(path)
        error = caught.value
        assert error.code == code
        assert culprit in error.what
        assert "m.onnx" in error.what
        assert str(error).split("\n") == [error.what, error.hint]
        assert all(line.isprintable() and 10 < len(line) < 500 for line in (error.what, error.hint))
    assert path.read_bytes() == content


def test_every_cut_of_a_model_is_refused(tmp_path: Path) -> None:
    """Only a cut between two fields of the model leaves a valid protobuf, without opset or graph."""
    path = tmp_path / "m.onnx"
    codes = set()
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(ModelError) as caught:
            load_model(path)
        codes.add(caught.value.code)
    assert codes == {"MODEL_PARSE", "OPSET_UNSUPPORTED"}


def listening(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "folder"),
        (os.mkfifo, "not a regular file"),
        (listening, "No such device"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["missing", "folder", "pipe", "socket", "device", "loop"],
)
@pytest.mark.timeout(10)
def test_a_path_that_is_no_file(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "m.onnx"
    make(path)
    with pytest.raises(ModelError, match=r"m\.onnx") as caught:
        load_model(path)
    assert caught.value.code == "MODEL_PATH"
    assert words in caught.value.what
    assert str(caught.value).count("\n") == 1


def test_a_path_with_nul() -> None:
    with pytest.raises(ModelError) as caught:
        load_model("m\0.onnx")
    assert (caught.value.code, str(caught.value).count("\n")) == ("MODEL_PATH", 1)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(max_bytes=50), "MODEL_SIZE"),
        (Limits(max_fields=5), "MODEL_SIZE"),
        (Limits(max_depth=1), "MODEL_DEPTH"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, code: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(GOOD)
    with pytest.raises(ModelError) as caught:
        check_model_file(path, limits=limits)
    assert caught.value.code == code


def test_a_too_large_file_of_another_format_is_still_named(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"GGUF" + bytes(5000))
    with pytest.raises(ModelError, match="GGUF"):
        check_model_file(path, limits=Limits(max_bytes=4500))


def test_a_symlink_to_the_model_itself_is_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(GOOD)
    (tmp_path / "link.onnx").symlink_to(path)
    assert len(load_model(tmp_path / "link.onnx").graph) == 1
