"""What the rules of `shrink` cannot know about a configuration: widths that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

OVERRIDES: Final[Mapping[str, Mapping[str, Any]]] = {
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "bit": {"num_groups": 8},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "cvt": {"embed_dim": (16, 32, 48), "num_heads": (1, 2, 3), "depth": (1, 2, 3)},
    "wav2vec2-bert": {"vocab_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "expand": 2},
    "nemotron": {"num_key_value_heads": 2},
}
"""Fields by model type."""
