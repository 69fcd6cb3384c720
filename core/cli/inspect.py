"""`burnish inspect`: what is in a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from burnish.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from burnish.manifest import TensorSpec


@click.command()
@click.argument("model", type=click.Path())
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Show MODEL's inputs, outputs, opset, ops, parameters, bytes, MACs and receipts.

    \b
    burnish inspect model.onnx
    """
    from burnish.inspection import describe

    facts = describe(model)
    if as_json:
        emit(facts)
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console(as_json=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for title, specs in (("input", facts["inputs"]), ("output", facts["outputs"])):
        for spec in specs:
            table.add_row(title, escape(f"{spec.name}: {spec.dtype}{_shape(spec)}"))
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
        if receipt.rewrites:
            out.print(f"[dim]receipt[/dim] {receipt.step}: {receipt.rewrites} rewrites, "
                      f"max error {receipt.max_abs_error}", soft_wrap=True)  # fmt: skip


def _shape(spec: TensorSpec) -> str:
    dims = "?" if spec.shape is None else ", ".join("?" if d is None else str(d) for d in spec.shape)
    return f"[{dims}]"
