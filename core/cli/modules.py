"""How a model is shown by torch module: one line a module, indented as they are nested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from burnish.cli.common import console, emit
from burnish.provenance import label

if TYPE_CHECKING:
    from rich.table import Table

    from burnish.inspection import ModuleReport, Timed
    from burnish.modules import ModuleRow, SharedWeight


_MOST: Final = 10  # shared weights that are told


def show_modules(model: str, *, depth: int | None, profile: bool, as_json: bool) -> None:
    """Print what each torch module of a model file holds."""
    from burnish.inspection import describe_modules

    report = describe_modules(model, depth=depth, profile=profile)
    if as_json:
        emit(report)
    else:
        _show(report)


def _show(report: ModuleReport) -> None:
    out = console(as_json=False)
    out.print(_table(report))
    for shared in report.table.shared[:_MOST]:
        out.print(_said(shared), soft_wrap=True)
    if len(report.table.shared) > _MOST:
        out.print(f"shared: {len(report.table.shared) - _MOST} more, all smaller (--json lists them)")
    counted = report.table.rows[0].macs is not None
    out.print(f"MACs {report.macs_note}" if counted else f"MACs unknown {report.macs_note}", soft_wrap=True)
    if report.timed is not None:
        out.print(_time(report.timed), soft_wrap=True)
    for note in report.table.notes:
        out.print(note, soft_wrap=True)


def _table(report: ModuleReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("torch module", overflow="fold", min_width=12)
    table.add_column("class", overflow="fold")
    names = ["parameters", "MB", "M MACs", "nodes", *(["ms"] if report.timed else [])]
    for name in names:
        table.add_column(name, justify="right")
    shown: set[str] = set()
    for row in report.table.rows:
        table.add_row(label(row.path, shown), row.kind, *_numbers(row))
        shown.add(row.path)
    return table


def _numbers(row: ModuleRow) -> list[str]:
    macs = "-" if row.macs is None else f"{row.macs / 1e6:,.2f}"
    found = [f"{row.parameters:,}", f"{row.bytes / 1e6:,.2f}", macs, f"{row.nodes:,}"]
    return found if row.ms is None else [*found, f"{row.ms:.3f}"]


def _said(shared: SharedWeight) -> str:
    users = ", ".join(name or "(model)" for name in shared.modules)
    return (
        f"shared: {shared.name} ({shared.parameters:,} parameters) is used by {users}; "
        f"counted once, at {shared.counted_at or '(model)'}"
    )


def _time(timed: Timed) -> str:
    said = (
        f"ms of a run, mean of {timed.runs}, onnxruntime's optimiser on: {timed.nodes_ms:.3f} in nodes of "
        f"{timed.run_ms:.3f} in all"
    )
    if not timed.unattributed:
        return f"{said}; every node's time has a module"
    share = timed.unattributed_ms / timed.nodes_ms if timed.nodes_ms else 0.0
    ops = ", ".join(timed.unattributed)
    return f"{said}; {share:.1%} of the nodes' time has no module: nodes that onnxruntime made ({ops})"
