"""Tiny transformers models with random weights, as folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
}  # fmt: skip
TEXT_TO_TEXT = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("AutoModelForCausalLM", "llama", SMALL),
    "tied": ("AutoModelForCausalLM", "qwen3", SMALL | {"head_dim": 8, "tie_word_embeddings": True}),
    "window": ("AutoModelForCausalLM", "gemma2", SMALL | {"head_dim": 8, "sliding_window": 6}),
    "gpt2": (
        "AutoModelForCausalLM", "gpt2",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "bos_token_id": 0,
         "eos_token_id": 0},
    ),
    "mamba": (
        "AutoModelForCausalLM", "mamba",
        {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    ),
    "bart": ("AutoModelForSeq2SeqLM", "bart", TEXT_TO_TEXT | {"max_position_embeddings": 48}),
    "t5": (
        "AutoModelForSeq2SeqLM", "t5",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "decoder_start_token_id": 0},
    ),
    "whisper": (
        "AutoModelForSpeechSeq2Seq", "whisper",
        TEXT_TO_TEXT | {
            "max_source_positions": 20, "max_target_positions": 48, "num_mel_bins": 8, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    "clip": (
        "AutoModelForZeroShotImageClassification", "clip",
        {"projection_dim": 16, "text_config": SMALL | {"projection_dim": 16},
         "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                           "num_attention_heads": 4, "image_size": 16, "patch_size": 8}},
    ),
    "vit": (
        "AutoModelForImageClassification", "vit",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
         "image_size": 16, "patch_size": 8},
    ),
    "wav2vec2": (
        "AutoModelForCTC", "wav2vec2",
        {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 4, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    ),
    "longformer": (
        "AutoModelForMaskedLM", "longformer",
        {k: v for k, v in SMALL.items() if k != "num_key_value_heads"} | {"attention_window": [8, 8]},
    ),
    "bert": ("AutoModel", "bert", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "bert-masked": (
        "AutoModelForMaskedLM", "bert", {k: v for k, v in SMALL.items() if k != "num_key_value_heads"},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by its name in `CONFIGS`."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            import torch
            import transformers

            from burnish.exporter.quiet import quiet

            auto, kind, config = CONFIGS[name]
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            with quiet():
                model = getattr(transformers, auto).from_config(
                    transformers.AutoConfig.for_model(kind, **config)
                )
                for weight in model.parameters():  # so that greedy tokens differ from step to step
                    weight.data.mul_(3.0 if weight.dim() > 1 else 1.0)
                model.save_pretrained(made[name])
        return made[name]

    return folder
