"""`python -m burnish.benchmarks.acceptance`: what `make bench-decode` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from burnish.errors import BurnishError

PARTS: Final = ("smollm2", "whisper")
WEIGHTS: Final = ("float", "keep")


@click.command()
@click.option("--only", type=click.Choice(PARTS), help="One of the two models.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/decode"), show_default=True,
              help="Gets the artifacts.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), default=Path("build/decode"), show_default=True,
              help="Gets decode.json and decode.md.")  # fmt: skip
@click.option("--reuse", is_flag=True, help="Take artifacts that an earlier run left in OUTPUT.")
def main(only: str | None, output: Path, results: Path, reuse: bool) -> None:
    """Export SmolLM2 from GGUF and Whisper tiny.en; compare what the graphs write and hear with PyTorch.

    Exit status 1 where a token, a word or a perplexity is not PyTorch's.
    """
    human = Console(stderr=True, soft_wrap=True)
    try:
        holds = _run((only,) if only else PARTS, output, results, human, reuse=reuse)
    except BurnishError as error:
        human.print(f"[bold red]Error:[/] {error.what}\n{error.hint}", highlight=False)
        raise SystemExit(1) from error
    raise SystemExit(not holds)


def _run(parts: tuple[str, ...], output: Path, results: Path, human: Console, *, reuse: bool) -> bool:
    # torch takes seconds to import: --help and a wrong option answer first.
    from burnish.benchmarks.acceptance import report, smollm2, whisper
    from burnish.benchmarks.demo.job import Stages
    from burnish.benchmarks.demo.progress import Display

    def exported(source: Path, name: str, stages: Stages, **options: Any) -> Path:
        from burnish.api import export

        target = output / name
        if not (reuse and (target / "burnish.json").is_file()):
            output.mkdir(parents=True, exist_ok=True)
            with stages(f"Exporting {name}, comparing it with PyTorch"):
                export(source, output=target, **options)
        return target

    language = speech = None
    with Display(human) as stages:
        if "smollm2" in parts:
            with stages("SmolLM2: fetching it"):
                file = smollm2.source()
            folders = {kind: exported(file, f"smollm2-{kind}", stages, weights=kind) for kind in WEIGHTS}
            language = smollm2.measure(folders, stages)
        if "whisper" in parts:
            with stages("Whisper: fetching it"):
                folder = whisper.source()
            speech = whisper.measure(exported(folder, "whisper-tiny-en", stages), stages)
        made = report.Report(language, speech, stages.seconds)
    report.write(made, results)
    Console().print("\n".join(report.markdown(made)), markup=False, highlight=False, soft_wrap=True)
    human.print(f"Written: decode.json and decode.md in {results}", highlight=False)
    return made.holds


if __name__ == "__main__":
    main()
