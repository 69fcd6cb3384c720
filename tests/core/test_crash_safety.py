"""The writer: whole or not at all, whatever fails (each call in turn), whenever it is killed."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish import files
from burnish.errors import OutputError
from burnish.files import staged_folder, write_file, write_together

OLD, NEW = b"old" * 1000, b"new!" * 100_000
CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One function for each writer: what it leaves, old and new.
def write_one(folder: Path, data: bytes) -> None:
    write_file(folder / "m.onnx", [data[:7], data[7:]])


def write_several(folder: Path, data: bytes) -> None:
    name = f"m.{len(data)}.data"
    old = [path for path in folder.glob("m.*.data") if path.name != name]
    write_together({folder / name: data, folder / "m.onnx": name.encode()}, remove=old)


OWNED = {"model.onnx", "sub/x", "burnish.json"}


def write_folder(folder: Path, data: bytes) -> None:
    with staged_folder(folder / "art", owned=OWNED) as stage:
        write_file(stage / "model.onnx", data)
        (stage / "sub").mkdir()
        write_file(stage / "sub" / "x", data)
        write_file(stage / "burnish.json", b"{}")


WRITERS = (write_one, write_several, write_folder)


def is_whole(folder: Path, writer: Callable[[Path, bytes], None]) -> bool:
    """The old or the new version can be loaded as a whole."""
    found = state(folder)
    if writer is write_one:
        return found["m.onnx"] in (OLD, NEW)
    if writer is write_several:
        return found[found["m.onnx"].decode()] in (OLD, NEW)
    return found["art/model.onnx"] == found["art/sub/x"] in (OLD, NEW) and "art/burnish.json" in found


def litter(folder: Path) -> set[str]:
    return {name for name in names(folder) if ".burnish-" in name}


@pytest.mark.parametrize("writer", WRITERS)
def test_new_then_replaced(memory_path: Path, writer: Callable[[Path, bytes], None]) -> None:
    writer(memory_path, OLD)
    assert is_whole(memory_path, writer)
    writer(memory_path, NEW)
    assert NEW in state(memory_path).values()
    assert OLD not in state(memory_path).values()
    assert not litter(memory_path)


class Failing:
    """Let the n-th call of the file functions fail, and count them."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, action: Callable[[object], None]) -> None:
        self.calls = 0
        for name in CALLS:
            patch.setattr(os, name, self._wrap(getattr(os, name), at, action))

    def _wrap(
        self, real: Callable[..., object], at: int, action: Callable[[object], None]
    ) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == at:
                action(args[0])
            return real(*args, **kwargs)

        return call


def failing_with(code: int) -> Callable[[object], None]:
    def fail(argument: object) -> None:
        named = isinstance(argument, (str, Path))
        raise OSError(code, os.strerror(code), *([str(argument)] if named else []))

    return fail


def press_ctrl_c(argument: object) -> None:
    raise KeyboardInterrupt


def die(argument: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ERRORS: dict[str, tuple[Callable[[object], None], type[BaseException], str]] = {
    "full": (failing_with(errno.ENOSPC), OutputError, "DISK_FULL"),
    "quota": (failing_with(errno.EDQUOT), OutputError, "DISK_FULL"),
    "broken": (failing_with(errno.EIO), OutputError, "OUTPUT_PATH"),
    "readonly": (failing_with(errno.EROFS), OutputError, "OUTPUT_PATH"),
    "ctrl-c": (press_ctrl_c, KeyboardInterrupt, ""),
}


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_call_fails_in_turn(
    memory_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: Callable[[Path, bytes], None],
    kind: str,
    exchange: bool,
) -> None:
    action, expected, code = ERRORS[kind]
    codes = set()
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for at in range(1, 100):
        folder = memory_path / str(at)
        folder.mkdir()
        writer(folder, OLD)
        with monkeypatch.context() as patch:
            failing = Failing(patch, at, action)
            try:
                writer(folder, NEW)
            except expected as error:
                codes.add(getattr(error, "code", ""))
        assert is_whole(folder, writer), f"not whole after call {at} failed"
        assert not litter(folder), f"litter after call {at} failed"
        if failing.calls < at:
            break
        shutil.rmtree(folder)
    else:
        pytest.fail("it never succeeded")
    assert at > 5
    assert codes == {code}
    assert NEW in state(folder).values()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failing_first_write_leaves_nothing(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path, bytes], None]
) -> None:
    for at in range(1, 100):
        folder = memory_path / str(at)
        folder.mkdir()
        with monkeypatch.context() as patch:
            failing = Failing(patch, at, failing_with(errno.ENOSPC))
            try:
                writer(folder, NEW)
            except OutputError:
                left = names(folder)
                # Only the fsync after the last rename may fail with the new version in place.
                assert not left or is_whole(folder, writer)
        if failing.calls < at:
            return
        shutil.rmtree(folder)
    pytest.fail("it never succeeded")


