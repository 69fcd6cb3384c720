"""`burnish diff --html`: two models side by side as one page, without scripts, fonts or any request.

All that comes from a model (names, metadata, receipts) is escaped and bounded; the page forbids itself to
load or run anything (Content-Security-Policy). The same two models give the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Final, final

import onnx_ir as ir

from burnish.diff_style import PAGE, STYLE
from burnish.diff_text import MODULE_COLUMNS, identical, module_rows, sections
from burnish.errors import OutputError, shown
from burnish.files import need_place, write_file
from burnish.manifest import Receipt
from burnish.model import op_name
from burnish.provenance import label, origins
from burnish.side_by_side import Block, Layer, Said, SideBySide, side_by_side
from burnish.sources import Source
from burnish.structure import ModelDiff

_SUFFIXES: Final = (".html", ".htm")
_LONGEST: Final = 400  # characters of a name
_MOST: Final = 12  # values of a node, or nodes in a list
_SHORT: Final = 40  # lines that are not folded
_RUN: Final = 4  # so many nodes in a row that stayed as they were are folded


def need_page(path: str) -> None:
    """Refuse a place for the page before any work is done.

    Raises:
        OutputError: OUTPUT_PATH: it does not end in .html (a model is never written over), or cannot be
            written.
    """
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise OutputError(
            f"Cannot write a page to '{shown(path)}': it does not end in .html.",
            "Give a name such as diff.html.",
            code="OUTPUT_PATH",
        )
    need_place(path, folder=False)


def write_page(path: str, a: Source, b: Source, found: ModelDiff) -> None:
    """Write the page of two open models and what `burnish.structure.compare` found.

    Raises:
        OutputError: OUTPUT_PATH or DISK_FULL.
    """
    write_file(path, page(a, b, found).encode())


def page(a: Source, b: Source, found: ModelDiff) -> str:
    """The page as text; see `write_page`."""
    told = side_by_side(a, b, found)
    names = [_name_of(source, which) for source, which in ((a, "A"), (b, "B"))]
    return Template(PAGE).substitute(
        style=STYLE,
        title=f"{_text(names[0])} → {_text(names[1])}",
        summary="".join(_summary(found)),
        ops="".join(_ops(told)),
        receipts="".join(_receipts(told.receipts)),
        modules="".join(_modules(found)),
        layers="".join(_Writer(told).layers()),
        a=_text(names[0]),
        b=_text(names[1]),
    )


def _name_of(source: Source, otherwise: str) -> str:
    return str(source.given) if isinstance(source.given, (str, Path)) else otherwise


def _text(text: object) -> str:
    """What a model says, as text of a page."""
    return escape(shown(text, _LONGEST))


def _summary(found: ModelDiff) -> Iterator[str]:
    if found.same:
        yield f"<p>{_text(identical(found))}</p>"
    for title, lines in sections(found):
        items = "".join(f"<li>{_text(line)}</li>" for line in lines)
        opened = " open" if len(lines) <= _SHORT else ""
        yield f"<details{opened}><summary>{_text(title)}</summary><ul>{items}</ul></details>"
    for note in found.notes:
        yield f"<p>{_text(note)}</p>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _ops(told: SideBySide) -> Iterator[str]:
    rows = [
        (
            _text(row.op),
            *(f"{n:,}" for n in (row.before, row.after, row.stayed)),
            *(f"{n - row.stayed:,}" for n in (row.before, row.after)),
        )
        for row in told.ops
    ]
    yield _table(("operator", "A", "B", "stayed", "went", "came"), rows)


def _receipts(receipts: Sequence[Receipt]) -> Iterator[str]:
    if not receipts:
        yield "<p>No receipts tell what was done; a node names the pass that made it where it says so.</p>"
        return
    rows = (
        (
            _text(receipt.step), escape(receipt.status), f"{receipt.rewrites:,}",
            f"{receipt.nodes_before:,} → {receipt.nodes_after:,}", escape(receipt.numerics),
            "" if receipt.max_rel_error is None else f"{receipt.max_rel_error:.1e}",
        )
        for receipt in receipts
    )  # fmt: skip
    yield _table(("pass", "", "rewrites", "nodes", "numerics", "largest relative error"), rows)


def _modules(found: ModelDiff) -> Iterator[str]:
    rows, seen = [], set[str]()
    for module, numbers in module_rows(found):
        name = label(module.path, seen)
        indent = len(name) - len(name.lstrip())
        rows.append(
            (f'<span style="padding-left:{indent / 2}em">{_text(name.strip())}</span>', _text(module.kind),
             *map(_text, numbers))
        )  # fmt: skip
        seen.add(module.path)
    if rows:
        table = _table(("torch module", "class", *MODULE_COLUMNS), rows)
        head = f"{len(rows):,} torch modules hold something else now"
        yield f"<details><summary>{head}</summary>{table}</details>"


@final
class _Writer:
    """Writes layers; knows which nodes are on the page and can be linked to."""

    def __init__(self, told: SideBySide) -> None:
        self._told = told
        self._ids: dict[ir.Node, str] = {}
        self._layer = ""
        for block in (block for layer in told.layers for block in layer.blocks):
            for node in (*block.left, *block.right):
                self._ids[node] = f"n{len(self._ids)}"

    def layers(self) -> Iterator[str]:
        """Each layer as a part that can be opened; those in which something changed are open."""
        for layer in self._told.layers:
            self._layer = layer.members[0]
            changed = any(block.kind != "same" for block in layer.blocks)
            yield f"<details class=layer{' open' if changed else ''}><summary>{_head(layer)}</summary>"
            if len(layer.members) > 1:
                yield f"<p class=o>{_listed(map(_text, layer.members))}</p>"
            for stays, run in itertools.groupby(layer.blocks, key=lambda block: block.kind == "same"):
                yield from self._run(list(run), stays=stays)
            yield "</details>"

    def _run(self, run: Sequence[Block], *, stays: bool) -> Iterator[str]:
        folded = stays and len(run) >= _RUN
        if folded:
            ops = _listed(_text(op_name(block.left[0])) for block in run)
            yield f"<details class=run><summary>{len(run):,} nodes stay: {ops}</summary>"
        yield from map(self._block, run)
        yield "</details>" if folded else ""

    def _block(self, block: Block) -> str:
        if block.kind == "same":  # said once, over both columns
            return f"<div class='row same'><div>{self._node(block.left[0])}{_new_name(block)}</div></div>"
        left, right = ("".join(map(self._node, nodes)) for nodes in (block.left, block.right))
        said = "".join(f"<div class=s>{self._said(each)}</div>" for each in block.said)
        return f"<div class='row {block.kind}'><div>{left}</div><div>{right}{said}</div></div>"

    def _said(self, said: Said) -> str:
        of = [self._link(each) if isinstance(each, ir.Node) else _text(each) for each in said.of]
        return f"{_text(said.what)}{': ' if of else ''}{_listed(of)}"

    def _link(self, node: ir.Node) -> str:
        text = f"{_text(op_name(node))} <i>{_text(_called(node))}</i>"
        return f'<a href="#{self._ids[node]}">{text}</a>' if node in self._ids else text

    def _node(self, node: ir.Node) -> str:
        values = [_listed(_text(v.name) if v else "–" for v in side) for side in (node.inputs, node.outputs)]
        return (
            f"<div class=n id={self._ids[node]}><b>{_text(op_name(node))}</b> <i>{_text(_called(node))}</i>"
            f"<div class=v>{values[0]} → {values[1]}</div>{''.join(self._origins(node))}</div>"
        )

    def _origins(self, node: ir.Node) -> Iterator[str]:
        found = origins(node.metadata_props)
        for origin in found:
            module = "" if len(found) == 1 and origin.module == self._layer else origin.module or "(model)"
            parts = [part for part in (module, origin.kind, origin.source) if part]
            if parts:
                yield f"<div class=o>{' · '.join(map(_text, parts))}</div>"


def _head(layer: Layer) -> str:
    left, right = (sum(len(side) for side in sides) for sides in _sides(layer.blocks))
    times = f" <b>× {len(layer.members):,}</b>" if len(layer.members) > 1 else ""
    kind = f" <i>{_text(layer.kind)}</i>" if layer.kind else ""
    same = all(block.kind == "same" for block in layer.blocks)
    count = f"{left:,} nodes, all stay" if same else f"{left:,} → {right:,} nodes"
    return f"<b>{_text(layer.label or '(model)')}</b>{kind}{times} <span>{count}</span>"


def _sides(blocks: Sequence[Block]) -> tuple[list[tuple[ir.Node, ...]], list[tuple[ir.Node, ...]]]:
    return [block.left for block in blocks], [block.right for block in blocks]


def _new_name(block: Block) -> str:
    names = [_called(node) for node in (*block.left, *block.right)]
    return "" if names[0] == names[1] else f"<div class=s>{_text(names[1])} in B</div>"


def _called(node: ir.Node) -> str:
    """What to call a node: its name, else that of what it makes."""
    return node.name or next((value.name for value in node.outputs if value.name), "")


def _listed(parts: Iterable[str]) -> str:
    """HTML, comma-separated and bounded."""
    found = list(parts)
    more = f" and {len(found) - _MOST:,} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more
