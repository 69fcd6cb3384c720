"""Per-op times of a model, out of onnxruntime's own profile (Chrome trace events, microseconds)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

_SUFFIX: Final = "_kernel_time"


class OpTime(msgspec.Struct, frozen=True):
    """The time of all nodes of one op on one provider, in one run."""

    op: str
    provider: str
    count: int
    ms: float
    """Milliseconds a run, all nodes together, mean over the runs."""
    share: float
    """Part of the time of all nodes, 0 to 1."""


class NodeTime(msgspec.Struct, frozen=True):
    """The time of one node in one run."""

    node: str
    op: str
    provider: str
    ms: float
    """Milliseconds a run, mean over the runs (a node in a loop counts each time it runs)."""


class Profile(msgspec.Struct, frozen=True):
    """Where the time of a run goes; the slowest first."""

    runs: int
    run_ms: float
    """Milliseconds of a whole run, mean; more than the nodes' sum is overhead between them."""
    ops: tuple[OpTime, ...]
    nodes: tuple[NodeTime, ...]


def read_profile(path: Path, *, skip: int) -> Profile:
    """Sum up a profile file, without its first `skip` runs (warm-up).

    Raises:
        ValueError: the file is not a profile, or has no runs after those skipped.
    """
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    runs = sorted((e for e in events if e.get("name") == "model_run"), key=lambda e: e["ts"])[skip:]
    if not runs:
        raise ValueError(f"{path.name} holds no runs after the first {skip}.")
    start = runs[0]["ts"]
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)]
    kernels = [event for event in kernels if event["ts"] >= start]
    nodes = _nodes(kernels, len(runs))
    total_ms = sum(event["dur"] for event in runs) / 1000 / len(runs)
    return Profile(len(runs), total_ms, _ops(nodes), nodes)


def _nodes(kernels: Iterable[Mapping[str, Any]], runs: int) -> tuple[NodeTime, ...]:
    spent: dict[tuple[str, str, str], float] = {}
    for event in kernels:
        args = event["args"]
        name = event["name"].removesuffix(_SUFFIX)
        key = (name or f"#{args.get('node_index', '?')}", args["op_name"], args["provider"])
        spent[key] = spent.get(key, 0.0) + event["dur"] / 1000 / runs
    found = [NodeTime(*key, ms) for key, ms in spent.items()]
    return tuple(sorted(found, key=lambda node: -node.ms))


def _ops(nodes: Iterable[NodeTime]) -> tuple[OpTime, ...]:
    groups: dict[tuple[str, str], list[float]] = {}
    for node in nodes:
        groups.setdefault((node.op, node.provider), []).append(node.ms)
    total = sum(map(sum, groups.values())) or 1.0
    found = [
        OpTime(op, provider, len(times), sum(times), sum(times) / total)
        for (op, provider), times in groups.items()
    ]
    return tuple(sorted(found, key=lambda op: -op.ms))
