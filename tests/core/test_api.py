"""burnish.optimize, quantize and verify on every kind of model they take."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import burnish
from burnish import costs
from burnish.artifact import Artifact
from burnish.calibrating import run_here
from burnish.costs import Cost, CostTable, Form, Ratio, write_table
from burnish.errors import (
    CalibrationError,
    InputError,
    MismatchError,
    ModelError,
    OutputError,
    RecipeError,
    TargetError,
)
from burnish.model import node_count, signature, to_bytes
from burnish.runtime import timing
from burnish.testing import parse, text_of

Feeds = Callable[[int], list[dict[str, np.ndarray]]]
FAST = {"measured": False}


def test_ir_model_in_ir_model_out(encoder: ir.Model) -> None:
    before = text_of(encoder)
    result = burnish.optimize(encoder, **FAST)
    assert isinstance(result, ir.Model)
    assert node_count(result) < node_count(encoder)
    assert text_of(encoder) == before, "what was given is left alone"


def test_proto_in_proto_out_and_untouched(encoder: ir.Model) -> None:
    proto = ir.to_proto(encoder)
    before = proto.SerializeToString(deterministic=True)
    result = burnish.optimize(proto, **FAST)
    assert isinstance(result, onnx.ModelProto)
    assert proto.SerializeToString(deterministic=True) == before
    burnish.verify(proto, result)


def test_path_in_path_out(encoder_path: Path, tmp_path: Path) -> None:
    result = burnish.optimize(encoder_path, output=tmp_path / "fast.onnx", **FAST)
    assert result == tmp_path / "fast.onnx"
    onnx.checker.check_model(onnx.load(result))
    assert (tmp_path / "fast.burnish.json").exists()
    burnish.verify(encoder_path, result)


def test_a_path_needs_an_output(encoder_path: Path) -> None:
    with pytest.raises(OutputError, match="No output given"):
        burnish.optimize(encoder_path, **FAST)


def test_folder_out_is_an_artifact(encoder_path: Path, tmp_path: Path) -> None:
    burnish.optimize(encoder_path, output=tmp_path / "fast.burnish", **FAST)
    artifact = Artifact.open(tmp_path / "fast.burnish")
    steps = [receipt.step for receipt in artifact.manifest.receipts]
    assert "remove-identity" in steps
    assert steps[-1] == "deployed"
    assert "remove-identity" in artifact.manifest.recipe
    assert artifact.manifest.versions["burnish"] == burnish.__version__
    burnish.verify(encoder_path, tmp_path / "fast.burnish")


def test_artifact_in_artifact_out(encoder: ir.Model) -> None:
    artifact = Artifact.create(encoder, signature(encoder))
    result = burnish.optimize(artifact, **FAST)
    assert isinstance(result, Artifact)
    assert result.manifest.input("input_ids").meaning == "token_ids"
    assert result.manifest.input("input_ids").high == 20


def test_receipts_come_when_asked(encoder: ir.Model) -> None:
    _, receipts = burnish.optimize(encoder, recipe="remove-identity", return_receipts=True, **FAST)
    assert [r.step for r in receipts] == ["remove-identity", "deployed"]
    assert receipts[0].rewrites == 1
    assert receipts[-1].max_abs_error is not None


def test_a_recipe_from_a_file(encoder: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "mine.recipe"
    path.write_text("# only this\nremove-identity\n")
    _, receipts = burnish.optimize(encoder, recipe=path, return_receipts=True, **FAST)
    assert receipts[0].step == "remove-identity"


def test_a_missing_recipe_file(encoder: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        burnish.optimize(encoder, recipe=tmp_path / "no.recipe", **FAST)
    assert caught.value.code == "RECIPE_FILE"


def test_an_unknown_pass_suggests_the_nearest(encoder: ir.Model) -> None:
    with pytest.raises(RecipeError, match="No pass named 'fuse-gelo'") as caught:
        burnish.optimize(encoder, recipe="fuse-gelo")
    assert caught.value.hint == "Did you mean 'fuse-gelu'?"


def test_an_unknown_target(encoder: ir.Model) -> None:
    with pytest.raises(TargetError, match="No target named 'gpu'"):
        burnish.optimize(encoder, target="gpu")


def test_not_a_model() -> None:
    with pytest.raises(Exception, match="Cannot take a model from a int") as caught:
        burnish.optimize(3)
    assert caught.value.code == "MODEL_KIND"  # type: ignore[attr-defined]


def test_a_missing_file() -> None:
    with pytest.raises(ModelError, match=r"no\.onnx"):
        burnish.optimize("no.onnx", output="x.onnx")


def test_the_same_input_gives_the_same_bytes(encoder: ir.Model) -> None:
    a, b = (burnish.optimize(encoder, **FAST) for _ in range(2))
    assert to_bytes(a) == to_bytes(b)


def test_optimizing_twice_changes_nothing(encoder: ir.Model) -> None:
    once = burnish.optimize(encoder, **FAST)
    _, receipts = burnish.optimize(once, return_receipts=True, **FAST)
    assert [r.step for r in receipts if r.rewrites] == []


def test_static_needs_data(encoder: ir.Model) -> None:
    with pytest.raises(CalibrationError, match="needs calibration data"):
        burnish.quantize(encoder, scheme="static")


def test_static_int8(encoder: ir.Model, encoder_feeds: Feeds) -> None:
    result, receipts = burnish.quantize(
        encoder, scheme="static", data=encoder_feeds(4), return_receipts=True, **FAST
    )
    step = next(r for r in receipts if r.step.startswith("quantize-static"))
    assert step.rewrites == 2
    assert 0 < step.max_rel_error < 0.2
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in result.graph}


def test_dynamic_int8_needs_no_data(encoder: ir.Model) -> None:
    result = burnish.quantize(encoder, scheme="dynamic", **FAST)
    assert sum(node.op_type == "DynamicQuantizeMatMul" for node in result.graph) == 2


def test_random_calibration_is_said_loudly(encoder: ir.Model) -> None:
    _, receipts = burnish.quantize(encoder, data="random", return_receipts=True, **FAST)
    assert any("RANDOM" in note for receipt in receipts for note in receipt.notes)


def test_cuda_has_no_int8_activations(encoder: ir.Model) -> None:
    with pytest.raises(TargetError) as caught:
        burnish.quantize(encoder, scheme="dynamic", target="cuda")
    assert caught.value.code == "TARGET_NO_INT8"


def test_measured_optimisation_is_still_equal(encoder: ir.Model) -> None:
    result = burnish.optimize(encoder, typical={"batch": 1, "sequence": 16})
    burnish.verify(encoder, result)


def test_verify_finds_a_difference(encoder: ir.Model) -> None:
    other = burnish.optimize(encoder, **FAST)
    weights = other.graph.initializers["beta"]
    weights.const_value = ir.tensor(weights.const_value.numpy() + 1, name="beta")
    with pytest.raises(MismatchError, match="differ by"):
        burnish.verify(encoder, other)


def test_load_runs_what_was_written(encoder_path: Path, tmp_path: Path, encoder_feeds: Feeds) -> None:
    burnish.optimize(encoder_path, output=tmp_path / "fast.burnish", **FAST)
    session = burnish.load(tmp_path / "fast.burnish")
    (feeds,) = encoder_feeds(1)
    out = session(**feeds)
    assert out["hidden"].shape == (2, 6, 8)
    assert out["pooled"].shape == (2, 8)


def test_a_model_bound_to_one_target_is_not_rewritten_for_another(encoder: ir.Model) -> None:
    bound = msgspec.structs.replace(signature(encoder), target="cuda")
    with pytest.raises(TargetError, match="was made for cuda, not for cpu") as caught:
        burnish.optimize(Artifact.create(encoder, bound), target="cpu", **FAST)
    assert caught.value.code == "TARGET_MISMATCH"


FUNCTION = """
    <ir_version: 10, opset_import: ["": 20, "local": 1, "com.microsoft": 1]>
    g (float[batch, 4] x) => (float[batch, 4] y) { a = local.f (x)  y = Identity (a) }
    <domain: "local", opset_import: ["": 20, "com.microsoft": 1]>
    f (x) => (y) { BODY }
