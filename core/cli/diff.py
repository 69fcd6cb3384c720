"""`burnish diff`: how two models differ in structure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from burnish.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from burnish.structure import ModelDiff


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--depth", type=click.IntRange(min=0), metavar="N", help="Modules no deeper than this.")
@click.option("--macs/--no-macs", default=True, help="Run both models once, to count MACs by module.")
@click.option(
    "--html",
    "page",
    type=click.Path(),
    metavar="FILE.html",
    help="Also write both graphs side by side, layer by layer, as one page that needs no network.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 when the models differ, 0 when they do not.")
@json_option
def diff(
    a: str, b: str, *, depth: int | None, macs: bool, page: str | None, exit_code: bool, as_json: bool
) -> None:
    """Show how model B differs from model A: ops, inputs, outputs, weights, metadata, torch modules.

    Results are not compared; burnish verify does that.

    \b
    burnish diff model.onnx fast.onnx
    burnish diff model.onnx fast.onnx --html diff.html
    """
    from burnish.diff_page import need_page, write_page
    from burnish.sources import open_source
    from burnish.structure import compare

    if page is not None:
        need_page(page)
    first, second = open_source(a), open_source(b)
    found = compare(first, second, macs=macs)
    if page is not None:
        write_page(page, first, second, found)
    if as_json:
        emit(found)
    else:
        _show(found, depth)
    if page is not None:
        console(as_json=True).print(f"Side by side: {page}", soft_wrap=True)
    if exit_code and not found.same:
        click.get_current_context().exit(1)


def _show(found: ModelDiff, depth: int | None) -> None:
    from burnish.diff_text import identical, sections

    out = console(as_json=False)
    if found.same:
        out.print(identical(found))
        return
    for title, lines in sections(found):
        out.print(title, style="bold")
        for line in lines:
            out.print(f"  {line}", soft_wrap=True)
    _show_modules(out, found, depth)
    for note in found.notes:
        out.print(note, soft_wrap=True)


def _show_modules(out: Console, found: ModelDiff, depth: int | None) -> None:
    from rich.table import Table

    from burnish.diff_text import MODULE_COLUMNS, module_rows
    from burnish.provenance import label

    changed = list(module_rows(found, depth))
    if not changed:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("torch module", overflow="fold", min_width=12)
    table.add_column("class", overflow="fold")
    for name in MODULE_COLUMNS:
        table.add_column(name, justify="right")
    shown: set[str] = set()
    for module, numbers in changed:
        table.add_row(label(module.path, shown), module.kind, *numbers)
        shown.add(module.path)
    out.print(table)
