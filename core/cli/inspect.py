"""`burnish inspect`: what is in a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from burnish.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from burnish.manifest import Receipt, TensorSpec


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "--by-module", is_flag=True, help="Show parameters, bytes, MACs and nodes of each torch module instead."
)
@click.option(
    "--depth", type=click.IntRange(min=0), metavar="N", help="With --by-module: no deeper than this."
)
@click.option("--profile", is_flag=True, help="With --by-module: run it, and show milliseconds of each.")
@json_option
def inspect(model: str, *, by_module: bool, depth: int | None, profile: bool, as_json: bool) -> None:
    """Show MODEL's inputs, outputs, opset, ops, parameters, bytes, MACs and receipts.

    \b
    burnish inspect model.onnx
    burnish inspect model.onnx --by-module --depth 3 --profile
    """
    if by_module:
        from burnish.cli.modules import show_modules

        show_modules(model, depth=depth, profile=profile, as_json=as_json)
        return
    if depth is not None or profile:
        raise click.UsageError("--depth and --profile go with --by-module.")
    from burnish.inspection import describe

    facts = describe(model)
    if as_json:
        emit(facts)
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    out = console(as_json=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, specs in (("input", facts["inputs"]), ("output", facts["outputs"])):
        for spec in specs:
            table.add_row(title, f"{spec.name}: {spec.dtype}{_shape(spec)}")
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts["opsets"].items())
    table.add_row("opset", f"{opsets}; IR {facts['ir_version']}")
    table.add_row("nodes", f"{facts['nodes']:,}")
    table.add_row("parameters", f"{facts['parameters']:,} ({facts['weight_bytes'] / 1e6:.1f} MB)")
    macs = "unknown" if facts["macs"] is None else f"{facts['macs'] / 1e6:,.1f} M"
    table.add_row("MACs", f"{macs} {facts['macs_note']}")
    table.add_row("ops", ", ".join(f"{op} {n}" for op, n in facts["ops"].items()))
    if facts["recipe"]:
        table.add_row("recipe", facts["recipe"])
    out.print(table)
    for receipt in facts["receipts"]:
        for line in _told(receipt):
            out.print(line, soft_wrap=True)


def _told(receipt: Receipt) -> list[str]:
    """What was compared, and every note; nothing of a step that found nothing to do."""
    lines = [f"{receipt.step}: {note}" for note in receipt.notes]
    if receipt.max_abs_error is None:
        return lines
    done = f"{receipt.rewrites} rewrites, " if receipt.rewrites else ""
    error = f"max error {receipt.max_abs_error:.1e} at {len(receipt.assignments)} sets of sizes"
    error += f", {receipt.places}" if receipt.places else ""
    return [f"{receipt.step}: {done}{receipt.status}, {error}", *lines]


def _shape(spec: TensorSpec) -> str:
    dims = "?" if spec.shape is None else ", ".join("?" if d is None else str(d) for d in spec.shape)
    return f"[{dims}]"
