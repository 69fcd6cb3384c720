"""`burnish diff`: how two models differ in structure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from burnish.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from burnish.modules import ModuleRow
    from burnish.structure import Change, ModelDiff, ModuleChange, Weight, WeightChanges

_MOST: Final = 20  # weights of a kind that are listed; --json has all
_LONG: Final = 100  # characters of a value that are shown


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--depth", type=click.IntRange(min=0), metavar="N", help="Modules no deeper than this.")
@click.option("--macs/--no-macs", default=True, help="Run both models once, to count MACs by module.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when the models differ, 0 when they do not.")
@json_option
def diff(a: str, b: str, *, depth: int | None, macs: bool, exit_code: bool, as_json: bool) -> None:
    """Show how model B differs from model A: ops, inputs, outputs, weights, metadata, torch modules.

    Results are not compared; burnish verify does that.

    \b
    burnish diff model.onnx fast.onnx
    """
    from burnish.structure import diff as compare

    found = compare(a, b, macs=macs)
    if as_json:
        emit(found)
    else:
        _show(found, depth)
    if exit_code and not found.same:
        click.get_current_context().exit(1)


def _show(found: ModelDiff, depth: int | None) -> None:
    out = console(as_json=False)
    if found.same:
        out.print(f"Identical: {found.nodes[0]:,} nodes, the same weights, inputs, outputs and metadata.")
        return
    for title, told in _sections(found):
        lines = list(told)
        if lines:
            out.print(title, style="bold")
            for line in lines:
                out.print(f"  {line}", soft_wrap=True)
    _show_modules(out, found, depth)
    for note in found.notes:
        out.print(note, soft_wrap=True)


def _sections(found: ModelDiff) -> Iterator[tuple[str, Iterator[str]]]:
    before, after = found.nodes
    yield f"nodes {before:,} → {after:,}", _nodes(found)
    yield "inputs, outputs and dims", map(_change, found.interface)
    yield "initializers", _weights(found.weights)
    yield "opsets", map(_change, found.opsets)
    yield "metadata", map(_change, found.metadata)


def _nodes(found: ModelDiff) -> Iterator[str]:
    for op, (before, after) in found.ops.items():
        sign = "-" if not after else "+" if not before else "~"
        yield f"{sign} {op}: {before} → {after} ({after - before:+})"
    if found.rewired and not found.ops:
        yield "the same ops, but they do not compute the same"
    if found.annotations:
        yield f"{found.annotations} nodes compute the same under another name or with other metadata"


def _change(change: Change) -> str:
    if change.before is None:
        return f"+ {change.name}: {_short(change.after)}"
    if change.after is None:
        return f"- {change.name}: {_short(change.before)}"
    return f"~ {change.name}: {_short(change.before)} → {_short(change.after)}"


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _weights(weights: WeightChanges) -> Iterator[str]:
    groups = (
        [f"- {_weight(weight)}" for weight in weights.removed],
        [f"+ {_weight(weight)}" for weight in weights.added],
        [f"~ {_weight(pair.before)} → {_weight(pair.after, named=False)}" for pair in weights.changed],
        [f"= {pair.before.name} is {pair.after.name} now" for pair in weights.renamed],
    )
    for lines in groups:
        yield from lines[:_MOST]
        if len(lines) > _MOST:
            yield f"{lines[0][0]} and {len(lines) - _MOST:,} more (--json lists all)"


def _weight(weight: Weight, *, named: bool = True) -> str:
    name = f"{weight.name}: " if named else ""
    return f"{name}{weight.dtype}{list(weight.shape)}, {weight.bytes:,} bytes, {weight.sha256[:12]}"


def _show_modules(out: Console, found: ModelDiff, depth: int | None) -> None:
    from rich.table import Table

    from burnish.cli.modules import label
    from burnish.provenance import ancestors

    changed = [m for m in found.modules or () if depth is None or len(ancestors(m.path)) - 1 <= depth]
    if not changed:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("torch module", overflow="fold", min_width=12)
    table.add_column("class", overflow="fold")
    for name in ("nodes", "parameters", "M MACs"):
        table.add_column(name, justify="right")
    shown: set[str] = set()
    for module in changed:
        table.add_row(label(module.path, shown), module.kind, *_numbers(module))
        shown.add(module.path)
    out.print(table)


def _numbers(module: ModuleChange) -> list[str]:
    sides = (module.before, module.after)
    return [
        _pair(*(f"{row.nodes:,}" for row in sides)),
        _pair(*(f"{row.parameters:,}" for row in sides)),
        _pair(*map(_macs, sides)),
    ]


def _macs(row: ModuleRow) -> str:
    return "-" if row.macs is None else f"{row.macs / 1e6:,.2f}"


def _pair(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"