def child(code: str, *args: object) -> subprocess.Popen[str]:
    """A process that prints `R`, waits for a line, and writes; the writers of this file are in reach."""
    head = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("writers", {str(Path(__file__))!r})
writers = importlib.util.module_from_spec(spec); spec.loader.exec_module(writers)
from pathlib import Path
print("R", flush=True); sys.stdin.readline()
"""
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, args)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "R\n"
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=60)
    return err


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from burnish.errors import OutputError
try:
    getattr(writers, sys.argv[2])(Path(sys.argv[1]), writers.NEW)
except OutputError as error:
    sys.exit(error.code)
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_real_full_disk(memory_path: Path, writer: Callable[[Path, bytes], None]) -> None:
    """RLIMIT_FSIZE makes the kernel refuse byte 1001 with EFBIG."""
    writer(memory_path, OLD)
    before = state(memory_path)
    process = child(LIMITED, memory_path, writer.__name__)
    start(process)
    assert finish(process).strip() == "DISK_FULL"
    assert state(memory_path) == before


SLOW = """
import time
def slowly():
    for _ in range(600):
        yield b"x" * 1000
        print("W", flush=True)
        time.sleep(0.05)
writers.write_file(Path(sys.argv[1]) / "m.onnx", slowly())
"""


def test_ctrl_c_in_the_middle(memory_path: Path) -> None:
    write_one(memory_path, OLD)
    process = child(SLOW, memory_path)
    start(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "W\n"
    assert litter(memory_path), "it is in the middle"
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in finish(process)
    assert state(memory_path) == {"m.onnx": OLD}


def forked(run: Callable[[], None]) -> int:
    """Run in a child process; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid


def is_killed(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def assert_survived(folder: Path, writer: Callable[[Path, bytes], None]) -> None:
    """After a kill: whole; and after the next run: new, and nothing left lying about."""
    if writer is not write_folder or (folder / "art").exists():
        assert is_whole(folder, writer)
    writer(folder, OLD)
    assert is_whole(folder, writer)
    assert not litter(folder)


@pytest.mark.parametrize(
    ("writer", "exchange"), [*((writer, True) for writer in WRITERS), (write_folder, False)]
)
def test_kill_9_at_every_call(
    memory_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: Callable[[Path, bytes], None],
    exchange: bool,
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for at in range(1, 100):
        folder = memory_path / str(at)
        folder.mkdir()
        writer(folder, OLD)

        def write(folder: Path = folder, at: int = at) -> None:
            Failing(monkeypatch, at, die)
            writer(folder, NEW)

        if not is_killed(forked(write)):
            break
        if exchange:
            assert is_whole(folder, writer), f"not whole after a kill at call {at}"
        assert_survived(folder, writer)
        shutil.rmtree(folder)
    assert at > 5


def kill_at_random(folder: Path, writer: Callable[[Path, bytes], None], kills: int, seed: int) -> None:
    """Kill a process that writes new and old in turn, at random moments."""

    def write_on() -> None:
        while True:
            writer(folder, NEW)
            writer(folder, OLD)

    rng = random.Random(seed)
    writer(folder, OLD)
    for _ in range(kills):
        pid = forked(write_on)
        time.sleep(0.005 + rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        assert is_killed(pid)
        assert is_whole(folder, writer)
        assert_survived(folder, writer)


@pytest.mark.parametrize("writer", WRITERS)
def test_kill_9_at_random_moments(memory_path: Path, writer: Callable[[Path, bytes], None]) -> None:
    kill_at_random(memory_path, writer, 20, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("writer", WRITERS)
def test_kill_9_two_hundred_times(memory_path: Path, writer: Callable[[Path, bytes], None]) -> None:
    kill_at_random(memory_path, writer, 200, seed=1)


def test_a_reader_always_finds_a_whole_folder(memory_path: Path) -> None:
    write_folder(memory_path, OLD)
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            here = os.open(memory_path / "art", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.stat("burnish.json", dir_fd=here)
            except FileNotFoundError:
                # The folder that was open has been replaced and removed; its name must lead to a whole one.
                if os.stat(memory_path / "art").st_ino == os.fstat(here).st_ino:
                    wrong.append("no manifest")
            finally:
                os.close(here)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            write_folder(memory_path, NEW)
    finally:
        done.set()
        reader.join()
    assert wrong == []


@pytest.mark.parametrize("writer", [0, 2], ids=["file", "folder"])
def test_writers_at_the_same_time(memory_path: Path, writer: int) -> None:
    WRITERS[writer](memory_path, OLD)
    code = "for _ in range(10): getattr(writers, sys.argv[2])(Path(sys.argv[1]), writers.NEW)"
    processes = [child(code, memory_path, WRITERS[writer].__name__) for _ in range(3)]
    for process in processes:
        start(process)
    assert [finish(process) for process in processes] == [""] * 3
    assert is_whole(memory_path, WRITERS[writer])
    assert not litter(memory_path)
