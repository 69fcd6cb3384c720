"""What a file is when it is not ONNX, told from its first bytes, so that the message can say it."""

from __future__ import annotations

import codecs
from typing import Final, NamedTuple

from burnish.errors import ModelError

HEAD: Final = 4096
"""Bytes of the start (and of the end) of a file that `refuse_other_formats` looks at."""


class _Format(NamedTuple):
    at: int
    magic: bytes
    what: str
    hint: str


_EXPORT: Final = "Export the model to ONNX, and give that file."
_GGUF: Final = "Export it first: burnish export FILE.gguf -o OUT."
_WEIGHTS: Final = "It holds weights without a graph; export the model that uses them to ONNX."
_PICKLE: Final = "burnish never opens pickles, as they run code: load it yourself and use `burnish export`."
_UNPACK: Final = "Unpack it, and give the .onnx file inside."
_FORMATS: Final = (
    _Format(0, b"GGUF", "a GGUF file", _GGUF),
    _Format(0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", _EXPORT),
    _Format(2, b"\0\0TFL3", "a TFLite model", "Convert it with tf2onnx, and give the .onnx file."),
    _Format(2, b"\0\0ORTM", "a model in onnxruntime's .ort format", "Give the .onnx it was made from."),
    _Format(0, b"version https://git-lfs", "a git-lfs pointer", "Fetch the file: git lfs pull."),
    _Format(0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    _Format(0, b"BZh", "a bzip2 archive", _UNPACK),
    _Format(0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    _Format(0, b"\x28\xb5\x2f\xfd", "a zstandard archive", _UNPACK),
    _Format(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Format(257, b"ustar", "a tar archive", _UNPACK),
    _Format(0, b"\x93NUMPY", "a numpy array", "It holds data, not a model; give the .onnx file."),
    _Format(0, b"\x7fELF", "a program or library", "Give the .onnx file."),
    _Format(0, b"%PDF", "a PDF document", "Give the .onnx file."),
)


def refuse_other_formats(name: str, head: bytes, tail: bytes) -> None:
    """Say what a file is when it is certainly not an ONNX model.

    Args:
        name: what the message calls the file.
        head: its first bytes, up to `HEAD`.
        tail: its last bytes, up to `HEAD` (a zip's table of contents is there).

    Raises:
        ModelError: MODEL_PARSE (empty), PICKLE_REFUSED, or FORMAT_UNKNOWN.
    """
    if not head:
        raise ModelError(f"{name} is empty.", "Export or copy it again.", code="MODEL_PARSE")
    if head[0] == 0x80 and head[1:2] <= b"\x05":
        raise _refused(name, "a pickle (PyTorch checkpoint?)", _PICKLE, "PICKLE_REFUSED")
    if head.startswith(b"PK\x03\x04"):
        raise _zip(name, head + tail)
    for at, magic, what, hint in _FORMATS:
        if head.startswith(magic, at):
            raise _refused(name, what, hint)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        raise _refused(name, "a safetensors file", _WEIGHTS)
    if _is_text(head):
        raise _text(name, head)


def _zip(name: str, seen: bytes) -> ModelError:
    if b"archive_format" in seen or b"models/model.json" in seen:
        what = "a torch.export archive (.pt2), which holds pickles"
    elif b"data.pkl" in seen or b"/version" in seen:
        what = "a PyTorch checkpoint (.pt), which is a pickle"
    else:
        return _refused(name, "a zip archive", _UNPACK)
    return _refused(name, what, _PICKLE, "PICKLE_REFUSED")


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n\f\ufeff" for letter in text)


def _text(name: str, head: bytes) -> ModelError:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return _refused(name, "an HTML page", "The download failed: open the address in a browser.")
    if start.lstrip(b"< \r\n").startswith(b"ir_version:"):
        hint = "Convert it: onnx.save(onnx.load(text_file), 'model.onnx')."
        return _refused(name, "an ONNX model in text form", hint)
    if start.startswith(b"<"):
        return _refused(name, "XML text (an OpenVINO model?)", _EXPORT)
    return _refused(name, "a text file", "Give the .onnx file.")


def _refused(name: str, what: str, hint: str, code: str = "FORMAT_UNKNOWN") -> ModelError:
    return ModelError(f"{name} is not an ONNX model: it is {what}.", hint, code=code)
