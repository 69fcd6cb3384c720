"""Damaged and hostile GGUF files: always a typed error of two lines, never a large allocation."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import BurnishError, ExportError

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("gguf")

from burnish.exporter.gguf import load_gguf  # noqa: E402
from burnish.exporter.gguf_header import Header, read_header  # noqa: E402

MakeGguf = Callable[..., tuple[Path, Any]]


@pytest.fixture
def whole(make_gguf: MakeGguf) -> bytes:
    path, _ = make_gguf("llama", "Q8_0")
    data = path.read_bytes()
    last = max(info.start + info.nbytes for info in read_header(data, "x").tensors.values())
    return data[:last]  # without the padding after the last tensor


def header_bytes(data: bytes) -> int:
    """Where the weights start."""
    return min(info.start for info in read_header(data, "x").tensors.values())


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def file_of(pairs: bytes = b"", tensors: bytes = b"", *, counts: tuple[int, int] = (0, 0)) -> bytes:
    """A header by hand: counts are (tensors, pairs)."""
    data = b"GGUF" + struct.pack("<IQQ", 3, *counts) + pairs + tensors
    return data + b"\0" * 64


def entry(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(ExportError) as caught:
        read_header(data, "x.gguf")
    assert len(str(caught.value).splitlines()) == 2
    return caught.value.code, str(caught.value)


def test_what_the_reader_of_the_gguf_package_finds(whole: bytes, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "whole.gguf"
    path.write_bytes(whole)
    header: Header = read_header(whole, "x")
    reader = gguf.GGUFReader(path)
    assert len(reader.tensors) == len(header.tensors)
    for tensor in reader.tensors:
        info = header.tensors[tensor.name]
        assert (info.start, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert list(info.shape) == tensor.shape.tolist()[::-1]
        assert info.type_name == tensor.tensor_type.name
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert theirs == header.metadata


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", "GGUF_INVALID", "is empty"),
        (b"PK\x03\x04 something", "GGUF_INVALID", "is not a GGUF file"),
        (b"tjgg\1\0\0\0", "GGUF_INVALID", "older GGML format"),
        (b"GGUF", "GGUF_TRUNCATED", "truncated"),
        (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + b"\0" * 99, "GGUF_INVALID", "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 9, 1, 1), "GGUF_INVALID", "version 9"),
        (file_of(counts=(2**63, 0)), "GGUF_INVALID", "claims 9223372036854775808 tensors"),
        (file_of(counts=(0, 2**40)), "GGUF_INVALID", "metadata entries"),
        (file_of(counts=(900_000, 0)), "GGUF_TRUNCATED", "do not fit"),
        (file_of(counts=(0, 9)), "GGUF_TRUNCATED", "9 metadata entries do not fit"),
        (file_of(struct.pack("<Q", 2**60), counts=(0, 1)), "GGUF_INVALID", "a name of"),
        (file_of(text(b"\xff\xfe") + b"\0" * 9, counts=(0, 1)), "GGUF_INVALID", "not UTF-8"),
        (file_of(text(b"a") + struct.pack("<I", 99), counts=(0, 1)), "GGUF_INVALID", "unknown type 99"),
        (file_of(text(b"a") + struct.pack("<IQ", 8, 2**62), counts=(0, 1)), "GGUF_TRUNCATED", "goes on"),
        (file_of(text(b"a") + struct.pack("<IIQ", 9, 4, 2**50), counts=(0, 1)), "GGUF_INVALID", "claims"),
        (file_of(text(b"a") + struct.pack("<IIQ", 9, 8, 10**6), counts=(0, 1)), "GGUF_TRUNCATED", "not fit"),
        (file_of(text(b"a") + struct.pack("<IIQ", 9, 9, 1), counts=(0, 1)), "GGUF_INVALID", "array of"),
        (file_of((text(b"a") + struct.pack("<II", 4, 7)) * 2, counts=(0, 2)), "GGUF_INVALID", "twice"),
        (file_of(text(b"general.alignment") + bytes([4, *[0] * 7]), counts=(0, 1)), "GGUF_INVALID", "aligns"),
        (file_of(b"", entry(b"w", [4, 2**40, 2**40], 0, 0), counts=(1, 0)), "GGUF_INVALID", "the dims"),
        (file_of(b"", entry(b"w", [4, 0], 0, 0), counts=(1, 0)), "GGUF_INVALID", "the dims"),
        (file_of(b"", entry(b"w", [4] * 9, 0, 0), counts=(1, 0)), "GGUF_INVALID", "9 dims"),
        (file_of(b"", entry(b"w", [33], 2, 0), counts=(1, 0)), "GGUF_INVALID", "blocks of 32"),
        (file_of(b"", entry(b"w", [4], 77, 0), counts=(1, 0)), "GGUF_TENSOR_TYPE", "unknown type 77"),
        (file_of(b"", entry(b"w", [4], 0, 2**62), counts=(1, 0)), "GGUF_TRUNCATED", "of tensor 'w'"),
        (file_of(b"", entry(b"w", [400], 0, 0), counts=(1, 0)), "GGUF_TRUNCATED", "of tensor 'w'"),
        (file_of(b"", entry(b"w", [4], 0, 7), counts=(1, 0)), "GGUF_INVALID", "off its alignment"),
        (file_of(b"", entry(b"w", [4], 0, 0) * 2, counts=(2, 0)), "GGUF_INVALID", "twice"),
        (file_of(b"", entry(b"w", [4], 0, 0) + entry(b"v", [4], 0, 0), counts=(2, 0)), "GGUF_INVALID", "in"),
    ],
)  # fmt: skip
def test_what_no_header_may_say(data: bytes, code: str, said: str) -> None:
    tracemalloc.start()
    found = refused(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[0] == code
    assert said in found[1]
    assert peak < 2**20


def loads_or_refuses(path: Path, data: bytes) -> str:
    """The code of the typed error, or "" where the file still loads; anything else is raised."""
    path.write_bytes(data)
    try:
        load_gguf(path)
    except BurnishError as error:
        found = error
    else:
        return ""
    assert len(str(found).splitlines()) == 2
    return found.code


def test_truncated_anywhere(whole: bytes, tmp_path: Path) -> None:
    start = header_bytes(whole)
    cuts = {*range(64), *range(64, start, 97), *range(start, len(whole), len(whole) // 40), len(whole) - 1}
    for cut in sorted(cuts):
        code, _ = refused(whole[:cut])
        assert code == ("GGUF_INVALID" if cut < 4 else "GGUF_TRUNCATED"), cut
    assert loads_or_refuses(tmp_path / "cut.gguf", whole[: len(whole) - 33]) == "GGUF_TRUNCATED"


def test_nothing_is_left_behind(whole: bytes, tmp_path: Path) -> None:
    before = {*tmp_path.rglob("*")}
    loads_or_refuses(tmp_path / "cut.gguf", whole[:-50])
    assert {*tmp_path.rglob("*")} - before == {tmp_path / "cut.gguf"}


def flipped(data: bytes, end: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(end)] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
    return bytes(changed)


def test_changed_bytes_in_the_header(whole: bytes) -> None:
    rng = random.Random(5)
    end = header_bytes(whole)
    seen = set()
    for _ in range(2000):
        try:
            read_header(flipped(whole, end, rng), "x.gguf")
            seen.add("")
        except ExportError as error:
            seen.add(error.code)
    assert seen == {"", "GGUF_INVALID", "GGUF_TRUNCATED", "GGUF_TENSOR_TYPE"}


def important(whole: bytes) -> list[int]:
    """Offsets of the numbers before the vocabulary and of the tensor table, where a change matters most."""
    vocabulary = whole.index(b"tokenizer.ggml.tokens")
    table = whole.rindex(b"tokenizer.chat_template")
    return [*range(24, vocabulary + 60), *range(table, header_bytes(whole))]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_changed_bytes_all_the_way_to_the_module(whole: bytes, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    places = important(whole)
    codes = []
    for _ in range(1500 if seed else 60):
        changed = bytearray(whole)
        changed[rng.choice(places)] = rng.choice((0, 1, 2, 0x40, 0x7F, 0xFF))
        codes.append(loads_or_refuses(tmp_path / "changed.gguf", bytes(changed)))
    assert len(set(codes)) > 3


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_changed_vocabularies(make_gguf: MakeGguf, tmp_path: Path, seed: int) -> None:
    whole = make_gguf("llama")[0].read_bytes()
    rng = random.Random(seed)
    start, end = whole.index(b"tokenizer.ggml.model"), whole.index(b"token_embd.weight")
    for _ in range(1500 if seed else 60):
        changed = bytearray(whole)
        for _ in range(rng.choice((1, 4))):
            changed[rng.randrange(start, end)] = rng.choice((0, 1, 3, 0x20, 0x41, 0xFF))
        loads_or_refuses(tmp_path / "changed.gguf", bytes(changed))
