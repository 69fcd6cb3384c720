"""The table and `report.json` of a demo."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from burnish.runtime.threads import plan_threads

Z_95: Final = 1.959964
_BUSY: Final = 0.5  # load for each CPU, over the last minute
LIBRARIES: Final = ("torch", "transformers", "scikit-learn")


class Score(msgspec.Struct, frozen=True):
    """How right a model is on held-out examples, and how far from torch."""

    accuracy: float
    low: float
    high: float
    agreement: float
    """Share of the examples that get torch's answer."""
    max_abs_error: float


class Row(msgspec.Struct, frozen=True):
    """One way to run the model."""

    name: str
    size_mb: float
    """10^6 bytes of the model file; of the weights, for torch."""
    p50_ms: float
    p90_ms: float
    min_ms: float
    speedup: float
    """p50 of onnxruntime on the raw export, divided by this one's."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """95 % Wilson interval."""
    agreement: float
    max_abs_error: float
    """Of the logits of all held-out examples, against torch."""

    @classmethod
    def make(
        cls, name: str, *, size: int, seconds: Sequence[float], base: Sequence[float], judged: Score
    ) -> Self:
        """A row from its parts: bytes, seconds of its runs and of those to compare with, and its score."""
        p50, p90 = (float(np.percentile(seconds, at)) * 1e3 for at in (50, 90))
        return cls(
            name, size / 1e6, p50, p90, min(seconds) * 1e3, float(np.percentile(base, 50)) * 1e3 / p50,
            judged.accuracy, judged.low, judged.high, judged.agreement, judged.max_abs_error,
        )  # fmt: skip


class Report(msgspec.Struct, frozen=True):
    """What `report.json` says."""

    rows: tuple[Row, ...]
    machine: dict[str, Any]
    versions: dict[str, str]
    demo: str
    shape: str
    data: str
    examples: int
    seconds: dict[str, float]
    """Of every stage."""
    cached: tuple[str, ...] = ()
    promises: dict[str, bool] = {}
    """What the demo is meant to show, and whether this run showed it."""
    fallback: str = ""
    """Why another demo than the one asked for was run."""


def wilson(right: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion (E. B. Wilson 1927), by default at 95 %."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    half /= 1 + z * z / total
    return max(0.0, centre - half), min(1.0, centre + half)


def score(answers: np.ndarray, labels: np.ndarray, *, same: np.ndarray, max_abs_error: float) -> Score:
    """Judge answers [examples] against labels [examples]; `same` says where they are torch's."""
    right = int((answers == labels).sum())
    low, high = wilson(right, len(labels))
    return Score(right / len(labels), low, high, float(same.mean()), max_abs_error)


def promises(rows: Sequence[Row]) -> dict[str, bool]:
    """What the demo is meant to show (names as in `rows`), and whether these rows show it."""
    by_name = {row.name: row for row in rows}
    raw, fp32, int8 = (by_name[name] for name in ("onnxruntime", "burnish-fp32", "burnish-int8"))
    return {
        "int8 accuracy within 1.0 point of fp32": int8.accuracy >= fp32.accuracy - 0.01,
        "int8 at least 2.0 times as fast as onnxruntime": int8.speedup >= 2.0,
        "fp32 not slower than onnxruntime (5 % noise)": fp32.p50_ms <= 1.05 * raw.p50_ms,
        "fp32 within 1e-4 of torch": fp32.max_abs_error <= 1e-4,
    }


def machine() -> dict[str, Any]:
    """What the figures are taken on; call it before the work, so that the load is others'."""
    plan = plan_threads()
    return {
        "cpu": _cpu(),
        "threads": plan.intra_op,
        "threads_why": plan.why,
        "logical_cpus": plan.logical,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "platform": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def all_versions() -> dict[str, str]:
    """Of burnish, Python and every library that took part."""
    from burnish.versions import versions

    return {"python": platform.python_version()} | versions(LIBRARIES)


def show(report: Report, out: Console) -> None:
    """Print the table and, under it, what the figures mean."""
    table = Table(title=f"{report.demo}, {report.shape}", title_justify="left", title_style="bold")
    heads = ("size MB", "p50 ms", "p90 ms", "min ms", "speed-up", "accuracy (95 %)", "max error")
    table.add_column("")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.name, f"{row.size_mb:.2f}", f"{row.p50_ms:.2f}", f"{row.p90_ms:.2f}", f"{row.min_ms:.2f}",
            f"{row.speedup:.2f}×",
            f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.1f}–{100 * row.accuracy_high:.1f})",
            f"{row.max_abs_error:.1e}",
        )  # fmt: skip
    out.print(table)
    for line in _remarks(report):
        out.print(line, style="dim", highlight=False)


def _remarks(report: Report) -> Iterator[str]:
    threads, cpus = report.machine["threads"], report.machine["logical_cpus"]
    yield (
        f"Latency: in turns in one run, {threads} threads, {report.machine['cpu']}; speed-up of the median "
        "against onnxruntime, all its optimisations on, on the raw export."
    )
    yield f"Accuracy in %, and largest error of the logits against torch: {report.data}."
    last = report.rows[-1]
    same = round(last.agreement * report.examples)
    yield f"{last.name} gives torch's answer on {same:,} of {report.examples:,}."
    for promise, kept in report.promises.items():
        yield f"{'[green]shown[/green]' if kept else '[red]NOT shown[/red]'}: {promise}"
    load = report.machine["load_before"]
    if load > _BUSY * cpus:
        yield (
            f"[yellow]The machine was busy before this began (load {load} on {cpus} CPUs): "
            "latencies are noisy.[/yellow]"
        )
    if report.cached:
        yield f"From an earlier run: {', '.join(report.cached)}."


def write(report: Report, path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def read(path: Path) -> Report:
    """Read what `write` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Report)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in lines)
    names = {key.strip(): value.strip() for key, _, value in pairs}
    return names.get("model name", platform.machine())
