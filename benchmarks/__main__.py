"""`python -m burnish.benchmarks`: what `make bench` runs: burnish beside other optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console

from burnish.benchmarks.measure import machine, versions
from burnish.errors import BurnishError

OPSETS: Final = (20, 23)
_SIZES: Final = {"batch": 1, "sequence": 128}


@click.command()
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--peers", type=click.Path(path_type=Path),
              help="Python of an environment with requirements/peers.txt.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True)
def main(models: tuple[Path, ...], peers: Path | None, output: Path) -> None:
    """Optimise MODELS by every tool; compare nodes, results and speed (1 thread, batch 1 × sequence 128).

    Without MODELS: MiniLM exported from its PyTorch weights at opset 20 and 23, as burnish exports it
    (torch's optimiser off) and as torch.onnx.export does by default.
    """
    human = Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    try:
        report = list(_reports(models or tuple(_minilm(output, human)), peers, output, human))
    except BurnishError as error:
        human.print(f"[bold red]Error:[/] {error.what}\n{error.hint}", highlight=False)
        raise SystemExit(1) from error
    _write(report, output)
    human.print(f"Written: peers.json and peers.md in {output}", highlight=False)


def _write(report: list[dict[str, Any]], output: Path) -> None:
    from burnish.benchmarks.peers import markdown

    facts = {"models": report, "sizes": _SIZES, "threads": 1, "machine": machine(), "versions": versions()}
    (output / "peers.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
    sections = [markdown(each["rows"], each["model"]) for each in report]
    (output / "peers.md").write_text("\n".join([_introduction(), *sections]), encoding="utf-8")


def _introduction() -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    cpu = machine().get("cpu", "")
    return (
        f"# burnish beside other optimizers\n\n{cpu}, 1 thread, batch 1 × sequence 128; all results of one "
        "model are timed in turns in one run, onnxruntime's optimiser on. `max error` is against the source, "
        "onnxruntime's optimiser off, on at least four sizes of the dynamic dims. Speed-up is of the "
        f"smallest time.\n\n{libraries}\n"
    )


def _reports(
    models: tuple[Path, ...], peers: Path | None, output: Path, human: Console
) -> Iterator[dict[str, Any]]:
    from burnish.benchmarks.peers import compare, table

    for number, model in enumerate(models, start=1):
        with human.status(
            f"[{number}/{len(models)}] {model.name}: optimising by every tool, checking, timing"
        ):
            rows = compare(model, peers.absolute() if peers else None, output / "optimised", sizes=_SIZES)
        Console().print(table(rows, f"\n{model.name}"))
        yield {"model": model.name, "rows": rows}


def _minilm(output: Path, human: Console) -> Iterator[Path]:
    """MiniLM's encoder at both opsets, in both ways to export it."""
    from burnish.benchmarks.raw_exports import export_default, export_raw

    for opset in OPSETS:
        for kind, export in (("raw", export_raw), ("torch-default", export_default)):
            path = output / f"minilm-opset{opset}-{kind}.onnx"
            if not path.exists():
                with human.status(f"Exporting {path.name}"):
                    export(opset, path)
            yield path


if __name__ == "__main__":
    main()
