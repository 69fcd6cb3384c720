"""One case by one exporter, in a child process: exported, judged, with what it cost.

`python -m burnish.benchmarks.export.job` reads requests from stdin and answers on stdout, one JSON line each.
It imports torch once and forks a child for every request, which may crash or be killed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Literal

import msgspec

Status = Literal["right", "wrong", "failed", "left out"]


class Request(msgspec.Struct):
    """What to do."""

    case: str
    exporter: str
    timeout_s: float = 300.0
    peers: str | None = None
    """Python of the environment with optimum-onnx."""


class Row(msgspec.Struct, omit_defaults=True):
    """What came of it."""

    case: str
    exporter: str
    status: Status = "failed"
    failure: str = ""
    """Why it is not right: the exporter's error, or what the judge found."""
    stage: str = "build"
    """How far it got: build, export, judge, done."""
    model: str = ""
    """The module's class."""
    form: str = "single"
    parity: bool = False
    dims: str = ""
    decode: str = ""
    error: float | None = None
    compared: int = 0
    refused: int = 0
    seconds: float | None = None
    """Of the processor, of exporting, with what the exporter itself checks."""
    peak_mb: float | None = None
    """Memory that exporting added to the process, at its peak."""
    nodes: int | None = None
    notes: tuple[str, ...] = ()


def run(request: Request) -> Row:
    """Do it in this process."""
    row = Row(request.case, request.exporter)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(request, row, Path(folder))
        except ImportError as error:
            row.status = "left out" if row.stage == "build" else "failed"
            row.failure = " ".join(str(error).split())[:200]
        except Exception as error:  # noqa: BLE001 - whatever it is, the table says it
            from burnish.benchmarks.export.peers import said

            row.failure = said(error)
            if os.environ.get("BURNISH_TRACE"):
                traceback.print_exc()
    return row


def _run(request: Request, row: Row, folder: Path) -> None:
    from burnish.benchmarks.export import peers
    from burnish.benchmarks.export.cases import load
    from burnish.benchmarks.export.judge_decode import judge
    from burnish.benchmarks.export.optimum_runner import memory_mb
    from burnish.exporter.quiet import evaluating, quiet

    (folder / "source").mkdir()
    (folder / "output").mkdir()
    case = load(request.case, folder / "source")
    row.model, row.form, row.notes, row.stage = type(case.module).__name__, case.form, case.notes, "export"
    _forget_peak()
    before, started = memory_mb("VmRSS"), time.process_time()
    with evaluating(case.module), quiet():
        export = peers.EXPORTERS[request.exporter]
        product, costs = export(case, folder / "output", Path(request.peers) if request.peers else None)
    row.seconds = costs.get("seconds", round(time.process_time() - started, 2))
    row.peak_mb = costs.get("peak_mb", round(memory_mb("VmHWM") - before))
    row.nodes, row.stage = sum(map(_count, product.files.values())), "judge"
    verdict = judge(case, product)
    row.parity, row.dims, row.decode = not verdict.parity, verdict.dims, verdict.decode
    row.error, row.compared, row.refused = verdict.error, verdict.compared, verdict.refused
    row.stage, row.status = "done", "right" if verdict.right else "wrong"
    fixed = f"fixed: {verdict.dims}" if verdict.dims else ""
    decode = verdict.decode if verdict.decode not in ("same", "-") and not verdict.parity else ""
    row.failure = "; ".join(filter(None, (verdict.parity, fixed, decode)))


def _count(path: Path) -> int:
    """Nodes of a file's graph, those inside functions and subgraphs included."""
    import onnx_ir as ir

    model = ir.load(path)
    inside = sum(1 for function in model.functions.values() for _ in function)
    return inside + sum(1 for _ in model.graph.all_nodes())


def _forget_peak() -> None:
    """VmHWM begins anew: a fork inherits what its parent's memory is."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak is then too high, never too low
        return


def in_child(request: Request) -> Row:
    """Do it in a forked child, killed with all that it started after `timeout_s`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(request, writing)
    os.close(writing)
    data, late = _read(reading, request.timeout_s)
    if late:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if data and not late:
        return msgspec.json.decode(data, type=Row)
    why = f"no result in {request.timeout_s:.0f} s" if late else f"the process died (status {status})"
    return Row(request.case, request.exporter, failure=why)


def _child(request: Request, writing: int) -> None:
    """Never returns."""
    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    if not os.environ.get("BURNISH_TRACE"):
        os.dup2(silence, 2)
    os.dup2(silence, 1)
    try:
        data = msgspec.json.encode(run(request))
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _read(descriptor: int, seconds: float) -> tuple[bytes, bool]:
    """All that comes, and whether time ran out first."""
    data, deadline = b"", time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([descriptor], [], [], left)
        if ready:
            chunk = os.read(descriptor, 65536)
            if not chunk:
                os.close(descriptor)
                return data, False
            data += chunk
    os.close(descriptor)
    return data, True


def main() -> None:
    """Answer requests until stdin ends."""
    import onnxruntime  # noqa: F401 - imported once, for all children
    import onnxscript  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import burnish.exporter.torch_export  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        row = in_child(msgspec.json.decode(line.encode(), type=Request))
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
