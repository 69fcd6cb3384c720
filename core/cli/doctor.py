"""`burnish doctor`: what works on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from burnish.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from burnish.runtime.doctor import Report


@click.command()
@click.option(
    "--timeout",
    type=click.FloatRange(min=1.0),
    default=120.0,
    show_default=True,
    help="Seconds that one provider may take.",
)
@json_option
def doctor(timeout: float, as_json: bool) -> None:
    """Say what works on this machine: each provider is tried on a tiny model, in a process of its own.

    Names the shared libraries that are missing and the commands that bring them.

    \b
    burnish doctor
    """  # fmt: skip
    from burnish.runtime.doctor import diagnose

    report = diagnose(timeout=timeout)
    if as_json:
        emit(report)
    else:
        _show(report)


def _show(report: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console(as_json=False)
    providers = Table(box=None, pad_edge=False, show_header=False)
    for found in report.providers:
        mark = Text("works", style="green") if found.works else Text("no", style="yellow")
        providers.add_row(found.name, mark, found.why)
        for fix in found.fixes:
            providers.add_row("", "", f"→ {fix}")
    out.print(providers)
    facts = Table(box=None, pad_edge=False, show_header=False)
    machine, threads = report.machine, report.machine.threads
    facts.add_row("cpu", f"{machine.cpu} ({', '.join(machine.features) or 'no int8 instructions'})")
    quota = "no cgroup limit" if threads.quota is None else f"cgroup allows {threads.quota:g} CPUs"
    cores = f"{threads.logical} CPUs in the affinity mask, {threads.physical} cores, {quota}"
    facts.add_row("threads", f"{threads.intra_op} ({threads.why}); {cores}")
    facts.add_row("memory", f"{_gb(machine.memory)}, cgroup limit {_gb(machine.memory_limit)}")
    for gpu in machine.gpus:
        facts.add_row("gpu", f"{gpu.name}, compute capability {gpu.capability}, {_gb(gpu.memory)}")
    facts.add_row("telemetry", report.telemetry)
    facts.add_row("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    out.print()
    out.print(facts)
    for problem in report.problems:
        out.print(f"Problem: {problem}", style="yellow", soft_wrap=True)


def _gb(size: int | None) -> str:
    return "none" if size is None else f"{size / 1e9:.1f} GB"
