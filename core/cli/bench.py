"""`burnish bench`: time models and providers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from burnish.cli.common import console, emit, json_option, parse_pairs, progress
from burnish.cli.rewriting import sizes_of

if TYPE_CHECKING:
    from burnish.benchmarks.bench import BenchReport, Case


def _batches(_context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[int]:
    parts = [part for text in texts for part in text.split(",")]
    bad = next((part for part in parts if not part.isdecimal() or int(part) < 1), None)
    if bad is not None:
        raise click.BadParameter(f"{bad!r} is not a batch size.", param=parameter)
    return list(dict.fromkeys(int(part) for part in parts))


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path())
@click.option(
    "--batch",
    "batches",
    multiple=True,
    default=("1",),
    callback=_batches,
    metavar="N[,N...]",
    help="Batch sizes, one table each.  [default: 1]",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    callback=parse_pairs,
    metavar="NAME=N",
    help="Size of another dynamic dim.  [default: 128]",
)
@click.option(
    "-p",
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="cpu, openvino, cuda, tensorrt or auto; may be given several times.",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1),
    help="Intra-op threads.  [default: physical cores within the cgroup's limit]",
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Samples of each, at most."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.0),
    default=10.0,
    show_default=True,
    help="Stop timing a batch size after these, once there are 5 samples.",
)
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, each in a process of its own.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def bench(
    models: tuple[str, ...],
    *,
    batches: list[int],
    dims: dict[str, str],
    providers: tuple[str, ...],
    threads: int | None,
    runs: int,
    seconds: float,
    memory: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Time MODELS side by side: all in one run, in turns, on the same random inputs.

    A machine's noise meets neighbours alike; the speed-up is the median over rounds against the first row.

    \b
    burnish bench model.onnx fast.onnx int8.burnish --batch 1,8 --dim sequence=128
    """  # fmt: skip
    from burnish.benchmarks.bench import Settings
    from burnish.benchmarks.bench import bench as measure

    settings = Settings(
        providers=tuple(dict.fromkeys(providers)), batches=tuple(batches), dims=sizes_of(dims),
        threads=threads, runs=runs, seconds=seconds, memory=memory, seed=seed,
    )  # fmt: skip
    with progress() as tell:
        report = measure(models, settings, progress=tell)
    _show(report, as_json=as_json)
    if as_json:
        emit(report)


def _show(report: BenchReport, *, as_json: bool) -> None:
    out = console(as_json=as_json)
    groups: dict[int, list[Case]] = {}
    for case in report.cases:
        groups.setdefault(case.batch, []).append(case)
    for batch, cases in groups.items():
        sizes = dict.fromkeys(_sizes(case) for case in cases)
        out.print(_table(next(iter(sizes)) if len(sizes) == 1 else f"batch {batch}", cases))
    for name, why in {case.name: case.why for case in report.cases if case.why != "asked for"}.items():
        provider = next(case.provider for case in report.cases if case.name == name)
        out.print(f"{name} runs on {provider}: {why}", soft_wrap=True)
    samples = max(case.times.n for case in report.cases)
    versions = report.versions
    onnxruntime = versions.get("onnxruntime-gpu") or versions.get("onnxruntime")
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    out.print(
        f"{samples} samples each, in turns; {threads} on {report.machine['cpu']}; onnxruntime {onnxruntime}.",
        style="dim",
        soft_wrap=True,
    )


def _table(title: str, cases: list[Case]) -> object:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", overflow="fold", min_width=12)
    for name in ("MB", "min ms", "p50 ms", "p90 ms", "p99 ms", "items/s", "speed-up", "peak MB"):
        table.add_column(name, justify="right")
    for case in cases:
        times = case.times
        peak = "-" if case.peak_bytes is None else f"{case.peak_bytes / 1e6:,.0f}"
        table.add_row(
            case.name, f"{case.file_bytes / 1e6:,.1f}", *map(_ms, (times.min_ms, times.p50_ms, times.p90_ms)),
            _ms(times.p99_ms), f"{case.items_per_second:,.1f}", f"{case.speedup.median:.2f}×", peak,
        )  # fmt: skip
    return table


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _sizes(case: Case) -> str:
    return ", ".join(f"{name} {size}" for name, size in case.sizes.items()) or "fixed sizes"
