"""Bytes on their way to the disk: all of them, whatever the system takes at once, and early."""

import os
import sys
from pathlib import Path

import pytest

from burnish import disk
from burnish.disk import Writer

BYTES = bytes(range(256)) * (1 << 13)  # 2 MB


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges whose write-back is asked for, of which there is one in each megabyte."""
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(disk, "_BEHIND", 1 << 20)
    monkeypatch.setattr(
        disk, "_write_back", lambda: lambda descriptor, start, length: ranges.append((start, length))
    )
    return ranges


def written(path: Path, chunks: list[bytes | memoryview], *, ahead: bool = True) -> bytes:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    writer = Writer(descriptor, ahead=ahead)
    for chunk in chunks:
        writer.write(chunk)
    os.close(descriptor)
    return path.read_bytes()


def test_the_disk_starts_on_what_is_there(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    assert written(tmp_path / "a", [BYTES, b"", memoryview(BYTES)[:5]]) == BYTES + BYTES[:5]
    assert asked == [(0, 1 << 20), (1 << 20, 1 << 20)]


def test_or_does_not_where_nobody_waits(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    assert written(tmp_path / "a", [BYTES], ahead=False) == BYTES
    assert asked == []


def test_a_system_that_takes_a_few_bytes_at_once(
    tmp_path: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, sizes = os.write, []

    def few(descriptor: int, data: memoryview) -> int:
        sizes.append(len(data))
        return write(descriptor, data[:300_000])

    monkeypatch.setattr("os.write", few)
    assert written(tmp_path / "a", [BYTES]) == BYTES
    assert max(sizes) < 1 << 20  # of 2 MB and more the kernel takes long
    assert asked == [(0, 1_200_000)]


@pytest.mark.skipif(sys.platform != "linux", reason="sync_file_range is Linux's")
def test_the_request_is_one_that_linux_knows(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "a", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, BYTES)
    assert disk._write_back()(descriptor, 0, len(BYTES)) == 0
    os.close(descriptor)
    assert disk._write_back()(descriptor, 0, len(BYTES)) != 0  # reported, and left to fsync
