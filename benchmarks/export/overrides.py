"""What the rules of `shrink` cannot know about a configuration: widths that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_SWIN: Final = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
_RESNET: Final = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_RT_RESNET: Final = _RESNET | {"model_type": "rt_detr_resnet", "out_features": ["stage2", "stage3", "stage4"]}
_HGNET: Final = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 32, 32],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 32, 32, 32],
    "hidden_sizes": [16, 32, 32, 32],
    "depths": [1, 1, 1, 1],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "out_features": ["stage2", "stage3", "stage4"],
}
_EFFICIENTNET: Final = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128}

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
    "clap": {
        "audio_config": {
            "hidden_size": 64,
            "patch_embeds_hidden_size": 8,
            "num_attention_heads": [1, 2, 4, 4],
        },
    },
    "esm": {"vocab_size": 40, "pad_token_id": 1, "mask_token_id": 39, "token_dropout": True},
    "lilt": {"hidden_size": 48},
    "efficientnet": _EFFICIENTNET,
    "align": {"vision_config": _EFFICIENTNET},
    "levit": {"image_size": 64, "patch_size": 16},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "mask2former": {
        "backbone_config": {
            "model_type": "swin",
            "image_size": 32,
            "window_size": 4,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 4],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    },
    "conditional_detr": {"backbone_config": _RESNET | {"out_features": ["stage4"]}},
    "rt_detr": {
        "backbone_config": _RT_RESNET,
        "encoder_in_channels": [16, 32, 32],
        "decoder_in_channels": [32, 32, 32],
    },
    "d_fine": {"backbone_config": _HGNET, "encoder_in_channels": [32, 32, 32]},
    "bros": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 8},
    "dpt": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [16, 16, 16, 16],
    },
    "nemotron": {"num_key_value_heads": 2},
}
"""Fields by model type."""
