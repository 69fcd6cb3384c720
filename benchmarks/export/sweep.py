"""Every case by every exporter, several at a time; what is done is kept, and not done again."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import final

import msgspec

from burnish.benchmarks.export.job import Request, Row

Done = Callable[[Row], None]


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """What is done, by case and exporter; the last line of each counts. A line cut short is none."""
    rows: dict[tuple[str, str], Row] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.DecodeError):
            row = msgspec.json.decode(line, type=Row)
            rows[row.case, row.exporter] = row
    return rows


def sweep(requests: Iterable[Request], path: Path, *, jobs: int, done: Done) -> None:
    """Run the requests, `jobs` at a time; each answer is a line of `path` as soon as it comes.

    Args:
        requests: what to do, in order.
        path: gets the rows.
        jobs: how many at a time, each in a process of its own.
        done: called with every row, from several threads, one at a time.
    """
    waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
    for request in requests:
        waiting.put(request)
    lock = threading.Lock()

    def work() -> None:
        with _worker() as worker:
            for request in _taken(waiting):
                row = worker.ask(request)
                with lock, path.open("ab") as file:
                    file.write(msgspec.json.encode(row) + b"\n")
                    done(row)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _taken(waiting: queue.SimpleQueue[Request]) -> Iterator[Request]:
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()


@final
class _Worker:
    """A process that answers requests (`burnish.benchmarks.export.job`); started again where it ended."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        environment = {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "burnish.benchmarks.export.job"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | environment,
        )  # fmt: skip

    def ask(self, request: Request) -> Row:
        """The answer; a failed row where the process ends without one."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(request).decode() + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            return msgspec.json.decode(line.encode(), type=Row)
        self.close()
        self._process = self._start()
        return Row(request.case, request.exporter, failure="the worker process ended")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(timeout=60)


@contextlib.contextmanager
def _worker() -> Iterator[_Worker]:
    worker = _Worker()
    try:
        yield worker
    finally:
        worker.close()
