"""The writer: paths that cannot be written, folders of others, what dead writers left."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.errors import OutputError
from burnish.files import staged_folder, write_file

OLD, NEW = b"old" * 1000, b"new!" * 100_000


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_one(folder: Path, data: bytes) -> None:
    write_file(folder / "m.onnx", [data[:7], data[7:]])


OWNED = {"model.onnx", "sub/x", "burnish.json"}


def write_folder(folder: Path, data: bytes) -> None:
    with staged_folder(folder / "art", owned=OWNED) as stage:
        write_file(stage / "model.onnx", data)
        (stage / "sub").mkdir()
        write_file(stage / "sub" / "x", data)
        write_file(stage / "burnish.json", b"{}")


def test_permissions_are_kept(memory_path: Path) -> None:
    path = memory_path / "m.onnx"
    path.write_bytes(OLD)
    path.chmod(0o640)
    write_file(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_symlink_is_followed(memory_path: Path) -> None:
    (memory_path / "real").mkdir()
    (memory_path / "link.onnx").symlink_to(memory_path / "real" / "m.onnx")
    write_file(memory_path / "link.onnx", NEW)
    assert (memory_path / "real" / "m.onnx").read_bytes() == NEW
    assert (memory_path / "link.onnx").is_symlink()


def _a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"")
    return folder / "file"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: d / "missing" / "m.onnx", "No such file"),
        (lambda d: _a_file(d) / "m.onnx", "not a folder"),
        (lambda d: d, "is a folder"),
        (lambda d: Path("/proc/burnish.onnx"), "/proc/burnish.onnx"),
        (lambda d: Path("/proc/self/m.onnx"), "m.onnx"),
        (lambda d: Path("/dev/null"), "not a regular file"),
        (lambda d: d / ("n" * 300), "File name too long"),
        (lambda d: d / "a\0b", "NUL"),
        (lambda d: Path(""), "is a folder"),
    ],
)
def test_a_path_that_cannot_be_written(memory_path: Path, make: Callable[[Path], Path], words: str) -> None:
    path = make(memory_path)
    before = names(memory_path)
    with pytest.raises(OutputError) as caught:
        write_file(path, NEW)
    assert caught.value.code == "OUTPUT_PATH"
    assert words in caught.value.what
    assert str(caught.value).count("\n") == 1
    assert names(memory_path) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["file", "missing/art"])
def test_a_folder_that_cannot_be_written(memory_path: Path, name: str) -> None:
    _a_file(memory_path)
    with pytest.raises(OutputError) as caught, staged_folder(memory_path / name):
        pytest.fail("the block must not run")
    assert caught.value.code == "OUTPUT_PATH"
    assert names(memory_path) == {"file"}


def test_a_folder_with_files_of_others_is_kept(memory_path: Path) -> None:
    write_folder(memory_path, OLD)
    (memory_path / "art" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'notes\.txt'"):
        write_folder(memory_path, NEW)
    assert (memory_path / "art" / "notes.txt").read_text() == "mine"
    assert (memory_path / "art" / "model.onnx").read_bytes() == OLD


def test_a_symlinked_folder_inside_counts_as_of_others(memory_path: Path) -> None:
    write_folder(memory_path, OLD)
    (memory_path / "art" / "link").symlink_to(memory_path)
    with pytest.raises(OutputError, match="holds 'link'"):
        write_folder(memory_path, NEW)


def test_a_failing_block_changes_nothing(memory_path: Path) -> None:
    write_folder(memory_path, OLD)
    before = state(memory_path)
    with pytest.raises(ZeroDivisionError), staged_folder(memory_path / "art", owned=OWNED) as stage:
        (stage / str(1 // (len(OLD) - 3000))).write_bytes(NEW)
    assert state(memory_path) == before


def test_an_error_of_reading_in_the_block_is_not_called_one_of_writing(memory_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(memory_path / "art"):
        (memory_path / "weights").read_bytes()
    assert not names(memory_path)


def test_errors_inside_a_stage_name_the_real_folder(memory_path: Path) -> None:
    with pytest.raises(OutputError, match="art/no/m") as caught, staged_folder(memory_path / "art") as stage:
        write_file(stage / "no" / "m", NEW)
    assert ".burnish-" not in caught.value.what


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def temp_name(pid: int) -> str:
    return f".burnish-{pid}-0123456789abcdef.tmp"


def test_what_a_dead_writer_left_is_removed(memory_path: Path, dead_pid: int) -> None:
    (memory_path / temp_name(dead_pid)).mkdir()
    (memory_path / temp_name(dead_pid) / "model.onnx").write_bytes(OLD)
    write_one(memory_path, NEW)
    assert names(memory_path) == {"m.onnx"}


def test_what_a_living_writer_has_is_kept(memory_path: Path) -> None:
    (memory_path / temp_name(os.getpid())).write_bytes(OLD)
    write_one(memory_path, NEW)
    assert temp_name(os.getpid()) in names(memory_path)


def test_a_forgotten_one_whose_pid_is_in_use_again_is_removed(memory_path: Path) -> None:
    path = memory_path / temp_name(os.getpid())
    path.write_bytes(OLD)
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    write_one(memory_path, NEW)
    assert names(memory_path) == {"m.onnx"}


def test_a_locked_one_is_kept_though_its_pid_is_unknown_here(memory_path: Path, dead_pid: int) -> None:
    """A writer in another container: its pid says nothing, its lock does."""
    import fcntl

    path = memory_path / temp_name(dead_pid)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_one(memory_path, NEW)
        assert path.exists()
    write_one(memory_path, NEW)
    assert not path.exists()


def test_names_that_only_look_alike_are_kept(memory_path: Path, dead_pid: int) -> None:
    others = {f".burnish-{dead_pid}.tmp", "burnish-1-0123456789abcdef.tmp", f"x{temp_name(dead_pid)}"}
    for name in others:
        (memory_path / name).write_bytes(b"")
    write_one(memory_path, NEW)
    assert names(memory_path) == others | {"m.onnx"}


def test_an_unfinished_exchange_is_undone_by_the_next_writer(memory_path: Path) -> None:
    write_folder(memory_path, OLD)
    (memory_path / "art").rename(memory_path / ".burnish-old-art")
    with pytest.raises(ZeroDivisionError), staged_folder(memory_path / "art", owned=OWNED):
        1 // (len(OLD) - 3000)
    assert (memory_path / "art" / "model.onnx").read_bytes() == OLD
    assert names(memory_path) == {"art", "art/sub", "art/sub/x", "art/model.onnx", "art/burnish.json"}


def test_chunks_are_not_gathered_in_memory(memory_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from burnish.files import write_file
def peak():  # of this process alone: what getrusage says begins with the peak of the one that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
before = peak()
write_file(Path(sys.argv[1]) / "m", (bytes(1 << 20) for _ in range(100)))
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(memory_path)], capture_output=True, text=True, timeout=60
    )
    grown = int(run.stdout)
    assert (memory_path / "m").stat().st_size == 100 << 20
    assert grown < 20_000, f"{grown} KiB more for a file of 100 MiB"
