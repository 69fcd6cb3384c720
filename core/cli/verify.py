"""`burnish verify`: check that two models compute the same."""

from __future__ import annotations

import click

from burnish.cli.common import console, emit, json_option


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option(
    "--tolerance",
    type=float,
    default=1e-4,
    show_default=True,
    help="Allowed max |a - b| / max(1, max |a|) of each output.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def verify(a: str, b: str, tolerance: float, seed: int, as_json: bool) -> None:
    """Run A and B on the same random inputs, at several sizes of every dynamic dim, and compare.

    Exit status 1 when they differ by more than the tolerance. onnxruntime's optimiser is off.

    \b
    burnish verify model.onnx fast.onnx
    """
    from burnish.api import verify as run

    verdict = run(a, b, tolerance=tolerance, seed=seed)
    apart = verdict.difference
    if as_json:
        emit({"equal": True, "output": apart.name, "max_abs": apart.max_abs, "max_rel": apart.max_rel,
              "assignments": verdict.assignments})  # fmt: skip
        return
    sizes = "; ".join(
        ", ".join(f"{name}={size}" for name, size in assignment.items()) or "static"
        for assignment in verdict.assignments
    )
    console(as_json=False).print(
        f"Equal: largest difference {apart.max_abs:.2e} (output {apart.name!r}), compared at {sizes}."
    )
