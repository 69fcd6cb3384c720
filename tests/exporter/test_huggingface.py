import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from burnish.errors import ExportError
from burnish.exporter.dims import Assumed
from burnish.exporter.parity import check_parity
from burnish.exporter.quiet import quiet
from burnish.exporter.source import TorchSource
from burnish.exporter.sources import resolve
from burnish.exporter.torch_export import export_module
from burnish.manifest import DimRange, Receipt
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

TINY = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 24,
}  # fmt: skip


def save(module: Any, folder: Path) -> Path:
    with quiet():
        module.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT encoder with a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    save(transformers.BertModel(transformers.BertConfig(**TINY)), folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(words))
    with quiet():
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(**TINY, num_labels=3)
    return save(transformers.BertForSequenceClassification(config), tmp_path_factory.mktemp("classifier"))


def parity(source: TorchSource, opset: int = 20) -> Receipt:
    exported = export_module(source.module, source.inputs, dynamic=source.dynamic, opset=opset)
    return check_parity(exported, Reference(to_bytes(exported.model)))


def refused(folder: Path, task: str | None = None) -> tuple[str, str]:
    with pytest.raises(ExportError) as caught:
        resolve(folder, task=task)
    return caught.value.code, str(caught.value)


def test_encoder_takes_what_its_tokenizer_makes(bert: Path) -> None:
    source = resolve(bert)
    assert list(source.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert "tokenizer.json" in source.attachments
    assert source.description == f"Hugging Face folder {bert.name!r}, BertModel, feature-extraction"
    assert next(iter(source.module.state_dict())) == "embeddings.word_embeddings.weight", (
        "no wrapper's prefix"
    )
    exported = export_module(source.module, source.inputs, dynamic=source.dynamic)
    assert [o.name for o in exported.signature.outputs] == ["last_hidden_state", "pooler_output"]
    assert [(i.meaning, i.high) for i in exported.signature.inputs] == [
        ("token_ids", 50), ("mask", None), ("segments", 2),
    ]  # fmt: skip
    assert exported.signature.dims == {"batch": DimRange(1), "sequence": DimRange(1, 24)}
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error < 1e-5
    assert {"batch": 1, "sequence": 24} in receipt.assignments


@pytest.mark.parametrize("opset", [20, 23])
def test_classifier(classifier: Path, opset: int) -> None:
    source = resolve(str(classifier))
    assert list(source.inputs) == ["input_ids", "attention_mask"], "no tokenizer: the least it needs"
    assert type(source.module).__name__ == "BertForSequenceClassification"
    receipt = parity(source, opset)
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error < 1e-5


def test_encoder_inside_a_classifier(classifier: Path) -> None:
    source = resolve(classifier, task="feature-extraction")
    assert type(source.module).__name__ == "BertModel"


def test_weights_without_a_head_are_no_classifier(bert: Path) -> None:
    code, text = refused(bert, "text-classification")
    assert code == "EXPORT_SOURCE"
    assert "classifier" in text
    assert "lack" in text


def test_encoder_stored_without_its_pooler(tmp_path: Path) -> None:
    save(transformers.BertForMaskedLM(transformers.BertConfig(**TINY)), tmp_path)
    source = resolve(tmp_path, task="feature-extraction")
    assert source.notes == ("no pooler: its weights are not stored",)
    assert source.module.pooler is None


def test_positions_of_roberta_are_offset(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(**TINY | {"max_position_embeddings": 26})
    source = resolve(save(transformers.RobertaModel(config), tmp_path))
    assert source.dynamic is not None
    assert source.dynamic["input_ids"][1] == Assumed("sequence", 1, 24)
    assert {"batch": 1, "sequence": 24} in parity(source).assignments


def test_architectures_of_no_task_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForNextSentencePrediction"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    code, text = refused(tmp_path)
    assert code == "EXPORT_SOURCE"
    assert "BertForNextSentencePrediction" in text


def test_pickled_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    shutil.copy(bert / "config.json", tmp_path)
    assert "has no model.safetensors" in refused(tmp_path)[1]
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert refused(tmp_path)[0] == "PICKLE_REFUSED"


@pytest.mark.parametrize("text", ["{", "[]", '{"architectures": ["BertModel"], "model_type": "no-such"}'])
def test_configurations_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refused(tmp_path)[0] == "EXPORT_SOURCE"


def test_truncated_weights(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, text = refused(tmp_path / "cut")
    assert code == "EXPORT_SOURCE"
    assert "cannot load" in text


def test_unknown_task_suggests_the_nearest(bert: Path) -> None:
    assert "Did you mean 'text-classification'" in refused(bert, "text-clasification")[1]
