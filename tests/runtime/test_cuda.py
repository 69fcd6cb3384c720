"""What only a CUDA device can show: results of fused operators, speeds, the whole way of a model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cuda_device import NEEDS_GPU

import burnish
from burnish.calibrating import calibrate_costs, run_here
from burnish.calibration_grid import FAMILIES, Family
from burnish.checking import EXACT
from burnish.costs import MARGIN, read_table
from burnish.model import to_bytes
from burnish.runtime.gpu import gpus
from burnish.runtime.reference import Reference
from burnish.runtime.session import Session
from burnish.runtime.timing import compare_speed
from burnish.target import TARGETS

Make = Callable[[str], bytes]

pytestmark = [pytest.mark.gpu, NEEDS_GPU]
CUDA = TARGETS["cuda"]
ONCE = {
    (f.op_type, f.inputs, f.outputs, f.opset, str(f.attributes(f.grid[0]))): f
    for f in FAMILIES
    if CUDA.has_kernel(f.domain, f.op_type)
}


@pytest.mark.parametrize("family", ONCE.values(), ids=lambda f: f"{f.op_type}{f.inputs}{f.outputs}{f.opset}")
def test_a_fused_operator_runs_on_cuda_and_is_right(family: Family) -> None:
    for size in (family.grid[0], family.grid[len(family.grid) // 2]):
        model, feeds = to_bytes(family.model(size)), family.feeds(size)
        expected = Reference(model)(feeds)
        with Session(model, "cuda", options=EXACT["cuda"]) as session:
            for name, array in session(feeds).items():
                scale = max(1.0, float(np.abs(expected[name]).max()))
                np.testing.assert_allclose(
                    array / scale, expected[name] / scale, atol=1e-4, err_msg=str(size)
                )


def test_inputs_and_outputs_stay_on_the_device(make: Make) -> None:
    model = make("g (float[n, 64] x) => (float[n, 64] y) { y = Relu (x) }")
    with Session(model, "cuda") as session:
        call = session.resident({"x": np.ones((4, 64), np.float32)})
        call()
        call()


def test_speeds_are_compared_on_the_device(make: Make) -> None:
    once = make("g (float[n, n] x) => (float[n, n] y) { y = MatMul (x, x) }")
    often = make("""
        g (float[n, n] x) => (float[n, n] y) {
            a = MatMul (x, x)  b = MatMul (a, x)  c = MatMul (b, x)  d = MatMul (c, x)  y = MatMul (d, x)
        }
    """)
    feeds = {"x": np.random.default_rng(0).standard_normal((2048, 2048), np.float32) / 64}
    assert compare_speed(often, once, feeds, provider="cuda").exceeds(MARGIN) is True


def test_the_device_is_described() -> None:
    first = gpus()[0]
    assert first.name
    assert float(first.capability) >= 5.0
    assert first.memory > 1 << 30
    assert run_here("cuda").machine == f"NVIDIA {first.capability}"


def test_costs_are_measured_on_the_device(tmp_path: Path) -> None:
    few = tuple(f for f in FAMILIES if f.op_type == "BiasGelu")[:1]
    result = calibrate_costs("cuda", output=tmp_path / "costs.json", families=few)
    assert result.measured == len(few[0].grid)
    assert read_table(tmp_path / "costs.json").runs[0].key == run_here("cuda").key


def test_a_model_is_optimised_measured_and_checked_on_cuda(tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f.op_type == "SkipLayerNormalization")
    source = tmp_path / "model.onnx"
    source.write_bytes(to_bytes(family.model((64, 256))))
    _, receipts = burnish.optimize(source, target="cuda", output=tmp_path / "out.onnx", return_receipts=True)
    notes = [note for receipt in receipts for note in receipt.notes]
    assert any(note.startswith("on cuda, ") and "the source itself is" in note for note in notes), notes
    ops = {node.op_type for node in ir.load(tmp_path / "out.onnx").graph}
    assert ops in ({"SkipLayerNormalization"}, {"Add", "LayerNormalization"})
