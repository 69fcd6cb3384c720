"""Weights kept as a GGUF file stores them: exact values, the graph before and after, and a whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from burnish.exporter.gguf_blocks import keep_blocks  # noqa: E402
from burnish.exporter.gguf_header import TensorInfo  # noqa: E402
from burnish.exporter.gguf_parts import split  # noqa: E402
from burnish.exporter.gguf_weights import StoredTensor  # noqa: E402
from burnish.model import to_bytes  # noqa: E402
from burnish.runtime.reference import Reference  # noqa: E402

MakeGguf = Callable[..., tuple[Path, Any]]
KINDS = ["Q4_0", "Q4_1", "Q8_0"]


def stored_matrix(kind: str, rows: int = 48, columns: int = 96, heads: int | None = None) -> StoredTensor:
    """A random matrix in blocks, one of them constant (whose scale is 0 in Q4_1)."""
    values = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    values[3, :32], values[4, :32] = 0.25, 0
    quant = gguf.GGMLQuantizationType[kind]
    data = np.ascontiguousarray(gguf.quantize(values, quant)).tobytes()
    return StoredTensor(TensorInfo("w", (rows, columns), int(quant), 0, len(data)), data, heads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [None, 4])
def test_parts_are_the_weight_bit_for_bit(kind: str, heads: int | None) -> None:
    stored = stored_matrix(kind, heads=heads)
    parts = split(stored)
    assert parts is not None
    np.testing.assert_array_equal(parts.values(), stored.values())
    assert parts.equal(stored.values())
    other = stored.values()
    other[-1, -1] += np.float32(1e-3)
    assert not parts.equal(other)
    assert not parts.equal(stored.values()[:, ::-1])


def test_minima_far_from_the_scale() -> None:
    """Where the middle of a block is no float32, its minimum is kept instead."""
    data = np.random.default_rng(3).integers(0, 256, (4, 20), np.uint8)
    data[:, :4] = np.array([6e-8, 1001.0], np.float16).view(np.uint8)
    kind = int(gguf.GGMLQuantizationType.Q4_1)
    stored = StoredTensor(TensorInfo("w", (4, 32), kind, 0, data.nbytes), data.tobytes())
    parts = split(stored)
    assert parts is not None
    assert parts.parts[0].zero == 0
    assert parts.equal(stored.values())
    usual = split(stored_matrix("Q4_1"))
    assert usual is not None
    assert usual.parts[0].zero == 8


def test_every_byte_of_8_bits() -> None:
    data = np.zeros((8, 34), np.uint8)
    data[:, 2:] = np.arange(256).reshape(8, 32)
    data[:, :2] = np.array([0.0123], np.float16).view(np.uint8)
    kind = int(gguf.GGMLQuantizationType.Q8_0)
    stored = StoredTensor(TensorInfo("w", (8, 32), kind, 0, data.nbytes), data.tobytes())
    parts = split(stored)
    assert parts is not None
    assert parts.equal(stored.values())
    assert len(np.unique(stored.values())) == 256


@pytest.mark.parametrize("kind", ["F32", "F16", "Q5_0"])
def test_other_types_have_no_parts(kind: str) -> None:
    assert split(stored_matrix(kind)) is None


BEFORE = """
<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch, sequence] ids, float[batch, sequence, 96] x) => (float[batch, sequence, 96] e, float[batch, sequence, 48] y, float[batch, sequence, 48] z)
{
    e = Gather (w, ids)
    t = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, t)
    x2 = Mul (x, x)
    z = MatMul (x2, t)
}
"""  # noqa: E501


def model_of(weight: np.ndarray, text: str = BEFORE) -> ir.Model:
    """The weight as an initializer, embedding and head at once."""
    import onnx

    head, _, tail = text.partition("{")
    made = onnx.parser.parse_model(f"{head} <float[48, 96] w> {{{tail}")
    del made.graph.initializer[:]
    made.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, 3, 96)).astype(np.float32)
    return {"ids": rng.integers(0, 48, (2, 3)), "x": x}


@pytest.mark.parametrize("kind", KINDS)
def test_table_and_products(kind: str) -> None:
    stored = stored_matrix(kind)
    model = model_of(stored.values())
    wanted = Reference(to_bytes(model))(feeds())
    before = len(to_bytes(model))
    assert keep_blocks(model, {"w": stored}).weights == 1
    ops = [node.op_type for node in model.graph]
    parts = 2 if kind == "Q8_0" else 1
    assert ops.count("MatMulNBits") == 2 * parts
    assert ops.count("GatherBlockQuantized") == parts
    assert "w" not in model.graph.initializers
    assert len(to_bytes(model)) < before / 2 + 4000
    found = Reference(to_bytes(model))(feeds())
    np.testing.assert_array_equal(found["e"], wanted["e"])
    for name in ("y", "z"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=2e-5)
    assert list(found) == ["e", "y", "z"]
    optimised = Reference(to_bytes(model), optimize=True)(feeds())
    np.testing.assert_allclose(optimised["y"], wanted["y"], rtol=1e-5, atol=2e-5)


def test_sums_are_made_once_for_each_input() -> None:
    stored = stored_matrix("Q4_1")
    text = BEFORE.replace("x2 = Mul (x, x)", "").replace("(x2, t)", "(x, t)")
    model = model_of(stored.values(), text)
    keep_blocks(model, {"w": stored})
    assert [node.op_type for node in model.graph].count("ReduceSum") == 1
    Reference(to_bytes(model))(feeds())


def test_another_use_keeps_the_weight_float() -> None:
    stored = stored_matrix("Q4_0")
    model = model_of(
        stored.values(), BEFORE.replace("e = Gather (w, ids)", "e0 = Neg (w) e = Gather (e0, ids)")
    )
    kept = keep_blocks(model, {"w": stored})
    assert kept.weights == 0
    assert kept.notes == (
        "kept as the file stores them, exactly: no weights",
        "1 matrices stay float32: used otherwise than by a matrix product or as a table",
    )
    assert "w" in model.graph.initializers


def test_a_weight_that_differs_stays_float() -> None:
    stored = stored_matrix("Q4_0")
    changed = stored.values()
    changed[0, 0] = 9
    kept = keep_blocks(model := model_of(changed), {"w": stored})
    assert kept.weights == 0
    assert "bit for bit" in kept.notes[1]
    assert "w" in model.graph.initializers


@pytest.mark.parametrize(
    ("arch", "kind", "config", "streamed"),
    [
        ("llama", "Q4_1", {"tie_word_embeddings": True}, True),
        ("qwen2", "Q8_0", {}, False),
        pytest.param("gemma", "Q8_0", {}, True, marks=pytest.mark.slow),
        pytest.param("phi3", "Q4_0", {}, True, marks=pytest.mark.slow),
        pytest.param("qwen3", "Q4_0", {}, False, marks=pytest.mark.slow),
    ],
)
def test_whole_model(
    make_gguf: MakeGguf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arch: str,
    kind: str,
    config: dict[str, Any],
    *,
    streamed: bool,
) -> None:
    """Exported with every matrix kept, compared with the float graph, and decoded like PyTorch."""
    import burnish
    from burnish import staging

    if streamed:  # as the weights of large models are, which then are [in, out]
        monkeypatch.setattr(staging, "STREAMED", 1)

    path, _ = make_gguf(arch, kind, config={"num_hidden_layers": 1, **config})
    artifact = burnish.export(path, output=tmp_path / "kept.burnish", weights="keep", decode_tokens=8)
    export, keep, decode = artifact.manifest.receipts
    assert (export.step, keep.step, decode.step) == ("export", "keep-weights", "decode")
    assert keep.max_rel_error is not None
    assert keep.max_rel_error < 2e-5
    matrices = [name for name, v in artifact.model.graph.initializers.items() if v.shape.rank() == 2]
    assert all("_scales" in name or name.startswith(("minima", "zero_points")) for name in matrices)
    assert keep.notes == (f"kept as the file stores them, exactly: {kind} ({keep.rewrites})",)
    assert keep.rewrites == {"phi3": 6, "llama": 8, "gemma": 8}.get(arch, 9)
    assert "tokenizer.json" in {path.name for path in (artifact.path or tmp_path).iterdir()}


def test_weights_that_are_not_there_or_not_known() -> None:
    import torch

    import burnish
    from burnish.errors import ExportError

    module = torch.nn.Linear(2, 3)
    for weights, said in (("keep", "Only the weights of a GGUF file"), ("kept", "Did you mean 'keep'")):
        with pytest.raises(ExportError, match=said) as caught:
            burnish.export(module, (torch.ones(1, 2),), weights=weights)
        assert caught.value.code == "EXPORT_WEIGHTS"