"""


@pytest.mark.parametrize(
    ("body", "target"), [("y = Relu (x)", "portable"), ("y = com.microsoft.Gelu (x)", "cpu")]
)
def test_what_functions_hold_decides_the_target_too(body: str, target: str) -> None:
    model = parse(FUNCTION.replace("BODY", body))
    artifact = Artifact.create(model, signature(model))
    result = burnish.optimize(artifact, recipe="remove-identity", **FAST)
    assert result.manifest.target == target


def test_a_recipe_file_may_have_any_name(encoder: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "passes.conf"
    path.write_text("remove-identity")
    _, receipts = burnish.optimize(encoder, recipe=str(path), return_receipts=True, **FAST)
    assert [receipt.step for receipt in receipts] == ["remove-identity", "deployed"]


def test_a_recipe_file_that_is_not_text(encoder: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "mine.recipe"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="it is not text") as caught:
        burnish.optimize(encoder, recipe=path, **FAST)
    assert caught.value.code == "RECIPE_FILE"


def test_a_size_of_an_unknown_dim_is_an_error(encoder: ir.Model) -> None:
    with pytest.raises(InputError, match="no dynamic dim 'sequenze'") as caught:
        burnish.optimize(encoder, recipe="remove-identity", typical={"sequenze": 8}, **FAST)
    assert caught.value.hint == "Did you mean 'sequence'?"


def test_every_part_of_the_check_that_is_missing_is_in_the_last_receipt() -> None:
    model = parse("""g (float[rows, 1] x) => (float[16, 1] y) {
        shape = Constant <value_ints = [16, 1]> ()
        a = Reshape (x, shape)
        y = Identity (a)
    }""")
    _, receipts = burnish.optimize(model, recipe="remove-identity", return_receipts=True, **FAST)
    assert receipts[-1].assignments == ({"rows": 16},)
    assert sum("where the source fails" in note for note in receipts[-1].notes) == 3


def test_attachments_that_a_plain_file_cannot_carry_are_named(encoder: ir.Model, tmp_path: Path) -> None:
    artifact = Artifact.create(encoder, signature(encoder), {"tokenizer.json": b"{}"})
    only = {"recipe": "remove-identity", "return_receipts": True, **FAST}
    folder, kept = burnish.optimize(artifact, output=tmp_path / "folder", **only)
    _, lost = burnish.optimize(artifact, output=tmp_path / "plain.onnx", **only)
    assert folder.attachments["tokenizer.json"] == tmp_path / "folder/tokenizer.json"
    assert not any("tokenizer.json" in note for note in kept[-1].notes)
    assert any("tokenizer.json" in note for note in lost[-1].notes)


def test_verify_of_models_with_other_inputs() -> None:
    first = parse("g (float[batch, 4] x) => (float[batch, 4] y) { y = Neg (x) }")
    other = parse("g (float[batch, 4] z) => (float[batch, 4] y) { y = Neg (z) }")
    with pytest.raises(MismatchError, match="The second model does not run where the first does") as caught:
        burnish.verify(first, other)
    assert "tolerance" not in caught.value.hint


def test_an_output_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "fast.onnx"
    with pytest.raises(OutputError, match="there is no such folder") as caught:
        burnish.optimize(tmp_path / "missing.onnx", output=nowhere)
    assert caught.value.code == "OUTPUT_PATH"
    with pytest.raises(OutputError, match="there is no such folder"):
        burnish.export("no_such_module:build", output=nowhere)


def test_the_last_receipt_says_what_onnxruntime_executes(encoder: ir.Model, encoder_feeds: Feeds) -> None:
    _, receipts = burnish.quantize(encoder, data=encoder_feeds(4), return_receipts=True, **FAST)
    (note,) = [note for note in receipts[-1].notes if note.startswith("onnxruntime executes")]
    assert "2 com.microsoft::" in note, "both Linears run in int8, by a kernel of onnxruntime's own"


def test_no_samples_and_no_such_scheme(encoder: ir.Model) -> None:
    with pytest.raises(CalibrationError, match="holds no sample"):
        burnish.quantize(encoder, data=[])
    with pytest.raises(RecipeError, match="no quantisation scheme 'statik'"):
        burnish.quantize(encoder, scheme="statik", data="random")  # type: ignore[arg-type]


def test_inputs_without_names(encoder_path: Path) -> None:
    with pytest.raises(Exception, match="without names") as caught:
        burnish.load(encoder_path)(np.zeros(3))
    assert caught.value.code == "INPUT_UNKNOWN"  # type: ignore[attr-defined]


SKIP = """
    g (float[B, S, 64] x, float[B, S, 64] s) => (float[B, S, 64] y)
    { y = com.microsoft.SkipLayerNormalization (x, s, k, b) }
