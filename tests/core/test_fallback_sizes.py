"""Real models that run only at some sizes of their dynamic dims, in ways their types do not say."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import burnish
from burnish.fallback_sizes import fallback_sizes
from burnish.manifest import DimRange, TensorSpec
from burnish.model import load_model, signature
from burnish.runtime.reference import Reference

TIED = """
<ir_version: 10, opset_import: ["" : 20]>
tied (float[batch, ids] x, float[batch, total] y) => (float[batch, ids] z) { a = Identity(x)  z = Sub(a, y) }
"""
ONE = """
<ir_version: 10, opset_import: ["" : 20]>
one (float[batch, seq] x) => (float[seq] z) { a = Identity(x)  axes = Constant<value_ints = [0]>()
  z = Squeeze(a, axes) }
"""
LARGE = """
<ir_version: 10, opset_import: ["" : 20]>
large (float[N, 1, D1, D2] x) => (float[N, 1, h, w] z)
{ a = Identity(x)  z = AveragePool<kernel_shape = [24, 24]>(a) }
"""
SPEECH = """
<ir_version: 10, opset_import: ["" : 20]>
speech (float[batch, 1, samples] x) => (float[batch, 1, frames] z)
{ a = Identity(x)  z = AveragePool<kernel_shape = [400], strides = [320]>(a) }
"""


@pytest.mark.parametrize("text", [TIED, ONE, LARGE, SPEECH])
def test_a_model_that_runs_at_few_sizes_is_optimised(text: str) -> None:
    result, receipts = burnish.optimize(onnx.parser.parse_model(text), measured=False, return_receipts=True)
    assert "Identity" not in {node.op_type for node in result.graph.node}
    assert len(receipts[-1].assignments) >= 4


def test_random_samples_are_those_that_run() -> None:
    _, receipts = burnish.quantize(
        onnx.parser.parse_model(ONE), scheme="static", data="random", return_receipts=True
    )
    assert any("RANDOM" in note for note in receipts[-1].notes)


def test_fallback_sizes_are_equal_but_for_the_batch_and_in_range() -> None:
    spec = TensorSpec("x", "float32", ("batch", "h", "w"))
    found = list(fallback_sizes([spec], {"batch": DimRange(1, 2)}))
    assert all(sizes["h"] == sizes["w"] for sizes in found)
    assert {sizes["batch"] for sizes in found} == {1, 2}


def test_long_sizes_are_for_signals_alone() -> None:
    signal, image = (TensorSpec("x", "float32", dims) for dims in (("batch", "t"), ("batch", 3, "h", "w")))
    assert max(sizes["t"] for sizes in fallback_sizes([signal])) == 4000
    assert max(sizes["h"] for sizes in fallback_sizes([image])) == 480


def test_a_static_model_has_no_fallback() -> None:
    assert list(fallback_sizes([TensorSpec("x", "float32", (2, 3))])) == []


def test_minus_one_and_a_question_mark_are_unknown_sizes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(LARGE)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value = -1
    dims[2].dim_param = dims[3].dim_param = "?"
    onnx.save(model, tmp_path / "old.onnx")
    assert signature(load_model(tmp_path / "old.onnx")).inputs[0].shape == (None, 1, None, None)
    assert burnish.optimize(model, measured=False).graph.node


def test_asking_for_no_outputs_gives_none() -> None:
    reference = Reference(onnx.parser.parse_model(ONE).SerializeToString())
    assert reference({"x": np.zeros((1, 3), np.float32)}, []) == {}
