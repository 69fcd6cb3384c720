"""ONNX's own node tests through the recipe of target cuda: before and after on CUDA, optimiser off.

What onnxruntime's own kernels do otherwise on CUDA than on the CPU is no finding: a case whose source is not
right there is left out.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from burnish.benchmarks.node_suite.cases import Variant, cases
from burnish.benchmarks.node_suite.judge import prepared, same
from burnish.model import to_bytes
from burnish.passes.base import Context, Numerics
from burnish.passes.recipes import optimize_recipe
from burnish.runtime.faults import ORT_ERRORS
from burnish.runtime.providers import availability
from burnish.target import TARGETS

GPU = availability("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPU.usable, reason=f"needs CUDA: {GPU.why}")]
TOLERANCE, STEPS, PARTS = Numerics.ROUNDING.tolerance, 2, 8


def on_cuda(model: bytes, feeds: Mapping[str, Any]) -> dict[str, Any] | str:
    """What it gives, the CPU taking what CUDA has no kernel for; why not, where it does not run."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    wanted = {info.name for info in onnx.ModelProto.FromString(model).graph.input}
    try:
        session = ort.InferenceSession(
            model, options, providers=[("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(
            zip(names, session.run(names, {n: v for n, v in feeds.items() if n in wanted}), strict=True)
        )
    except (*ORT_ERRORS, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:300]


def is_right(found: dict[str, Any] | str, expected: Mapping[str, Any]) -> bool:
    return not isinstance(found, str) and all(
        name in found and same(value, found[name], TOLERANCE, STEPS) for name, value in expected.items()
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("variant", ["as is", "one frozen", "all frozen"])
def test_every_case_that_cuda_runs_rightly_is_the_same_after_the_recipe(variant: Variant, part: int) -> None:
    recipe, counts, failures = optimize_recipe(measured=False), Counter[str](), dict[str, str]()
    for case in prepared(cases()[part::PARTS], variant):
        if not is_right(on_cuda(case.model, case.feeds), case.expected):
            counts["source"] += 1
            continue
        model = ir.from_proto(onnx.ModelProto.FromString(case.model))
        for pass_ in recipe.passes:
            pass_.rewrite(model, Context(TARGETS["cuda"]))
        found = on_cuda(to_bytes(model), case.feeds)
        counts["same" if is_right(found, case.expected) else "failed"] += 1
        if not is_right(found, case.expected):
            failures[case.name] = found if isinstance(found, str) else "different"
    print(variant, part, dict(counts))
    assert failures == {}
    assert counts["same"] >= 1300 // PARTS, counts
