"""Work in processes of their own, which may crash, hang or eat memory: that is a finding, not an end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
_KEPT: Final = 200  # characters of what a process said last

_NAMED: Final = re.compile(r"[\w.]+(Error|Exception|Fail|Argument)\b[^:]*: ")
"""The line of a traceback that says what went wrong; its message may have more lines."""

T = TypeVar("T")


class Ended(NamedTuple):
    """How a process ended."""

    said: str
    """Its stdout, whole or not."""
    failure: str
    """Empty where its status is 0."""

    def answers(self, kind: type[T]) -> Iterator[T]:
        """The lines of stdout that are one of `kind`; what libraries print besides is none."""
        for line in self.said.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                yield msgspec.json.decode(line.encode(), type=kind)


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of burnish with this Python."""
    return [sys.executable, "-P", "-m", name, *arguments]


def script(python: Path, path: str, *arguments: str) -> list[str]:
    """The command that runs a file with another Python."""
    return [str(python), path, *arguments]


def run(command: Sequence[str], *, limit_s: float) -> Ended:
    """Run a command to its end, or kill it with all that it started after `limit_s`."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env=os.environ | _ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        said, complaint = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        said, _ = process.communicate()
        return Ended(said, f"no result in {limit_s:.0f} s")
    except BaseException:
        _kill(process)
        raise
    return Ended(said, _why(process.returncode, complaint))


def _kill(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _why(status: int, complaint: str) -> str:
    if status == 0:
        return ""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    named = [line for line in lines if _NAMED.match(line)]
    return (named or lines or [f"exit status {status}"])[-1][:_KEPT]
