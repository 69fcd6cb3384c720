"""`burnish passes`: list the passes, or show one with its options."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from burnish._version import __version__
from burnish.cli.common import console, emit, json_option
from burnish.errors import BurnishError


@click.command()
@click.argument("name", required=False)
@json_option
def passes(name: str | None, as_json: bool) -> None:
    """List the passes, those of other packages too; with NAME, show what one does and its options.

    \b
    burnish passes
    burnish passes fold-constants
    """
    from burnish.passes.registry import PASSES
    from burnish.passes.third_party import third_party

    names = dict.fromkeys((*PASSES, *third_party()))
    described = [_describe(name)] if name else [_described_or_not(each) for each in names]
    if as_json:
        emit(described[0] if name else described)
    elif name:
        _show(described[0])
    else:
        _list(described)


def _described_or_not(name: str) -> dict[str, Any]:
    """One that cannot be loaded is in the list, too, with the reason."""
    try:
        return _describe(name)
    except BurnishError as error:
        return {"name": name, "error": error.to_json()}


def _describe(name: str) -> dict[str, Any]:
    from burnish.passes.registry import load_pass
    from burnish.passes.third_party import package_of

    cls = load_pass(name)
    hints = inspect.get_annotations(cls)
    return {
        "name": name,
        "package": package_of(cls) or f"burnish {__version__}",
        "numerics": cls.numerics.name.lower(),
        "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
        "doc": inspect.getdoc(cls) or "",
        "options": [
            {"name": f.name, "type": str(hints.get(f.name, f.type)), "default": _default(f)}
            for f in dataclasses.fields(cls)
        ],
    }


def _default(field: dataclasses.Field[Any]) -> object:
    return None if field.default is dataclasses.MISSING else field.default


def _list(described: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("pass", "numerics", "what it does", box=None, pad_edge=False)
    for each in described:
        if "error" in each:
            table.add_row(each["name"], "-", Text(f"cannot be used: {each['error']['what']}", style="red"))
            continue
        theirs = "" if each["package"].startswith("burnish ") else f" [{each['package']}]"
        table.add_row(each["name"], each["numerics"], each["summary"] + theirs)
    console(as_json=False).print(table)


def _show(described: dict[str, Any]) -> None:
    out = console(as_json=False)
    out.print(f"{described['name']} ({described['numerics']}), {described['package']}\n", style="bold")
    out.print(described["doc"])
    for option in described["options"]:
        out.print(f"\n  {option['name']}: {option['type']} = {option['default']}")
