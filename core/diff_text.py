"""What `burnish diff` says in words, line by line: the same lines in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from burnish.modules import ModuleRow
from burnish.provenance import ancestors
from burnish.structure import Change, ModelDiff, ModuleChange, Weight, WeightChanges

_MOST: Final = 20  # weights of a kind that are listed; --json has all
_LONG: Final = 100  # characters of a value that are shown

MODULE_COLUMNS: Final = ("nodes", "parameters", "M MACs")


def sections(found: ModelDiff) -> Iterator[tuple[str, list[str]]]:
    """Titles, each with its lines; what does not differ has no lines and is left out."""
    before, after = found.nodes
    told = (
        (f"nodes {before:,} → {after:,}", _nodes(found)),
        ("inputs, outputs and dims", map(_change, found.interface)),
        ("initializers", _weights(found.weights)),
        ("opsets", map(_change, found.opsets)),
        ("metadata", map(_change, found.metadata)),
    )
    for title, lines in told:
        if listed := list(lines):
            yield title, listed


def identical(found: ModelDiff) -> str:
    """What is said of models that do not differ."""
    return f"Identical: {found.nodes[0]:,} nodes, the same weights, inputs, outputs and metadata."


def module_rows(found: ModelDiff, depth: int | None = None) -> Iterator[tuple[ModuleChange, list[str]]]:
    """The torch modules that differ, no deeper than `depth`, each with its `MODULE_COLUMNS`."""
    for module in found.modules or ():
        if depth is None or len(ancestors(module.path)) - 1 <= depth:
            yield module, _numbers(module)


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
