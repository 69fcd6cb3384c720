from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.artifact import Artifact
from burnish.errors import ExportError, MismatchError
from burnish.exporter.cache import layout_of
from burnish.exporter.causal import causal_source, find_layout, last_token
from burnish.exporter.decoding import Graph, check_decoding, empty_cache, next_cache
from burnish.exporter.sources import resolve
from burnish.manifest import DimRange
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

Tiny = Callable[[str], Path]


def exported(folder: Path, **options: Any) -> Artifact:
    artifact = burnish.export(folder, **options)
    assert isinstance(artifact, Artifact)
    return artifact


def decoding(artifact: Artifact) -> tuple[str, ...]:
    (receipt,) = (each for each in artifact.manifest.receipts if each.step == "decode")
    return receipt.notes


@pytest.mark.parametrize("opset", [20, 23, 24])
def test_llama_at_every_batch_length_and_past(tiny: Tiny, opset: int) -> None:
    """torch's own optimised export of opset 23 fails for batch 2 and 3 (reference/graph.md section 0.4)."""
    artifact = exported(tiny("llama"), opset=opset)
    names = [spec.name for spec in artifact.manifest.inputs]
    assert names == ["input_ids", "attention_mask", *(
        f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")
    )]  # fmt: skip
    assert artifact.manifest.outputs[0].shape == ("batch", 1, 64)
    assert artifact.manifest.outputs[1].shape == ("batch", 2, "past_sequence + sequence", 8)
    assert artifact.manifest.dims == {
        "batch": DimRange(1), "sequence": DimRange(1, 48), "past_sequence": DimRange(0, 47)
    }  # fmt: skip
    compared = artifact.manifest.receipts[0]
    assert compared.max_rel_error is not None
    assert compared.max_rel_error < 1e-5
    sizes = {(a["batch"], a["sequence"], a["past_sequence"]) for a in compared.assignments}
    wanted = {(b, s, p) for b in (1, 2, 3) for s in (1, 2, 7) for p in (0, 1, 40)}
    assert sizes == wanted | {(b, 48, 0) for b in (1, 2, 3)}
    assert decoding(artifact) == ("34 tokens greedily from prompts of 5, 9, 12: alone, and as a batch",)


@pytest.mark.parametrize("name", ["tied", "window", "gpt2"])
def test_other_decoders_decode_as_in_torch(tiny: Tiny, name: str) -> None:
    artifact = exported(tiny(name))
    assert len(decoding(artifact)) == 1, "no ties"


def test_a_tied_weight_is_stored_once(tiny: Tiny) -> None:
    artifact = exported(tiny("tied"), decode_tokens=2)
    names = [name for name in artifact.model.graph.initializers if "embed" in name or "lm_head" in name]
    assert names in (["model.embed_tokens.weight"], ["lm_head.weight"])


def test_states_are_fed_one_token_at_a_time(tiny: Tiny) -> None:
    artifact = exported(tiny("mamba"))
    assert artifact.manifest.inputs[0].shape == ("batch", 1)
    assert [spec.name for spec in artifact.manifest.inputs[2:4]] == [
        "past_key_values.0.conv", "past_key_values.0.recurrent"
    ]  # fmt: skip
    assert "64 tokens" in decoding(artifact)[0]


def test_all_logits_on_demand(tiny: Tiny) -> None:
    artifact = exported(tiny("llama"), last_logits_only=False, decode_tokens=3)
    assert artifact.manifest.outputs[0].shape == ("batch", "sequence", 64)


def test_only_the_last_tokens_logits_are_computed(tiny: Tiny) -> None:
    artifact = exported(tiny("llama"), decode_tokens=3)
    head = artifact.model.graph.outputs[0]
    while head.producer() is not None and head.producer().op_type in ("Identity", "Reshape"):  # type: ignore[union-attr]
        head = head.producer().inputs[0]  # type: ignore[union-attr, assignment]
    node = head.producer()
    assert node is not None
    assert node.op_type == "MatMul"
    assert node.inputs[0] is not None
    assert node.inputs[0].shape is not None
    assert node.inputs[0].shape[1] == 1, "the head sees one token of each row"


def test_the_last_token_of_a_row_padded_on_either_side() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert last_token(mask).tolist() == [1, 3, 3, 0]


def test_rows_padded_on_the_right_decode_as_alone(tiny: Tiny) -> None:
    artifact = exported(tiny("llama"), decode_tokens=2)
    run = Reference(to_bytes(artifact.model))
    interface = artifact.manifest
    ids = np.random.default_rng(3).integers(0, 64, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    both = run({"input_ids": ids, "attention_mask": mask} | empty_cache(interface, 2))
    alone = run({"input_ids": ids[1:, :4], "attention_mask": mask[1:, :4]} | empty_cache(interface, 1))
    np.testing.assert_allclose(both["logits"][1], alone["logits"][0], atol=1e-5)
    step = {"input_ids": ids[:, :1], "attention_mask": np.pad(mask, ((0, 0), (0, 1)), constant_values=1)}
    again = run(step | next_cache(both, empty_cache(interface, 2)))
    one = {"input_ids": ids[1:, :1], "attention_mask": np.ones((1, 5), np.int64)}
    single = run(one | next_cache(alone, empty_cache(interface, 1)))
    np.testing.assert_allclose(again["logits"][1], single["logits"][0], atol=1e-5)


def test_a_graph_that_decodes_other_tokens_is_refused(tiny: Tiny) -> None:
    artifact = exported(tiny("llama"), decode_tokens=2)
    run = Reference(to_bytes(artifact.model))

    def wrong(feeds: Any) -> dict[str, np.ndarray]:
        found = run(feeds)
        late = feeds["attention_mask"].shape[1] > 20
        return found | ({"logits": -found["logits"]} if late else {})

    with pytest.raises(MismatchError, match="differs from PyTorch") as caught:
        check_decoding(resolve(tiny("llama")).model, Graph(artifact.manifest, wrong))
    assert caught.value.code == "EXPORT_DECODE"


def test_layout_comes_from_the_cache_itself(tiny: Tiny) -> None:
    layout = find_layout(resolve(tiny("llama")).model)
    assert [slot.label for slot in layout.slots] == ["0.key", "0.value", "1.key", "1.value"]
    assert all(slot.grows for slot in layout.slots)
    with pytest.raises(ExportError, match="not a transformers cache") as caught:
        layout_of([torch.zeros(1)], "Odd")
    assert caught.value.code == "EXPORT_CACHE"


def test_a_model_without_a_cache_is_refused(tiny: Tiny) -> None:
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(tiny("bert-masked"))
    with pytest.raises(ExportError, match="takes no cache") as caught:
        causal_source(model)
    assert caught.value.code == "EXPORT_CACHE"


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_the_dims_of_a_language_model_are_its_own(tiny: Tiny, name: str) -> None:
    with pytest.raises(ExportError, match="are its own") as caught:
        burnish.export(tiny(name), dynamic={"input_ids": {0: "rows"}})
    assert caught.value.code == "EXPORT_DYNAMIC"
    assert "--dim" in caught.value.hint
