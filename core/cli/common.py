"""What every command shares: `--json`, consoles, progress, and how errors are shown."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from burnish.errors import BurnishError

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

Report = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all): how long work tells of its progress."""


def json_option(command: F) -> F:
    """Add `--json`: the result as JSON on stdout, everything meant for people on stderr."""

    def remember(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        ctx.meta["burnish.json"] = value
        return value

    return click.option(
        "--json", "as_json", is_flag=True, callback=remember, is_eager=True,
        help="Print the result as JSON on stdout; human output goes to stderr.",
    )(command)  # fmt: skip


def console(*, as_json: bool) -> Console:
    """Where human output goes: stdout, or stderr when stdout carries JSON.

    Brackets are text, as in `float32[batch, sequence]`; for colours give a `rich.text.Text` or a style.
    """
    from rich.console import Console

    return Console(stderr=as_json, highlight=False, markup=False)


def emit(result: object) -> None:
    """Print a result (plain data or msgspec structs) as JSON on stdout."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


def fail(error: BurnishError, *, as_json: bool) -> None:
    """Print a typed error: two lines on stderr, or one JSON object on stdout."""
    if as_json:
        click.echo(json.dumps({"error": error.to_json()}))
    click.secho(f"Error: {error.what}", fg="red", err=True, bold=True)
    click.echo(error.hint, err=True)


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """A progress bar on stderr for long work; the yielded callable updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<48}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what[:48], completed=done, total=total)

        yield report


def parse_pairs(_context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """A click callback: options of the form NAME=VALUE as a dict."""
    pairs = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE.", param=parameter)
        pairs[name] = value
    return pairs
