"""Run a model in a child process, so that a crash, a leak or a hang of a provider stays there.

`python -m burnish.runtime.probe` reads one request from stdin and writes one answer to stdout, as JSON.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from burnish.errors import BurnishError, ProviderError
from burnish.feeds import make_feeds
from burnish.manifest import TensorSpec
from burnish.runtime import machine
from burnish.runtime.providers import Availability, availability
from burnish.runtime.session import Session

# y = Add(x, z), float32 [n, 3], opset 21: what a provider must at least be able to run.
TINY: Final = bytes.fromhex(
    "080a3a550a0e0a01780a017a12017922034164641201675a140a0178120f0a0d080112090a0312016e0a0208"
    "035a140a017a120f0a0d080112090a0312016e0a02080362140a0179120f0a0d080112090a0312016e0a0208"
    "0342040a001015"
)


class Request(msgspec.Struct, frozen=True):
    """What the child runs: a model at a path, or the tiny one, on random inputs."""

    provider: str
    model: str | None = None
    shapes: Mapping[str, int] = {}
    """Sizes of the dynamic dims."""
    inputs: tuple[TensorSpec, ...] = ()
    """What the inputs mean, where the model itself does not say; empty: as the session says."""
    threads: int | None = None
    runs: int = 1
    seed: int = 0


class Answer(msgspec.Struct, frozen=True):
    """What the child saw."""

    ok: bool
    why: str = ""
    """The error in one line; empty when it worked."""
    availability: Availability | None = None
    """What was found of the provider, before a session was opened."""
    load_bytes: int | None = None
    """Memory that loading added, at its peak."""
    run_bytes: int | None = None
    """Memory that loading and running added, at its peak."""


def probe(request: Request, *, timeout: float = 120.0) -> Answer:
    """Run a request in a child process; whatever happens there, this returns.

    Args:
        request: what to run.
        timeout: seconds after which the child is killed (TensorRT builds engines for a while).
    """
    # -P: a folder that happens to hold a numpy.py must not take part.
    command = [sys.executable, "-P", "-m", "burnish.runtime.probe"]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(request), capture_output=True, timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Answer(False, f"no answer within {timeout:g} s")
    if done.returncode < 0:
        return Answer(False, f"crashed with {_signal_name(-done.returncode)}")
    try:
        return msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return Answer(False, f"failed with status {done.returncode}: {' '.join(last)}")


def serve(request: Request) -> Answer:
    """Run a request in this process."""
    try:
        found = availability(request.provider)
        if not found.usable:
            return Answer(False, found.why, found)
        before = machine.rss() if machine.reset_peak() else None
        loaded = _load_and_run(request)
    except BurnishError as error:
        return Answer(False, error.what)
    peaks = (_grown(before, peak) for peak in (loaded, machine.peak_rss()))
    return Answer(True, "", found, *peaks)


def _load_and_run(request: Request) -> int | None:
    """Returns the peak of memory after loading.

    Raises:
        BurnishError: the model does not load or run; or the tiny one gives wrong numbers.
    """
    source = TINY if request.model is None else Path(request.model)
    with Session(source, request.provider, threads=request.threads) as session:
        loaded = machine.peak_rss()
        sizes = {"n": 2} if request.model is None else request.shapes
        feeds = make_feeds(request.inputs or session.inputs, sizes, seed=request.seed)
        for _ in range(max(1, request.runs)):
            outputs = session(feeds)
    if request.model is None and not np.array_equal(outputs["y"], feeds["x"] + feeds["z"]):
        raise ProviderError(f"{request.provider} computes a sum wrongly.", "Do not use it.")
    return loaded


def _grown(before: int | None, peak: int | None) -> int | None:
    return None if before is None or peak is None else max(0, peak - before)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _main() -> None:
    # Libraries write to stdout when they like; the answer goes where only we write.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    answers.write(msgspec.json.encode(serve(request)))
    answers.close()


if __name__ == "__main__":
    _main()
