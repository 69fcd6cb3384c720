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
    assert source.notes[0] == "no pooler: its weights are not stored"
    assert source.notes[1].startswith("5 stored weights are not used by BertModel: cls.predictions.bias")
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


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy of a model's folder with other settings in its config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | settings))
    return to


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hidden_size": 32}, "The weight 'embeddings.LayerNorm.bias' in"),
        ({"model_type": None}, "says no model_type"),
        ({"model_type": ["bert"]}, "which is no name"),
        ({"model_type": "berd"}, "The nearest that it has is 'bert'"),
        ({"num_attention_heads": 3}, "multiple of the number of attention heads"),
    ],
)
def test_configurations_that_do_not_fit(bert: Path, tmp_path: Path, settings: Any, says: str) -> None:
    code, text = refused(changed(bert, tmp_path / "other", **settings))
    assert code == "EXPORT_SOURCE"
    assert says in text
    assert len(text.splitlines()) == 2


def test_a_weight_of_another_shape_is_named_with_both(bert: Path, tmp_path: Path) -> None:
    _, text = refused(changed(bert, tmp_path / "other", vocab_size=51))
    assert "'embeddings.word_embeddings.weight'" in text
    assert "is [50, 16], by config.json it is [51, 16]" in text


def test_weights_that_no_layer_takes_are_noted(bert: Path, tmp_path: Path) -> None:
    source = resolve(changed(bert, tmp_path / "other", num_hidden_layers=0))
    assert any("stored weights are not used by BertModel: encoder.layer.0" in note for note in source.notes)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("model-00001-of-00002.safetensors", "has no 'model-00001-of-00002.safetensors', which its index"),
        ("../bert/model.safetensors", "outside the folder"),
        ("/etc/passwd", "outside the folder"),
    ],
)
def test_shards_must_be_there_and_inside(bert: Path, tmp_path: Path, place: str, says: str) -> None:
    folder = changed(bert, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embeddings.word_embeddings.weight": place}}))
    code, text = refused(folder)
    assert code == "EXPORT_SOURCE"
    assert says in text
    index.write_text("{}")
    assert "names no files of weights" in refused(folder)[1]


def test_shards_are_loaded(bert: Path, tmp_path: Path) -> None:
    with quiet():
        transformers.BertModel.from_pretrained(bert).save_pretrained(tmp_path, max_shard_size="8kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert resolve(tmp_path).notes == ()


def test_a_model_that_does_not_run_is_said_so(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=2)
    save(transformers.GPT2LMHeadModel(config), tmp_path)
    with pytest.raises(ExportError, match="GPT2LMHeadModel does not run: IndexError") as caught:
        resolve(tmp_path)
    assert caught.value.code == "EXPORT_INPUTS"
    assert " in transformer.wpe (Embedding) at modeling_gpt2.py:" in caught.value.what
