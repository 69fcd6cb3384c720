"""ONNX's own node tests through the recipe of target cuda: before and after on CUDA, optimiser off.

What onnxruntime's own kernels do otherwise on CUDA than on the CPU is no finding: a case whose source is not
right there, or ends the process, is left out. So a child does the work, and goes on behind what ended it.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from burnish.benchmarks.node_suite.cases import Variant, cases
from burnish.benchmarks.node_suite.judge import Prepared, prepare, same
from burnish.model import to_bytes
from burnish.passes.base import Context, Numerics
from burnish.passes.recipes import optimize_recipe
from burnish.runtime.faults import ORT_ERRORS
from burnish.runtime.providers import availability
from burnish.target import TARGETS

GPU = availability("cuda")
NEEDS_GPU = pytest.mark.skipif(not GPU.usable, reason=f"needs CUDA: {GPU.why}")
TOLERANCE, STEPS, PARTS = Numerics.ROUNDING.tolerance, 2, 8
PROVIDERS: dict[str, list[Any]] = {
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
    "cpu": ["CPUExecutionProvider"],
}


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


def is_right(found: dict[str, Any] | str, expected: Mapping[str, Any]) -> bool:
    return not isinstance(found, str) and all(
        name in found and same(value, found[name], TOLERANCE, STEPS) for name, value in expected.items()
    )


def outcome(case: Prepared, target: str) -> Iterator[str]:
    """What is being done, before it is done; then what came of it."""
    yield "source"
    if not is_right(run_on(target, case.model, case.feeds), case.expected):
        yield "left out"
        return
    model = ir.from_proto(onnx.ModelProto.FromString(case.model))
    for pass_ in optimize_recipe(measured=False).passes:
        pass_.rewrite(model, Context(TARGETS[target]))
    yield "result"
    found = run_on(target, to_bytes(model), case.feeds)
    right = is_right(found, case.expected)
    yield "same" if right else found if isinstance(found, str) else "different"


def outcomes(variant: Variant, part: int, target: str) -> dict[str, str]:
    """By case: `same`, `left out`, or what is wrong."""
    numbers, found = list(range(part, len(cases()), PARTS)), dict[str, str]()
    while numbers:
        done = subprocess.run(
            [sys.executable, "-P", __file__, variant, target, *map(str, numbers)],
            capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
        found |= {name: said for _, name, said in lines}
        if done.returncode == 0:
            break
        assert lines, done.stderr[-2000:]
        last, name, said = lines[-1]
        found[name] = "left out" if said == "source" else f"ended the process: {said}"
        numbers = numbers[numbers.index(int(last)) + 1 :]
    return found


def check(variant: Variant, part: int, target: str) -> None:
    found = outcomes(variant, part, target)
    counts = Counter(found.values())
    assert {name: said for name, said in found.items() if said not in ("same", "left out")} == {}
    assert counts["same"] >= 1300 // PARTS, counts


@NEEDS_GPU
@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("variant", ["as is", "one frozen", "all frozen"])
def test_every_case_that_cuda_runs_rightly_is_the_same_after_the_recipe(variant: Variant, part: int) -> None:
    check(variant, part, "cuda")


@pytest.mark.slow
def test_the_way_that_is_judged_on_cuda_works_on_the_cpu() -> None:
    check("all frozen", 0, "cpu")


if __name__ == "__main__":
    assert sys.argv[1] in get_args(Variant)
    if sys.argv[2] == "cuda":
        ort.preload_dlls()
    for number in map(int, sys.argv[3:]):
        case = prepare(cases()[number], sys.argv[1])  # type: ignore[arg-type]
        for said in outcome(case, sys.argv[2]) if case is not None else ():
            print(json.dumps([str(number), case.name, said]), flush=True)
