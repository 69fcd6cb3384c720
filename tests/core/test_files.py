"""The writer: paths that cannot be written, folders of others, what dead writers left."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.errors import OutputError
from burnish.files import staged_folder, write_file

OLD, NEW = b"old" * 1000, b"new!" * 100_000


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: what is shown here does not need a real disk, and fsync is slow on one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


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


def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(OLD)
    path.chmod(0o640)
    write_file(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "m.onnx")
    write_file(tmp_path / "link.onnx", NEW)
    assert (tmp_path / "real" / "m.onnx").read_bytes() == NEW
    assert (tmp_path / "link.onnx").is_symlink()


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
def test_a_path_that_cannot_be_written(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    path = make(tmp_path)
    before = names(tmp_path)
    with pytest.raises(OutputError) as caught:
        write_file(path, NEW)
    assert caught.value.code == "OUTPUT_PATH"
    assert words in caught.value.what
    assert str(caught.value).count("\n") == 1
    assert names(tmp_path) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["file", "missing/art"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    _a_file(tmp_path)
    with pytest.raises(OutputError) as caught, staged_folder(tmp_path / name):
        pytest.fail("the block must not run")
    assert caught.value.code == "OUTPUT_PATH"
    assert names(tmp_path) == {"file"}


def test_a_folder_with_files_of_others_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD)
    (tmp_path / "art" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'notes\.txt'"):
        write_folder(tmp_path, NEW)
    assert (tmp_path / "art" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "art" / "model.onnx").read_bytes() == OLD


def test_a_symlinked_folder_inside_counts_as_of_others(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD)
    (tmp_path / "art" / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="holds 'link'"):
        write_folder(tmp_path, NEW)


def test_a_failing_block_changes_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD)
    before = state(tmp_path)
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "art", owned=OWNED) as stage:
        (stage / str(1 // (len(OLD) - 3000))).write_bytes(NEW)
    assert state(tmp_path) == before


def test_an_error_of_reading_in_the_block_is_not_called_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "art"):
        (tmp_path / "weights").read_bytes()
    assert not names(tmp_path)


def test_errors_inside_a_stage_name_the_real_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="art/no/m") as caught, staged_folder(tmp_path / "art") as stage:
        write_file(stage / "no" / "m", NEW)
    assert ".burnish-" not in caught.value.what


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def temp_name(pid: int) -> str:
    return f".burnish-{pid}-0123456789abcdef.tmp"


def test_what_a_dead_writer_left_is_removed(tmp_path: Path, dead_pid: int) -> None:
    (tmp_path / temp_name(dead_pid)).mkdir()
    (tmp_path / temp_name(dead_pid) / "model.onnx").write_bytes(OLD)
    write_one(tmp_path, NEW)
    assert names(tmp_path) == {"m.onnx"}


def test_what_a_living_writer_has_is_kept(tmp_path: Path) -> None:
    (tmp_path / temp_name(os.getpid())).write_bytes(OLD)
    write_one(tmp_path, NEW)
    assert temp_name(os.getpid()) in names(tmp_path)


def test_a_forgotten_one_whose_pid_is_in_use_again_is_removed(tmp_path: Path) -> None:
    path = tmp_path / temp_name(os.getpid())
    path.write_bytes(OLD)
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    write_one(tmp_path, NEW)
    assert names(tmp_path) == {"m.onnx"}


def test_a_locked_one_is_kept_though_its_pid_is_unknown_here(tmp_path: Path, dead_pid: int) -> None:
    """A writer in another container: its pid says nothing, its lock does."""
    import fcntl

    path = tmp_path / temp_name(dead_pid)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_one(tmp_path, NEW)
        assert path.exists()
    write_one(tmp_path, NEW)
    assert not path.exists()


def test_names_that_only_look_alike_are_kept(tmp_path: Path, dead_pid: int) -> None:
    others = {f".burnish-{dead_pid}.tmp", "burnish-1-0123456789abcdef.tmp", f"x{temp_name(dead_pid)}"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    write_one(tmp_path, NEW)
    assert names(tmp_path) == others | {"m.onnx"}


def test_an_unfinished_exchange_is_undone_by_the_next_writer(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD)
    (tmp_path / "art").rename(tmp_path / ".burnish-old-art")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "art", owned=OWNED):
        1 // (len(OLD) - 3000)
    assert (tmp_path / "art" / "model.onnx").read_bytes() == OLD
    assert names(tmp_path) == {"art", "art/sub", "art/sub/x", "art/model.onnx", "art/burnish.json"}


def test_chunks_are_not_gathered_in_memory(tmp_path: Path) -> None:
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
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    grown = int(run.stdout)
    assert (tmp_path / "m").stat().st_size == 100 << 20
    assert grown < 20_000, f"{grown} KiB more for a file of 100 MiB"