"""
NORM = {"k": np.ones(64, np.float32), "b": np.zeros(64, np.float32)}


def test_the_cost_table_for_the_threads_of_the_result_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "own_path", lambda: tmp_path / "costs.json")
    op = "com.microsoft::SkipLayerNormalization"
    form = Form(op, "Sum+LayerNormalization", "shift", "float32", (256, 64))
    runs = [
        msgspec.structs.replace(run_here("cpu", threads), costs=(Cost(form, Ratio(ratio, ratio, ratio)),))
        for threads, ratio in ((1, 2.0), (2, 0.5))
    ]
    write_table(costs.own_path(), CostTable(tuple(runs)))
    left = [
        [node.op_type for node in burnish.optimize(parse(SKIP, weights=NORM), threads=threads, **FAST).graph]
        for threads in (1, 2)
    ]
    assert left == [["Sum", "LayerNormalization"], ["SkipLayerNormalization"]]


def test_speeds_are_compared_at_the_threads_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def compare_speed(*_: object, threads: int | None, provider: str) -> Ratio:
        seen.append((threads, provider))
        return Ratio(0.5, 0.4, 0.6)

    monkeypatch.setattr(timing, "compare_speed", compare_speed)
    for threads in (1, None):
        burnish.optimize(parse(SKIP, weights=NORM), threads=threads)
    assert seen == [(1, "cpu"), (None, "cpu")]
