"""What `optimize` and `quantize` share: options, and the table of receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from burnish.cli.common import console, parse_pairs

if TYPE_CHECKING:
    from burnish.explaining import Explanation
    from burnish.manifest import Receipt

Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

REWRITE_OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option("-o", "--output", required=True, type=click.Path(),
                 help="An .onnx file, or a folder (an artifact)."),
    click.option("-r", "--recipe", metavar="TEXT|FILE",
                 help="Passes in order, as text or a file; see `burnish passes`."),
    click.option("--on-mismatch", type=click.Choice(["refuse", "rollback"]), default="refuse",
                 show_default=True, help="What to do when a pass changes the result."),
    click.option("--dim", multiple=True, callback=parse_pairs, metavar="NAME=N",
                 help="Size of a dynamic dim to measure speed at (default: batch 1, others 128)."),
    click.option("--measured/--no-measured", default=True,
                 help="Time what the cost table does not decide, or go by the table alone."),
    click.option("--threads", type=click.IntRange(min=1),
                 help="Intra-op threads that the result will run with, and is measured at.  "
                 "[default: physical cores within the cgroup's limit]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs."),
)  # fmt: skip


def with_options(options: Sequence[Decorator]) -> Decorator:
    """Decorate a command with several options, in the order in which help shows them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def sizes_of(pairs: Mapping[str, str]) -> dict[str, int]:
    """`--dim NAME=N` as numbers."""
    bad = next((text for text in pairs.values() if not text.isdecimal()), None)
    if bad is not None:
        raise click.BadParameter(f"{bad!r} is not a size.", param_hint="--dim")
    return {name: int(text) for name, text in pairs.items()}


def report(
    receipts: Sequence[Receipt], output: str, explained: Explanation | None = None, *, as_json: bool
) -> None:
    """Print one line a pass: rewrites, nodes, largest error, seconds; then what did not fire and why.

    The latter by pass, or by layer where it is `explained`.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("pass", "rewrites", "nodes", "max error", "seconds", ""):
        table.add_column(name, justify="left" if name in ("pass", "") else "right")
    idle = [receipt for receipt in receipts if receipt.status == "unchanged"]
    for receipt in receipts:
        if receipt in idle:
            continue
        table.add_row(
            receipt.step, str(receipt.rewrites or "-"), f"{receipt.nodes_before}→{receipt.nodes_after}",
            "-" if receipt.max_abs_error is None else f"{receipt.max_abs_error:.1e}",
            "-" if receipt.seconds is None else f"{receipt.seconds:.1f}",
            "" if receipt.status in ("kept", "unchanged") else Text(receipt.status, style="red"),
        )  # fmt: skip
    out = console(as_json=as_json)
    out.print(table)
    if idle:
        out.print(f"Nothing to do for: {', '.join(dict.fromkeys(r.step for r in idle))}", soft_wrap=True)
    for receipt in receipts:
        told = explained is not None and receipt.status != "rolled-back" and receipt.step != "deployed"
        for note in (*receipt.measured, *(() if told else receipt.notes)):
            out.print(f"{receipt.step}: {note}", soft_wrap=True)
    for line in () if explained is None else _explained(explained):
        out.print(line, soft_wrap=True)
    out.print(f"Written: {output}", soft_wrap=True)


def _explained(explained: Explanation) -> Iterator[str]:
    yield from explained.notes
    if not explained.layers:
        yield "No layer has anything that was fused, or nearly."
    for layer in explained.layers:
        ops = (op if count == 1 else f"{count} {op}" for op, count in layer.fused.items())
        fused = ", ".join(op.replace("com.microsoft::", "") for op in ops)
        yield f"{layer.label or '(model)'}: {fused or 'nothing fused'}"
        for missed in layer.missed:
            at = f" at {missed.op}" if missed.op else ""
            times = f" ({missed.count} ×)" if missed.count > 1 else ""
            yield f"    {missed.pass_}{at}{times}: {missed.why}"
