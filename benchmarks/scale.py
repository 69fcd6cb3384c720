"""How the cost of optimising grows with the graph: the same Transformer layers, 1,000 to 100,000 nodes.

    python -m burnish.benchmarks.scale --output build/scale --results benchmarks/results

Each size runs in a process of its own, on one core: once the passes alone, once with every pass checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import onnx
import onnx_ir as ir

from burnish.benchmarks.layered import make_model
from burnish.benchmarks.measure import machine, versions
from burnish.files import write_file

SIZES: Final = (1_000, 3_000, 10_000, 30_000, 100_000)
CHECKED: Final = 10_000
"""Largest graph with checking: opening one session of that size takes onnxruntime 10 s, of larger ones more
than in proportion."""
AIM_S: Final = 60.0
"""Of the largest size, passes alone."""


class Cost(msgspec.Struct, frozen=True):
    """What optimising one graph took."""

    nodes: int
    """Before."""
    left: int
    """After."""
    checked: bool
    seconds: float
    peak_mb: float

    @property
    def per_node_us(self) -> float:
        """Microseconds a node."""
        return 1e6 * self.seconds / self.nodes


def optimise(path: Path, *, checked: bool) -> Cost:
    """Load and optimise a model by the default recipe (nothing timed), in this process."""
    import time

    from burnish.benchmarks.optimize.peer_runner import peak_mb
    from burnish.model import node_count

    start = time.perf_counter()
    model, result = rewrite(path, checked=checked)
    seconds = time.perf_counter() - start
    return Cost(node_count(model), node_count(result), checked, seconds, peak_mb())


def rewrite(path: Path, *, checked: bool) -> tuple[ir.Model, ir.Model]:
    """A model, and what the default recipe (nothing timed) makes of it: every pass checked, or none."""
    from burnish.checking import DifferentialChecker
    from burnish.model import load_model, signature
    from burnish.passes.base import Context
    from burnish.passes.recipes import optimize_recipe
    from burnish.passes.runner import run_recipe

    model = load_model(path)
    check = DifferentialChecker(signature(model), by_region=True) if checked else None
    return model, run_recipe(optimize_recipe(measured=False), model, Context(), check).model


def _in_a_process(path: Path, *, checked: bool) -> Cost:
    code = (
        "import sys, msgspec; from pathlib import Path; from burnish.benchmarks.scale import optimise; "
        "print(msgspec.json.encode(optimise(Path(sys.argv[1]), checked=sys.argv[2] == 'checked')).decode())"
    )
    command = [sys.executable, "-P", "-c", code, str(path), "checked" if checked else "alone"]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=one_core)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Cost)


def markdown(costs: Sequence[Cost], facts: Mapping[str, object]) -> str:
    """The table, and the time a node against the size as a chart (Mermaid, which GitHub draws)."""
    alone = [cost for cost in costs if not cost.checked]
    rows = [
        f"| {cost.nodes:,} | {cost.left:,} | {'yes' if cost.checked else 'no'} | {cost.seconds:.1f} "
        f"| {cost.per_node_us:.0f} | {cost.peak_mb:.0f} |"
        for cost in costs
    ]
    last = alone[-1]
    verdict = "within" if last.seconds <= AIM_S else "over"
    chart = [
        "```mermaid", "xychart-beta", '    title "Passes alone: microseconds a node"',
        f"    x-axis \"nodes\" [{', '.join(str(cost.nodes) for cost in alone)}]",
        f"    y-axis \"µs a node\" 0 --> {2 * max(cost.per_node_us for cost in alone):.0f}",
        f"    line [{', '.join(f'{cost.per_node_us:.0f}' for cost in alone)}]", "```",
    ]  # fmt: skip
    introduction = (
        f"{facts['cpu']}, one core. Encoder layers as exporters leave them (sizes read at run time, norms, "
        "Gelu and attention written out), optimised by the default recipe; `checked`: every pass compared "
        f"with the model before it (up to {CHECKED:,} nodes: onnxruntime takes 10 s to open one session of "
        "that size, and more than in proportion beyond). Seconds include loading. Written by "
        "`make bench-scale`."
    )
    lines = [
        "# How the cost of optimising grows with the graph", "",
        introduction, "",
        "| nodes | left | checked | seconds | µs a node | peak MB |",
        "| ---: | ---: | --- | ---: | ---: | ---: |", *rows, "",
        f"{last.nodes:,} nodes: {last.seconds:.1f} s, {verdict} the {AIM_S:.0f} s aimed at.", "", *chart, "",
    ]  # fmt: skip
    return "\n".join(lines)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/scale"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="Folder for scale.md and scale.json.")
@click.option("--largest", type=int, default=SIZES[-1], show_default=True, help="Leave out larger graphs.")
def main(output: Path, results: Path | None, largest: int) -> None:
    """Optimise graphs of 1,000 to 100,000 nodes; print seconds, microseconds a node and peak memory."""
    from rich.console import Console

    console, costs = Console(), []
    output.mkdir(parents=True, exist_ok=True)
    for nodes in (size for size in SIZES if size <= largest):
        path = output / f"layers-{nodes}.onnx"
        onnx.save(make_model(nodes), path)
        for checked in (False, True) if nodes <= CHECKED else (False,):
            how = "checked" if checked else "alone"
            with console.status(f"{nodes:,} nodes, passes {how}"):
                cost = _in_a_process(path, checked=checked)
            costs.append(cost)
            console.print(
                f"{cost.nodes:>7,} nodes -> {cost.left:>6,}, {how:<7} {cost.seconds:>7.1f} s "
                f"{cost.per_node_us:>6.0f} µs a node {cost.peak_mb:>6.0f} MB",
                highlight=False,
            )
    facts = {"costs": costs, "cpu": machine().get("cpu", ""), "versions": versions()}
    for folder in filter(None, (output, results)):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(msgspec.to_builtins(facts), indent=2) + "\n"
        write_file(folder / "scale.json", text.encode())
        write_file(folder / "scale.md", markdown(costs, facts).encode())


if __name__ == "__main__":
    main()
