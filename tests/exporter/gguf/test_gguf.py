"""GGUF files against the modules they were written from, and against transformers' own loader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.errors import BurnishError
from burnish.exporter.gguf import GgufModel, load_gguf

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

MakeGguf = Callable[..., tuple[Path, Any]]


def logits(module: Any) -> Any:
    ids = torch.arange(24).reshape(2, 12) * 7 % 250
    with torch.no_grad():
        return module(input_ids=ids).logits


def check_same(loaded: GgufModel, module: Any) -> None:
    """Bit-equal weights and logits."""
    found, wanted = loaded.module.state_dict(), module.state_dict()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    assert torch.equal(logits(loaded.module), logits(module))
    assert not loaded.module.training


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
def test_every_architecture_and_type(make_gguf: MakeGguf, arch: str, kind: str) -> None:
    path, module = make_gguf(arch, kind)
    loaded = load_gguf(path)
    assert loaded.description == f"GGUF file {path.name!r}, {type(module).__name__}"
    assert f"{kind} (" in loaded.notes[0]
    check_same(loaded, module)


@pytest.mark.parametrize("kind", ["Q4_K", "BF16"])
def test_other_types(make_gguf: MakeGguf, kind: str) -> None:
    path, module = make_gguf("llama", kind, config={"hidden_size": 256, "intermediate_size": 256})
    check_same(load_gguf(path), module)


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_tied_head(make_gguf: MakeGguf, arch: str) -> None:
    path, module = make_gguf(arch, "Q8_0", config={"tie_word_embeddings": True})
    loaded = load_gguf(path)
    check_same(loaded, module)
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight
    assert "lm_head.weight" not in loaded.stored


def test_biases(make_gguf: MakeGguf) -> None:
    path, module = make_gguf("llama", config={"attention_bias": True, "mlp_bias": True})
    check_same(load_gguf(path), module)


def test_llama_with_a_window_is_a_mistral(make_gguf: MakeGguf) -> None:
    path, module = make_gguf("llama", config={"sliding_window": 4}, model_type="mistral")
    loaded = load_gguf(path)
    assert loaded.config.sliding_window == 4
    check_same(loaded, module)


def test_half_precision(make_gguf: MakeGguf) -> None:
    path, module = make_gguf("llama", "Q8_0")
    loaded = load_gguf(path, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.module.parameters()} == {torch.bfloat16}
    assert json.loads(loaded.attachments["config.json"])["dtype"] == "bfloat16"
    weight = module.state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(loaded.module.model.layers[1].mlp.up_proj.weight, weight.bfloat16())


def test_stored_blocks_are_those_of_the_file(make_gguf: MakeGguf) -> None:
    gguf = pytest.importorskip("gguf")
    path, module = make_gguf("llama", "Q4_0")
    loaded = load_gguf(path)
    for name, stored in loaded.stored.items():
        values = gguf.dequantize(stored.blocks(), gguf.GGMLQuantizationType[stored.type_name])
        weight = module.state_dict()[name].numpy()
        np.testing.assert_array_equal(values.reshape(weight.shape), weight)
    assert loaded.stored["model.layers.0.self_attn.q_proj.weight"].heads == 4
    assert loaded.stored["model.layers.0.self_attn.k_proj.weight"].heads == 2


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def llama3_divisors(module: Any, theta: float, size: int) -> np.ndarray:
    plain = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    return (plain / module.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)


def test_rope_of_llama_3(make_gguf: MakeGguf) -> None:
    config = {"hidden_size": 256, "rope_parameters": LLAMA3, "max_position_embeddings": 65536}
    _, module = make_gguf("llama", config=config)
    divisors = llama3_divisors(module, 500000.0, 64)
    assert len({*divisors.tolist()}) > 4
    path, module = make_gguf("llama", config=config, tensors={"rope_freqs.weight": divisors})
    loaded = load_gguf(path)
    assert loaded.config.rope_parameters["factor"] == pytest.approx(8.0)
    assert torch.equal(loaded.module.model.rotary_emb.inv_freq, module.model.rotary_emb.inv_freq)
    check_same(loaded, module)


def test_rope_frequencies_of_another_kind_are_refused(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama", tensors={"rope_freqs.weight": np.linspace(1, 5, 8, dtype=np.float32)})
    assert refused(path)[0] == "GGUF_METADATA"


@pytest.mark.parametrize(
    ("rope", "metadata"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {}),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
         {"rope.scaling.original_context_length": 32}),
    ],
)  # fmt: skip
def test_rope_scaling(make_gguf: MakeGguf, rope: dict[str, Any], metadata: dict[str, Any]) -> None:
    metadata = metadata | {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    config = {"rope_parameters": rope | {"rope_theta": 10000.0}}
    path, module = make_gguf("qwen2", config=config, metadata=metadata)
    check_same(load_gguf(path), module)


def test_long_rope_of_phi3(make_gguf: MakeGguf) -> None:
    short, long = ([round(1 + step * i, 4) for i in range(4)] for step in (0.05, 1.3))
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long,
        "partial_rotary_factor": 0.5, "original_max_position_embeddings": 8,
    }  # fmt: skip
    config = {"rope_parameters": rope, "original_max_position_embeddings": 8, "sliding_window": 5}
    tensors = {
        "rope_factors_short.weight": np.array(short, np.float32),
        "rope_factors_long.weight": np.array(long, np.float32),
    }
    metadata = {"rope.scaling.original_context_length": 8}
    path, module = make_gguf("phi3", config=config, metadata=metadata, tensors=tensors)
    loaded = load_gguf(path)
    assert loaded.config.rope_parameters["long_factor"] == long
    check_same(loaded, module)  # 12 tokens are more than the original 8


def test_against_the_loader_of_transformers(make_gguf: MakeGguf) -> None:
    own = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    path, _ = make_gguf("llama", "Q4_1", metadata={"general.name": "small"})
    loaded = load_gguf(path)
    theirs = own.load_gguf_checkpoint(
        str(path), return_tensors=True, model_to_load=loaded.module, torch_dtype=torch.float32
    )["tensors"]
    assert theirs.keys() == loaded.module.state_dict().keys()
    for name, value in theirs.items():
        assert torch.equal(value, loaded.module.state_dict()[name]), name


def test_attached_settings_load_again(make_gguf: MakeGguf, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path, module = make_gguf("qwen3", config={"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    loaded = load_gguf(path)
    for name, data in loaded.attachments.items():
        (tmp_path / name).write_bytes(data)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(module.config)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.rope_parameters["rope_theta"] == 5e5
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == [2, 0]
    assert (generation.bos_token_id, generation.pad_token_id) == (1, 0)


def refused(path: Path) -> tuple[str, str]:
    """The code and the text of the error: two lines, and nothing but a typed one."""
    with pytest.raises(BurnishError) as caught:
        load_gguf(path)
    assert len(str(caught.value).splitlines()) == 2
    return caught.value.code, str(caught.value)


def test_unknown_architecture_lists_the_known(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama", metadata={"general.architecture": "whale"})
    code, text = refused(path)
    assert code == "GGUF_ARCH"
    assert "'whale'" in text
    assert "Known are: llama, mistral, qwen2, qwen3, gemma, phi3." in text


@pytest.mark.parametrize(
    "key", ["block_count", "attention.head_count", "feed_forward_length", "context_length",
            "embedding_length", "attention.layer_norm_rms_epsilon"],
)  # fmt: skip
def test_missing_metadata_is_named(make_gguf: MakeGguf, key: str) -> None:
    path, _ = make_gguf("llama", metadata={key: None})
    code, text = refused(path)
    assert code == "GGUF_METADATA"
    assert f"'llama.{key}'" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count", 0), ("attention.head_count", 7),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("rope.freq_base", -1.0), ("rope.dimension_count", 4), ("rope.scaling.type", "spiral"),
        ("expert_count", 8), ("attention.value_length", 8), ("block_count", "two"),
        ("attention.causal", False),
        ("attention.head_count", [4, 2]), ("logit_scale", 0.5), ("context_length", 2**32 - 1),
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used(make_gguf: MakeGguf, key: str, value: object) -> None:
    path, _ = make_gguf("llama", metadata={key: value, "attention.key_length": None})
    code, text = refused(path)
    assert code == "GGUF_METADATA"
    assert f"llama.{key}" in text


def test_one_of_several_pieces(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama", metadata={"split.count": 3})
    assert refused(path)[0] == "GGUF_SPLIT"


def test_missing_tensors_are_named(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama", drop=("blk.1.attn_v.weight", "blk.0.ffn_up.weight"))
    code, text = refused(path)
    assert code == "GGUF_TENSORS"
    assert "lacks 2 of 21 tensors: blk.0.ffn_up.weight, blk.1.attn_v.weight." in text


def test_tensors_that_the_module_does_not_take(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama", tensors={"blk.0.attn_sinks.weight": np.ones(4, np.float32)})
    code, text = refused(path)
    assert code == "GGUF_TENSORS"
    assert "blk.0.attn_sinks.weight" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 2_000_000_000), ("block_count", 1), ("embedding_length", 128),
     ("feed_forward_length", 2**30), ("attention.head_count_kv", 4)],
)  # fmt: skip
def test_metadata_that_the_tensors_contradict(make_gguf: MakeGguf, key: str, value: int) -> None:
    path, _ = make_gguf("llama", metadata={key: value})
    assert refused(path)[0] == "GGUF_TENSORS"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.gguf")[0] == "EXPORT_SOURCE"
    assert refused(tmp_path)[0] == "EXPORT_SOURCE"
