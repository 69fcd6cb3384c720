"""A GGUF file as a source of `burnish export`: found by name or content, exported by the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import burnish
from burnish.cli import main
from burnish.errors import ExportError
from burnish.modules import ModuleTree

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("gguf")

from burnish.exporter.source import TorchSource  # noqa: E402
from burnish.exporter.sources import resolve  # noqa: E402

MakeGguf = Callable[..., tuple[Path, Any]]


def test_a_decoder_with_its_tokenizer(make_gguf: MakeGguf) -> None:
    path, module = make_gguf("llama", "Q4_0", config={"tie_word_embeddings": True})
    source = resolve(str(path))
    assert isinstance(source, TorchSource)
    assert {"input_ids", "attention_mask", "past_key_values_1_value"} <= {*source.inputs}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} == {
        *source.attachments
    }
    assert source.description == f"GGUF file {path.name!r}, LlamaForCausalLM"
    assert source.notes[0].startswith("weights are dequantised: Q4_0 (15)")
    tied = {"lm_head.weight", "model.embed_tokens.weight"}
    assert tied <= {*source.stored}
    assert {*source.stored} == {*module.state_dict()}


def test_the_content_counts_too(make_gguf: MakeGguf, tmp_path: Path) -> None:
    other = tmp_path / "model.data"
    make_gguf("qwen2")[0].rename(other)
    assert isinstance(resolve(other), TorchSource)


def test_a_task_of_another_kind_is_refused(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama")
    with pytest.raises(ExportError, match="for text-generation only"):
        resolve(path, task="fill-mask")


def test_a_name_alone_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(ExportError, match="is not a GGUF file") as caught:
        resolve(tmp_path / "x.gguf")
    assert caught.value.code == "GGUF_INVALID"
    with pytest.raises(ExportError, match="No such file"):
        resolve(tmp_path / "absent.gguf")


def test_damaged_file_leaves_nothing_behind(make_gguf: MakeGguf, tmp_path: Path) -> None:
    path, _ = make_gguf("llama", "Q8_0")
    path.write_bytes(path.read_bytes()[:-400])
    done = CliRunner().invoke(main, ["export", str(path), "-o", str(tmp_path / "out"), "--weights", "keep"])
    assert done.exit_code == 1
    assert "is truncated" in done.output
    assert not (tmp_path / "out").exists()


def test_the_command(make_gguf: MakeGguf, tmp_path: Path) -> None:
    path, _ = make_gguf("llama", "Q8_0", config={"num_hidden_layers": 1})
    done = CliRunner().invoke(main, ["export", str(path), "-o", str(tmp_path / "out"), "--weights", "keep"])
    assert done.exit_code == 0, done.output
    assert {"burnish.json", "model.onnx", "tokenizer.json", "config.json"} <= {
        each.name for each in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_kept_weights_and_a_cache_in_place_go_together(make_gguf: MakeGguf, kind: str) -> None:
    path, _ = make_gguf("llama", kind, config={"num_hidden_layers": 1})
    made = burnish.export(path, weights="keep", decode_tokens=4)
    paths = {row.path for row in ModuleTree(made.model).table().rows}
    assert "model.embed_tokens" in paths
    assert not any(path.endswith("weight") for path in paths), "the parts of a weight are its module's"
    fast, receipts = burnish.optimize(made, measured=False, return_receipts=True)
    ops = [node.op_type for node in fast.model.graph]
    assert ops.count("GroupQueryAttention") == 1
    assert "MatMulNBits" in ops
    (lowered,) = [receipt for receipt in receipts if receipt.step == "lower-kv-cache" and receipt.rewrites]
    assert lowered.max_abs_error is not None
    assert lowered.max_abs_error < 1e-4
