"""Decoders of transformers, exported, lowered and run in place: the same 64 greedy tokens as in PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import burnish
from burnish.artifact import Artifact
from burnish.exporter.quiet import quiet
from burnish.manifest import Receipt
from burnish.model import to_bytes
from burnish.passes.recipes import CLEAN_UP

pytestmark = pytest.mark.torch

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
EQUAL_HEADS = {name: size for name, size in SMALL.items() if name != "num_key_value_heads"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 6},
    "qwen2": SMALL,
    "qwen3": SMALL | {"head_dim": 8},
    "gemma2": SMALL | {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": SMALL | {
        "head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": SMALL | {
        "hidden_size": 64, "partial_rotary_factor": 0.5, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt2": {
        "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gpt_neox": EQUAL_HEADS,
    "opt": EQUAL_HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}  # fmt: skip
WINDOWS = {"mistral": [6, 6], "gemma2": [6, None], "gemma3_text": [6, None]}
STEPS = 64


def made(kind: str, folder: Path) -> Any:
    """A model with random weights, in PyTorch; saved, too."""
    import transformers

    torch.manual_seed(0)
    with quiet():
        config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind])
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for weight in model.parameters():  # so that greedy tokens differ from step to step
            weight.data.mul_(3.0 if weight.dim() > 1 else 1.0)
        model.save_pretrained(folder)
    return model


def exported(folder: Path, opset: int) -> Artifact:
    artifact = burnish.export(folder, opset=opset, decode_tokens=2)
    assert isinstance(artifact, Artifact)
    return artifact


def optimized(artifact: Artifact, recipe: str | None = None) -> tuple[ir.Model, dict[str, Receipt]]:
    result, receipts = burnish.optimize(artifact, recipe=recipe, measured=False, return_receipts=True)
    return result.model, {receipt.step: receipt for receipt in receipts}


def torch_greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad(), quiet():
        found = model(ids, use_cache=True)
        tokens = []
        for _ in range(STEPS):
            tokens.append(int(found.logits[0, -1].argmax()))
            found = model(torch.tensor([tokens[-1:]]), past_key_values=found.past_key_values, use_cache=True)
    return tokens


def greedy_in_place(model: ir.Model, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy tokens of rows padded on the right; past and present of each layer are one buffer."""
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    width, rows = max(map(len, prompts)), len(prompts)
    buffers = {
        value.name: ort.OrtValue.ortvalue_from_numpy(
            np.full((rows, value.shape[1], width + STEPS + 3, value.shape[3]), 9, np.float32)
        )
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    ids = np.array([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
    mask = np.array([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    tokens: list[list[int]] = [[] for _ in prompts]
    for _ in range(STEPS):
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        ids = binding.get_outputs()[-1].numpy()[:, -1].argmax(-1)[:, None]
        for row, token in zip(tokens, ids[:, 0], strict=True):
            row.append(int(token))
        mask = np.concatenate([mask, np.ones((rows, 1), np.int64)], axis=1)
    return tokens


def assert_decodes(model: ir.Model, reference: Any) -> None:
    """Batch 1, and a ragged batch of 3."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, length).tolist() for length in (5, 9, 12)]
    wanted = [torch_greedy(reference, prompt) for prompt in prompts]
    assert len(set(map(tuple, wanted))) > 1
    assert [greedy_in_place(model, [prompt])[0] for prompt in prompts] == wanted
    assert greedy_in_place(model, prompts) == wanted


def lowers(kind: str, opset: int, folder: Path) -> None:
    reference = made(kind, folder)
    model, receipts = optimized(exported(folder, opset))
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == 2, receipts["lower-kv-cache"].notes
    assert receipts["lower-kv-cache"].notes == ()
    assert [node.attributes.get_int("local_window_size") for node in nodes] == WINDOWS.get(kind, [None] * 2)
    assert [node.attributes.get_float("softcap", 0.0) for node in nodes] == [
        50.0 if kind == "gemma2" else 0.0
    ] * 2
    ops = {node.op_type for node in model.graph}
    assert not ops & {"Softmax", "Attention", "MultiHeadAttention", "Trilu", "LessOrEqual"}
    for step in ("lower-kv-cache", "deployed"):
        error = receipts[step].max_rel_error
        assert error is not None
        assert error < 1e-5
        assert len(receipts[step].assignments) == 4
    assert_decodes(model, reference)


def test_lowered_by_default(tmp_path: Path) -> None:
    """Gemma has shared heads, rotary positions, a soft-cap, and a window in every other layer."""
    lowers("gemma2", 20, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "bloom"])
def test_every_architecture(kind: str, opset: int, tmp_path: Path) -> None:
    lowers(kind, opset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"])
def test_tensor_scatter(kind: str, tmp_path: Path) -> None:
    reference = made(kind, tmp_path)
    recipe = f"{CLEAN_UP},lower-kv-cache{{form=tensor-scatter}},{CLEAN_UP}"
    model, receipts = optimized(exported(tmp_path, 24), recipe)
    ops = [node.op_type for node in model.graph]
    assert (ops.count("TensorScatter"), ops.count("Attention")) == (4, 2)
    error = receipts["deployed"].max_rel_error
    assert error is not None
    assert error < 1e-5
    assert_decodes(model, reference)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_positions_as_a_bias_are_not_lowered(opset: int, tmp_path: Path) -> None:
    made("bloom", tmp_path)
    _, receipts = optimized(exported(tmp_path, opset))
    (note,) = receipts["lower-kv-cache"].notes
    assert "no attention over batch, heads, tokens and features was recognised" in note


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("opset", [20, 23])
def test_after_attention_was_fused(kind: str, opset: int, tmp_path: Path) -> None:
    reference = made(kind, tmp_path)
    recipe = f"{CLEAN_UP},fuse-gelu,fuse-attention,lower-kv-cache,{CLEAN_UP}"
    model, receipts = optimized(exported(tmp_path, opset), recipe)
    assert receipts["lower-kv-cache"].rewrites == 2, receipts["lower-kv-cache"].notes
    assert_decodes(model, reference)
