"""`burnish passes`: list the passes, or show one with its options."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from burnish.cli.common import console, emit, json_option


@click.command()
@click.argument("name", required=False)
@json_option
def passes(name: str | None, as_json: bool) -> None:
    """List the passes; with NAME, show what one does and its options.

    \b
    burnish passes
    burnish passes fold-constants
    """
    from burnish.passes.registry import PASSES

    described = [_describe(each) for each in ([name] if name else PASSES)]
    if as_json:
        emit(described[0] if name else described)
    elif name:
        _show(described[0])
    else:
        _list(described)


def _describe(name: str) -> dict[str, Any]:
    from burnish.passes.registry import load_pass

    cls = load_pass(name)
    hints = inspect.get_annotations(cls)
    return {
        "name": name,
        "numerics": cls.numerics.name.lower(),
        "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
        "doc": inspect.getdoc(cls) or "",
        "options": [
            {"name": f.name, "type": str(hints.get(f.name, f.type)), "default": f.default}
            for f in dataclasses.fields(cls)
        ],
    }


def _list(described: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("pass", "numerics", "what it does", box=None, pad_edge=False)
    for each in described:
        table.add_row(each["name"], each["numerics"], each["summary"])
    console(as_json=False).print(table)


def _show(described: dict[str, Any]) -> None:
    out = console(as_json=False)
    out.print(f"{described['name']} ({described['numerics']})\n", style="bold")
    out.print(described["doc"])
    for option in described["options"]:
        out.print(f"\n  {option['name']}: {option['type']} = {option['default']}")
