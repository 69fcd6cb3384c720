"""`burnish calibrate-costs`: time fused operators against other ways to write them, over a grid of sizes.

What is compared is made by the passes: the inverses of `drop-slower` write the fused node out, and
`fuse-attention` makes the standard Attention of that. Both are timed in turns in one run, alone, as deployed.
"""

from __future__ import annotations

import fnmatch
import functools
import statistics
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import msgspec
import numpy as np
import onnx_ir as ir

from burnish.calibration_grid import FAMILIES, Family, Sizes
from burnish.costs import (
    MARGIN,
    Cost,
    Costs,
    CostTable,
    Form,
    Known,
    Ratio,
    Run,
    gpu_class,
    machine_class,
    own_path,
    read_table,
    shipped_path,
    write_table,
)
from burnish.errors import BurnishError, TargetError, nearest
from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context
from burnish.passes.drop_slower import DropSlower
from burnish.passes.forms import attention_form, form_of
from burnish.passes.fusion.alone import fused_nodes, written_out
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.target import get_target

Measure = Callable[[ir.Model, ir.Model, Mapping[str, np.ndarray]], Ratio]
"""(a, b, feeds) -> time of a by time of b."""
Progress = Callable[[str, int, int], None]
_KEPT_EVERY: Final = 2.0  # seconds between two writes of the table
_BUDGET_S: Final = 0.1  # of timing one pair at first; more where noise hides the answer


class Change(msgspec.Struct, frozen=True):
    """A form of which the shipped table says something else."""

    form: Form
    now: Ratio
    shipped: Ratio


class Calibration(msgspec.Struct, frozen=True):
    """What `calibrate_costs` did."""

    path: str
    """Of the table that was written."""
    run: Run
    """Everything that is known now for this target, class of machines and release of onnxruntime."""
    measured: int
    known: int
    """How many the table knew already; they were not measured again."""
    left: int
    """Sizes for which there was no time."""
    failed: tuple[str, ...] = ()
    """What onnxruntime does not run, and why."""
    changed: tuple[Change, ...] = ()


def run_here(target: str, threads: int | None = None) -> Run:
    """A run of this machine and installation, without costs yet.

    Args:
        target: name of a target that runs on this machine.
        threads: of a session; None: what this machine allows.
    """
    from burnish.runtime.gpu import gpus
    from burnish.runtime.machine import machine, versions

    here, installed = machine(), versions()
    onnxruntime = installed.get("onnxruntime-gpu") or installed.get("onnxruntime") or "0.0"
    if get_target(target).device == "cuda" and (devices := gpus()):
        gpu = devices[0]
        return Run(target, gpu_class(gpu.capability), gpu.name, (), onnxruntime)
    count = threads or here.threads.intra_op
    return Run(target, machine_class(here.features, count), here.cpu, here.features, onnxruntime)


def calibrate_costs(
    target: str = "cpu",
    *,
    only: str | None = None,
    seconds: float | None = None,
    threads: int | None = None,
    again: bool = False,
    output: Path | None = None,
    progress: Progress | None = None,
    measure: Measure | None = None,
    families: Sequence[Family] = FAMILIES,
) -> Calibration:
    """Measure what the table does not know yet, and keep each result as it comes.

    Args:
        target: must run on this machine.
        only: a pattern such as `*LayerNormalization`, for operators without their domain.
        seconds: stop after these; the next call goes on.
        threads: of the sessions; None: what this machine allows.
        again: measure what is known, too.
        output: the table to write; None: the user's own.
        progress: told of each size.
        measure: times two models; None: onnxruntime does.
        families: what to measure.

    Raises:
        ProviderError: the target does not run on this machine (EP_UNAVAILABLE); what is missing is named.
        TargetError: `only` fits no operator that the target has (COSTS_PATTERN).
        CostTableError: the table, or the shipped one, cannot be used (COSTS_INVALID).
        OutputError: it cannot be written.
    """
    from burnish.runtime.providers import require

    there = require(get_target(target).name)
    families = [family for family in families if there.has_kernel(family.domain, family.op_type)]
    todo = [(family, size) for family in _chosen(only, families) for size in family.grid]
    keeper = _Keeper(output or own_path(), run_here(target, threads), again=again)
    timer, left = measure or _timer(target, threads), len(todo)
    end = float("inf") if seconds is None else time.monotonic() + seconds
    try:
        for family, size in todo:
            if time.monotonic() >= end:
                break
            if progress is not None:
                what = f"{family.op_type} {'×'.join(map(str, size))}"
                progress(what, len(todo) - left, len(todo))
            keeper.measure(family, size, timer)
            left -= 1
    finally:
        keeper.write()
    return keeper.report(left)


def _chosen(only: str | None, families: Sequence[Family]) -> list[Family]:
    found = [family for family in families if fnmatch.fnmatchcase(family.op_type, only or "*")]
    if not found:
        names = {family.op_type for family in families}
        raise TargetError(f"No operator fits {only!r}.", nearest(str(only), names), code="COSTS_PATTERN")
    return found


