import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.artifact import Artifact
from burnish.errors import ExportError
from burnish.exporter.example_inputs import make_examples
from burnish.exporter.pooling import Pooling, read_pooling
from burnish.exporter.tasks import ALIASES, TASKS, find_task
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"), ("GPT2LMHeadModel", "text-generation"),
        ("T5ForConditionalGeneration", "text2text-generation"), ("MarianMTModel", "text2text-generation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"), ("BertForMaskedLM", "fill-mask"),
        ("BertForSequenceClassification", "text-classification"),
        ("DistilBertForTokenClassification", "token-classification"),
        ("RobertaForQuestionAnswering", "question-answering"),
        ("ViTForImageClassification", "image-classification"),
        ("DetrForObjectDetection", "object-detection"), ("CLIPModel", "zero-shot-image-classification"),
        ("SegformerForSemanticSegmentation", "semantic-segmentation"),
        ("ASTForAudioClassification", "audio-classification"), ("BertModel", "feature-extraction"),
    ],
)  # fmt: skip
def test_the_task_is_read_from_the_configuration(architecture: str, task: str, tmp_path: Path) -> None:
    assert find_task({"architectures": [architecture]}, tmp_path, None).name == task
    assert find_task({"architectures": architecture}, tmp_path, None).name == task, "a name alone counts too"


def test_a_task_may_be_asked_for_by_another_name(tmp_path: Path) -> None:
    assert find_task({}, tmp_path, "summarization").name == "text2text-generation"
    assert set(ALIASES.values()) <= set(TASKS)


def exported(folder: Path, **options: Any) -> Artifact:
    artifact = burnish.export(folder, **options)
    assert isinstance(artifact, Artifact)
    return artifact


@pytest.mark.parametrize(
    ("name", "inputs", "output"),
    [
        ("vit", ["pixel_values"], "logits"), ("wav2vec2", ["input_values"], "logits"),
        ("bert-masked", ["input_ids", "attention_mask"], "logits"),
        ("clip", ["input_ids", "pixel_values", "attention_mask"], "logits_per_image"),
    ],
)  # fmt: skip
def test_what_goes_in_and_comes_out(tiny: Tiny, name: str, inputs: list[str], output: str) -> None:
    artifact = exported(tiny(name))
    assert [spec.name for spec in artifact.manifest.inputs] == inputs
    assert artifact.manifest.outputs[0].name == output
    batches = {sizes["batch"] for sizes in artifact.manifest.receipts[0].assignments}
    assert batches >= {1, 2, 3}


def test_a_model_that_runs_on_nothing_known_is_refused() -> None:
    class Odd(torch.nn.Module):
        config = None

        def forward(self, strange: torch.Tensor) -> torch.Tensor:
            return strange

    with pytest.raises(ExportError, match="Odd runs on no example inputs") as caught:
        make_examples(Odd())
    assert caught.value.code == "EXPORT_INPUTS"


def sentence_folder(tiny: Tiny, folder: Path, mode: str, kinds: list[str]) -> Path:
    for file in tiny("bert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, mode: True})
    )
    return folder


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens", "lasttoken"])
def test_sentence_embeddings(tiny: Tiny, tmp_path: Path, mode: str) -> None:
    folder = sentence_folder(tiny, tmp_path, f"pooling_mode_{mode}", ["Transformer", "Pooling", "Normalize"])
    artifact = exported(folder)
    (output,) = artifact.manifest.outputs
    assert (output.name, output.shape) == ("sentence_embedding", ("batch", 32))
    ids = np.array([[3, 9, 4, 0, 0]])
    mask = np.array([[1, 1, 1, 0, 0]])
    found = Reference(to_bytes(artifact.model))({"input_ids": ids, "attention_mask": mask})
    import transformers

    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = encoder(torch.from_numpy(ids[:, :3])).last_hidden_state[0].numpy()
    wanted = {
        "mean_tokens": hidden.mean(0), "cls_token": hidden[0], "max_tokens": hidden.max(0),
        "lasttoken": hidden[2],
    }[mode]  # fmt: skip
    np.testing.assert_allclose(found["sentence_embedding"][0], wanted / np.linalg.norm(wanted), atol=1e-5)


def test_unknown_parts_of_a_sentence_model_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = sentence_folder(tiny, tmp_path, "pooling_mode_mean_tokens", ["Transformer", "Pooling", "Dense"])
    with pytest.raises(ExportError, match="has a Dense"):
        read_pooling(folder)
    assert read_pooling(tiny("bert")) == Pooling()
