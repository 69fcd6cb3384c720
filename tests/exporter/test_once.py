"""Layers traced once give the graph that tracing each gives; where that is not sure, each is traced."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import burnish
from burnish import staging
from burnish.artifact import Artifact
from burnish.bundle import Bundle
from burnish.errors import MismatchError
from burnish.exporter import decoding
from burnish.exporter.replay import series
from burnish.feeds import make_feeds
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

ENCODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
}  # fmt: skip
TEXT = ENCODER | {"vocab_size": 64, "max_position_embeddings": 32}
LLAMA = TEXT | {"num_key_value_heads": 2}
PICTURES = ENCODER | {"image_size": 16, "patch_size": 8}
TO_TEXT = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 32, "bos_token_id": 0,
        "eos_token_id": 0}  # fmt: skip
CLIP = {"projection_dim": 16, "text_config": TEXT | {"projection_dim": 16, "eos_token_id": 63},
        "vision_config": PICTURES}  # fmt: skip
SLOW = pytest.mark.slow


def folder(where: Path, auto: str, kind: str, config: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    made = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **config))
    for weight in made.parameters():  # so that greedy tokens differ from step to step
        weight.data.mul_(2.0 if weight.dim() > 1 else 1.0)
    made.save_pretrained(where)
    return where


def exported(source: Any, *args: Any, **options: Any) -> Artifact:
    made = burnish.export(source, *args, **options)
    assert isinstance(made, Artifact)
    return made


def notes(artifact: Artifact) -> list[str]:
    return [note for note in artifact.manifest.receipts[0].notes if note.endswith("exported once")]


def check_equal(one: Artifact, other: Artifact) -> None:
    """The same interface, nodes by kind and by module, weights, and numbers."""
    assert one.manifest.inputs == other.manifest.inputs
    assert one.manifest.outputs == other.manifest.outputs
    assert one.manifest.dims == other.manifest.dims
    graphs = one.model.graph, other.model.graph
    kinds, places, weights = (
        [Counter(node.op_type for node in graph) for graph in graphs],
        [Counter(tuple(sorted(node.metadata_props.items())) for node in graph) for graph in graphs],
        [{n: v.const_value.numpy() for n, v in g.initializers.items() if v.const_value} for g in graphs],
    )  # fmt: skip
    assert kinds[0] == kinds[1]
    assert places[0] == places[1]
    assert list(weights[0]) == list(weights[1])
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)
    names = [value.name for node in graphs[0] for value in node.outputs]
    assert len(set(names)) == len(names)
    check_results(one, other)


def results(artifact: Artifact, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(Reference(to_bytes(artifact.model))(feeds))


def check_results(one: Artifact, other: Artifact) -> None:
    sizes = {name: max(allowed.min, 3) for name, allowed in one.manifest.dims.items()}
    feeds = make_feeds(one.manifest.inputs, sizes, seed=5)
    found, wanted = results(one, feeds), results(other, feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("auto", "kind", "config", "opset", "path"),
    [
        ("AutoModelForCausalLM", "llama", LLAMA, 20, "model.layers"),
        pytest.param(
            "AutoModelForCausalLM", "llama", LLAMA | {"num_hidden_layers": 8}, 23, "model.layers", marks=SLOW
        ),
        pytest.param("AutoModelForCausalLM", "gpt2", GPT2, 20, "transformer.h", marks=SLOW),
        pytest.param("AutoModelForCausalLM", "gpt2", GPT2, 23, "transformer.h", marks=SLOW),
        pytest.param("AutoModel", "bert", TEXT, 20, "encoder.layer", marks=SLOW),
        pytest.param("AutoModel", "bert", TEXT, 23, "encoder.layer", marks=SLOW),
        ("AutoModelForImageClassification", "vit", PICTURES, 20, "vit.layers"),
        pytest.param("AutoModelForImageClassification", "vit", PICTURES, 23, "vit.layers", marks=SLOW),
    ],
)
def test_the_graph_is_that_of_every_layer_traced(
    tmp_path: Path, auto: str, kind: str, config: dict[str, Any], opset: int, path: str
) -> None:
    source = folder(tmp_path, auto, kind, config)
    once, each = (
        exported(source, opset=opset, layers_once=layers_once, decode_tokens=3)
        for layers_once in (True, False)
    )
    last = config.get("num_hidden_layers", config.get("n_layer")) - 1  # type: ignore[operator]
    assert notes(once) == [f"layers 3 to {last} of {path} are layer 2 again: exported once"]
    assert notes(each) == []
    check_equal(once, each)


@SLOW
def test_two_stacks_in_one_graph(tmp_path: Path) -> None:
    source = folder(tmp_path, "AutoModelForZeroShotImageClassification", "clip", CLIP)
    once, each = exported(source), exported(source, layers_once=False)
    assert len(notes(once)) == 2
    check_equal(once, each)


@SLOW
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("bart", TO_TEXT),
        ("t5", {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 7, "num_heads": 4,
                "decoder_start_token_id": 0}),
    ],
)  # fmt: skip
def test_encoder_and_decoder(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    source = folder(tmp_path, "AutoModelForSeq2SeqLM", kind, config)
    once, each = burnish.export(source), burnish.export(source, layers_once=False)
    assert isinstance(once, Bundle)
    assert isinstance(each, Bundle)
    assert [len(notes(part)) for part in once.parts.values()] == [2, 1]
    for name, part in once.parts.items():
        check_equal(part, each.parts[name])


@SLOW
def test_experts_with_the_patches_of_transformers(tmp_path: Path) -> None:
    config = LLAMA | {"num_local_experts": 4, "num_hidden_layers": 5}
    source = folder(tmp_path, "AutoModelForCausalLM", "mixtral", config)
    once, each = (exported(source, layers_once=x, decode_tokens=3) for x in (True, False))
    patched = "traced with transformers' own patches, as a plain trace fails"
    assert [patched in made.manifest.receipts[0].notes for made in (once, each)] == [True, True]
    assert len(notes(once)) == 1
    check_equal(once, each)


def test_weights_that_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STREAMED", 1)
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    once, each = (
        exported(net, (torch.randn(2, 64),), layers_once=layers_once, output=tmp_path / f"{layers_once}")
        for layers_once in (True, False)
    )
    assert len(notes(once)) == 1
    files = [tmp_path / name / "model.onnx.data" for name in ("True", "False")]
    assert files[0].read_bytes() == files[1].read_bytes()
    check_equal(once, each)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x)) * torch.tensor([1.0, 0.5] * 4)


class Net(nn.Module):
    """Seven layers, which `walk` calls."""

    def __init__(self, walk: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(7))
        self.walk = walk

    def forward(self, x: torch.Tensor) -> Any:
        return self.walk(self, x)


def plainly(net: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        x = layer(x)
    return x


def with_code_between(net: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in net.layers:
        x = layer(torch.relu(x)) * 0.9
    return x.sum(-1)


def every_result(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    found = [x * 1.0]
    for layer in net.layers:
        found.append(layer(found[-1]))
    return found


def by_number(net: Any, x: torch.Tensor) -> torch.Tensor:
    for number, layer in enumerate(net.layers):
        x = layer(x) * (number + 1)
    return x


def joined(net: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer(x) for layer in net.layers], -1)


def last_but_one(net: Any, x: torch.Tensor) -> torch.Tensor:
    return every_result(net, x)[-2]


def with_the_result_before_last(net: Any, x: torch.Tensor) -> torch.Tensor:
    before = torch.zeros_like(x)
    for layer in net.layers:
        x, before = layer(x) + before, x
    return x


def backwards(net: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in reversed(list(net.layers)):
        x = layer(x)
    return x


def twice(net: Any, x: torch.Tensor) -> torch.Tensor:
    return plainly(net, plainly(net, x))


def special_at_five(net: Any, x: torch.Tensor) -> torch.Tensor:
    for number, layer in enumerate(net.layers):
        x = layer(x) * (3.0 if number == 5 else 1.0)
    return x


def of_the_count(net: Any, x: torch.Tensor) -> torch.Tensor:
    return plainly(net, x) / len(net.layers)


@pytest.mark.parametrize("walk", [plainly, every_result])
def test_a_loop_over_layers(walk: Callable[[Any, torch.Tensor], Any]) -> None:
    net = Net(walk)
    layers = list(net.layers)
    once, each = (
        exported(net, {"x": torch.randn(2, 8)}, dynamic={"x": {0: "batch"}}, layers_once=layers_once)
        for layers_once in (True, False)
    )
    assert notes(once) == ["layers 3 to 6 of layers are layer 2 again: exported once"]
    check_equal(once, each)
    assert list(net.layers) == layers


@pytest.mark.parametrize(
    "walk",
    [with_code_between, by_number, joined, last_but_one, with_the_result_before_last, backwards, twice,
     special_at_five, of_the_count],
)  # fmt: skip
def test_what_is_no_plain_loop_is_traced_layer_by_layer(walk: Callable[[Any, torch.Tensor], Any]) -> None:
    net = Net(walk)
    made = exported(net, {"x": torch.randn(2, 8)}, dynamic={"x": {0: "batch"}})
    assert notes(made) == []
    x = np.ones((3, 8), np.float32)
    (found,) = results(made, {"x": x}).values()
    np.testing.assert_allclose(found, net(torch.from_numpy(x)).detach().numpy(), rtol=1e-3, atol=1e-5)


def test_a_list_that_is_the_whole_module() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    once, each = (exported(net, (torch.randn(2, 4),), layers_once=x) for x in (True, False))
    assert notes(once) == ["layers 3 to 5 of the module are layer 2 again: exported once"]
    check_equal(once, each)


def test_metadata_that_is_kept_names_the_layer() -> None:
    made = exported(Net(plainly), {"x": torch.randn(2, 8)}, keep_metadata=True)
    scopes = [node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for node in made.model.graph]
    for number in range(7):
        assert sum(f"'layers.{number}'" in scope for scope in scopes) > 3


@SLOW
@pytest.mark.parametrize(
    ("auto", "kind", "config", "check"),
    [("AutoModelForCausalLM", "llama", LLAMA | {"num_hidden_layers": 5}, "check_decoding"),
     ("AutoModelForSeq2SeqLM", "bart", TO_TEXT, "check_translating")],
)  # fmt: skip
def test_tokens_that_differ_are_decoded_again_with_every_layer_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auto: str, kind: str, config: dict[str, Any], check: str
) -> None:
    right, asked = getattr(decoding, check), []

    def wrong_at_first(*args: Any, **options: Any) -> Any:
        asked.append(args)
        if len(asked) == 1:
            raise MismatchError("A token differs.", "Try again.", code="EXPORT_DECODE")
        return right(*args, **options)

    monkeypatch.setattr(decoding, check, wrong_at_first)
    made = burnish.export(folder(tmp_path, auto, kind, config), decode_tokens=2)
    parts = list(made.parts.values()) if isinstance(made, Bundle) else [made]
    assert len(asked) == 2
    assert not any(map(notes, parts))


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [("h.1.k", "h.2.k", "h.3.k"), ("output_2", "output_3", "output_4"), ("a1b0", "a3b1", "a5b2"),
     ("h.1.k", "h.2.v", None), ("h.1", "h.1", None), ("a2", "a1", None), ("a", "b", None),
     ("x01", "x02", None), ("a1", "a1b2", None)],
)  # fmt: skip
def test_names_in_a_series(first: str, second: str, third: str | None) -> None:
    called = series(first, second)
    assert (called(2) if called else None) == third
