"""ONNX's own node tests through the recipe of target cuda: before and after on CUDA, optimiser off.

What onnxruntime's own kernels do otherwise on CUDA than on the CPU is no finding: a case whose source is not
right there, or ends the process, is left out.
"""

import sys
from collections import Counter

import judge_on
import msgspec
import onnx
import onnx_ir as ir
import pytest
from cuda_device import NEEDS_GPU

from burnish.benchmarks.node_suite.cases import Variant, cases
from burnish.benchmarks.node_suite.child import Child, CrashError
from burnish.benchmarks.node_suite.judge import prepare
from burnish.benchmarks.node_suite.judging import Request
from burnish.model import to_bytes
from burnish.passes.base import Context
from burnish.passes.recipes import optimize_recipe
from burnish.target import TARGETS

PARTS = 8


def said_of(child: Child, request: Request) -> str:
    try:
        return child.ask(msgspec.msgpack.encode(request)).decode()
    except CrashError as crash:
        return f"it ended the process: {crash}"


def check(variant: Variant, part: int, target: str) -> None:
    counts, failures = Counter[str](), dict[str, str]()
    with Child([sys.executable, "-P", judge_on.__file__, target]) as child:
        for number in range(part, len(cases()), PARTS):
            case = prepare(cases()[number], variant)
            if case is None or said_of(child, Request(number, variant, None)) != judge_on.SAME:
                counts["left out"] += 1
                continue
            model = ir.from_proto(onnx.ModelProto.FromString(case.model))
            for pass_ in optimize_recipe(measured=False).passes:
                pass_.rewrite(model, Context(TARGETS[target]))
            said = said_of(child, Request(number, variant, to_bytes(model)))
            counts[said] += 1
            if said != judge_on.SAME:
                failures[case.name] = said
    assert failures == {}
    assert counts[judge_on.SAME] >= 1300 // PARTS, counts


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
