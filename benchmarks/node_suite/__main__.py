"""ONNX's node tests under burnish and its peers: what is the same, different, invalid, and what crashes.

    python -m burnish.benchmarks.node_suite --peers .venv-peers/bin/python --results benchmarks/results

Each tool runs in a process of its own, which is started again after a crash; so does what judges the results.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from burnish.benchmarks.measure import versions
from burnish.benchmarks.node_suite import judging, serving
from burnish.benchmarks.node_suite.cases import COUNT, VARIANTS, Variant, cases, runnable
from burnish.benchmarks.node_suite.child import Child, CrashError
from burnish.benchmarks.node_suite.judge import Kind
from burnish.benchmarks.node_suite.report import HEADS, Row, cells, markdown
from burnish.files import write_file

PEERS: Final = ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript")


def _tool(name: str, python: str) -> Child:
    return Child([python, "-P", serving.__file__, name])


def _judge() -> Child:
    return Child([sys.executable, "-P", "-m", judging.__name__])


def compare(tools: Sequence[str], variant: Variant, peers: str | None, *, step: int = 1) -> Iterator[Row]:
    """Every `step`-th case of a variant under each of the tools; peers run with the Python `peers`."""
    with _judge() as judge:
        possible = [
            number
            for number in range(0, len(cases()), step)
            if _ask(judge, number, variant, None)[0] == "same"
        ]
        for name in tools:
            with _tool(name, sys.executable if name == "burnish" or peers is None else peers) as tool:
                row = Row(name, tool.ask(serving.VERSION).decode(), variant)
                for number in possible:
                    case = cases()[number]
                    model, _ = runnable(case, variant)
                    row.add(case.name, *_outcome(tool, judge, number, variant, model.SerializeToString()))
            yield row


def _outcome(tool: Child, judge: Child, number: int, variant: Variant, model: bytes) -> tuple[Kind, str]:
    try:
        answer = tool.ask(model)
    except CrashError as crash:
        return "crash", str(crash)
    if answer[:1] == serving.FAILED:
        return "exception", answer[1:].decode(errors="replace")
    return _ask(judge, number, variant, answer[1:])


def _ask(judge: Child, number: int, variant: Variant, after: bytes | None) -> tuple[Kind, str]:
    """What the judge says of a model; of the case itself where there is none."""
    request = judging.Request(number, variant, after)
    try:
        answer = msgspec.msgpack.decode(judge.ask(msgspec.msgpack.encode(request)), type=judging.Answer)
    except CrashError as crash:
        return "crash", f"onnxruntime, when it runs the result: {crash}"
    return answer.kind, answer.detail


@click.command()
@click.option("--peers", help="Python of the peers' environment; without it burnish runs alone.")
@click.option("--step", type=int, default=1, show_default=True, help="Only every so many-th case.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder for node_suite.md and .json.")
def main(peers: str | None, step: int, results: Path | None) -> None:
    """Optimise ONNX's node tests by burnish and its peers, and judge what they made."""
    from rich.console import Console

    console, rows = Console(), list[Row]()
    if len(cases()) != COUNT:
        console.print(f"This onnx has {len(cases())} node tests, not {COUNT}.")
    for variant in VARIANTS:
        found = compare(("burnish", *(PEERS if peers else ())), variant, peers, step=step)
        with contextlib.closing(found):  # type: ignore[type-var]
            for row in found:
                rows.append(row)
                pairs = zip(HEADS, cells(row), strict=True)
                console.print(", ".join(f"{head} {cell}" for head, cell in pairs), highlight=False)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        facts = {"rows": rows, "versions": versions()}
        text = json.dumps(msgspec.to_builtins(facts), indent=1) + "\n"
        write_file(results / "node_suite.json", text.encode())
        write_file(results / "node_suite.md", markdown(rows, versions()).encode())


if __name__ == "__main__":
    main()
