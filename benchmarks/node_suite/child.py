"""A process that answers requests one by one and is started again after a crash."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Final, Self, final

from burnish.benchmarks.node_suite.serving import HEAD

_LIMIT_S: Final = 120.0
_CHUNK: Final = 1 << 16


class CrashError(Exception):
    """The process ended or said nothing in time; the message says which."""


@final
class Child:
    """Starts `command` when it is asked first, and again when it is asked after a crash.

    Args:
        command: reads and writes messages as `serving` does.
        limit_s: seconds that one answer may take.
    """

    def __init__(self, command: Sequence[str], *, limit_s: float = _LIMIT_S) -> None:
        self._command, self._limit_s = list(command), limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process is not None:
            self._end(self._process)

    def ask(self, request: bytes) -> bytes:
        """Send a request and wait for the answer.

        Raises:
            CrashError: the process died over it, or took too long.
        """
        process = self._process or subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._process = process
        if process.stdin is None or process.stdout is None:
            raise CrashError("it has no pipes")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(struct.pack(HEAD, len(request)) + request)
            process.stdin.flush()
        deadline = time.monotonic() + self._limit_s
        head = _read(process.stdout, struct.calcsize(HEAD), deadline)
        answer = None if head is None else _read(process.stdout, struct.unpack(HEAD, head)[0], deadline)
        if answer is None:
            late = time.monotonic() >= deadline
            status = self._end(process)
            raise CrashError(f"no answer in {self._limit_s:g} s" if late else status)
        return answer

    def _end(self, process: subprocess.Popen[bytes]) -> str:
        """Close it, by force if need be; say how it ended."""
        self._process = None
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            status = process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return signal.Signals(-status).name if status < 0 else f"it ended with status {status}"


def _read(stream: IO[bytes], size: int, deadline: float) -> bytes | None:
    """Exactly `size` bytes; None at the end of the stream or of the time."""
    content = bytearray()
    while len(content) < size:
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(stream.fileno(), min(_CHUNK, size - len(content))) if ready else b""
        if not part:
            return None
        content += part
    return bytes(content)
