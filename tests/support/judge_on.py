"""Runs node tests on a target and compares: `python judge_on.py TARGET` answers requests (see `serving`).

A process of its own: onnxruntime's CUDA kernels end it on some cases.
"""

import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import onnx
import onnxruntime as ort

from burnish.benchmarks.node_suite.cases import Variant, cases
from burnish.benchmarks.node_suite.judge import Prepared, prepare, same
from burnish.benchmarks.node_suite.judging import Request
from burnish.benchmarks.node_suite.serving import receive, send
from burnish.passes.base import Numerics
from burnish.runtime.faults import ORT_ERRORS

SAME = "same"
TOLERANCE, STEPS = Numerics.ROUNDING.tolerance, 2
PROVIDERS: dict[str, list[Any]] = {
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}


@functools.lru_cache(maxsize=4)
def prepared(number: int, variant: Variant) -> Prepared | None:
    return prepare(cases()[number], variant)


def run_on(target: str, model: bytes, feeds: Mapping[str, Any]) -> dict[str, Any] | str:
    """What it gives, the CPU taking what the target has no kernel for; why not, where it does not run."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    wanted = {info.name for info in onnx.ModelProto.FromString(model).graph.input}
    given = {name: value for name, value in feeds.items() if name in wanted}
    try:
        session = ort.InferenceSession(model, options, providers=PROVIDERS[target])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))
    except (*ORT_ERRORS, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:300]


def answer(request: Request, target: str) -> str:
    """What became of a case, or of what was made of it."""
    case = prepared(request.number, request.variant)
    if case is None:
        return "onnxruntime does not run the case, or its results are random"
    found = run_on(target, case.model if request.after is None else request.after, case.feeds)
    if isinstance(found, str):
        return found
    right = all(
        name in found and same(value, found[name], TOLERANCE, STEPS) for name, value in case.expected.items()
    )
    return SAME if right else "different"


def main(target: str) -> None:
    if target == "cuda":
        ort.preload_dlls()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while (content := receive(requests)) is not None:
        send(answers, answer(msgspec.msgpack.decode(content, type=Request), target).encode())


if __name__ == "__main__":
    main(sys.argv[1])