def _timer(target: str, threads: int | None) -> Measure:
    from burnish.runtime.timing import compare_speed

    compare = functools.partial(compare_speed, threads=threads, budget_s=_BUDGET_S, provider=target)

    def measure(a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        first, second = to_bytes(a), to_bytes(b)
        ratio = compare(first, second, feeds)
        if not ratio.exceeds(MARGIN):
            return ratio
        # What passes act upon is measured twice: a busy moment can last for a whole measurement.
        again = compare(first, second, feeds)
        low, high = min(ratio.low, again.low), max(ratio.high, again.high)
        return Ratio(min(ratio.value, again.value), low, high, ratio.rounds + again.rounds)

    return measure


@final
class _Keeper:
    """The table while it grows: written every few seconds, and at the end."""

    def __init__(self, path: Path, run: Run, *, again: bool) -> None:
        self._path, self._table, self._run = path, read_table(path), run
        self._shipped = read_table(shipped_path())
        before = self._table.run(run.key)
        self._known: Container[Form] = {c.form for c in before.costs} if before and not again else set()
        self._fresh: list[Cost] = []
        self._failed: dict[str, None] = {}
        self._measured = self._skipped = 0
        self._written = time.monotonic()

    def measure(self, family: Family, size: Sizes, timer: Measure) -> None:
        """Measure what is not known of an operator at a size."""
        for form, fused, other in pairs(family, size):
            if form in self._known:
                self._skipped += 1
                continue
            try:
                self._fresh.append(Cost(form, timer(fused, other, family.feeds(size)).rounded()))
            except BurnishError as error:
                self._failed[f"{family.op_type} against {form.instead}: {error.what}"] = None
                continue
            self._measured += 1
            if time.monotonic() - self._written > _KEPT_EVERY:
                self.write()

    def write(self) -> None:
        """Put what is new into the file."""
        if not self._fresh:
            return
        costs = tuple(self._fresh)
        self._table = self._table.with_run(msgspec.structs.replace(self._run, costs=costs))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_table(self._path, self._table)
        self._fresh.clear()
        self._written = time.monotonic()

    def report(self, left: int) -> Calibration:
        """What was done, and what differs from the shipped table."""
        run = self._table.run(self._run.key) or self._run
        changed = tuple(_changes(run, self._shipped))
        return Calibration(
            str(self._path), run, self._measured, self._skipped, left, tuple(self._failed), changed
        )


def _changes(run: Run, shipped: CostTable) -> Iterator[Change]:
    """The forms of which one table is sure that the other way is faster, and the other is sure it is not."""
    theirs = shipped.run(run.key)
    before = {cost.form: cost.ratio for cost in theirs.costs} if theirs else {}
    for cost in run.costs:
        known = before.get(cost.form)
        verdicts = {cost.ratio.exceeds(MARGIN), None if known is None else known.exceeds(MARGIN)}
        if known is not None and verdicts == {True, False}:
            yield Change(cost.form, cost.ratio, known)


def pairs(family: Family, size: Sizes) -> Iterator[tuple[Form, ir.Model, ir.Model]]:
    """What is compared at a size: the form, the operator alone, and the other way to write it."""
    fused = family.model(size)
    node, scope = next(fused_nodes(fused))

    def size_of(value: ir.Value) -> Sizes | None:
        return None if value.shape is None else tuple(value.shape.numpy())

    form = form_of(node, size_of, ir.DataType.FLOAT, scope.opset)
    if form is None:
        return
    standard = written_out(fused, DropSlower.name)
    yield form, fused, standard
    if family.op_type == "MultiHeadAttention":
        whole = attention_form(form.variant, form.size)
        attention = _with_attention(standard, whole)
        if attention is not None:
            yield whole, fused, attention


def _with_attention(standard: ir.Model, form: Form) -> ir.Model | None:
    """Attention in single steps as the standard operator; None where that would not be the same."""
    model = copy_model(standard)
    costs = Costs({form: Known(Ratio.exactly(2.0 * MARGIN), "own")})
    FuseAttention(packed=False).rewrite(model, Context(costs=costs))
    return model if any(node.op_type == "Attention" for node in model.graph) else None


class Summary(msgspec.Struct, frozen=True):
    """What was measured of one form, over all its sizes; speeds are those of `op` against `instead`."""

    op: str
    instead: str
    variant: str
    sizes: int
    faster: int
    slower: int
    even: int
    """Sizes at which noise hides the difference, or there is none."""
    median: float
    best: float
    worst: float


def summaries(run: Run) -> Iterator[Summary]:
    """One for each operator, variant and what it is compared with."""
    groups: dict[tuple[str, str, str], list[Ratio]] = {}
    for cost in run.costs:
        form = cost.form
        groups.setdefault((form.op, form.instead, form.variant), []).append(cost.ratio)
    for (op, instead, variant), ratios in groups.items():
        slower = sum(ratio.exceeds(MARGIN) is True for ratio in ratios)
        faster = sum(ratio.high < 1.0 / MARGIN for ratio in ratios)
        speeds = sorted(1.0 / ratio.value for ratio in ratios)
        yield Summary(
            op, instead, variant, len(ratios), faster, slower, len(ratios) - faster - slower,
            statistics.median(speeds), speeds[-1], speeds[0],
        )  # fmt: skip
