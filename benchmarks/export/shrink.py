"""Any transformers configuration made small, by rules on the names of its fields.

No table of architectures: a field called `hidden_size` is a width wherever it stands. What the rules cannot
know (a width that must equal three others) is a line of `overrides.OVERRIDES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard

WIDTH: Final = 32
HEADS: Final = 4
HEAD: Final = WIDTH // HEADS
LAYERS: Final = 2
VOCAB: Final = 160
IMAGE: Final = 32
PATCH: Final = 8
POSITIONS: Final = 128

Rule = Callable[[Any], Any]


def _whole(size: int) -> Rule:
    """`size` for a whole number, that many times in a list."""

    def rule(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(rule(each) for each in value)
        return size if _is_whole(value) else value

    return rule


def _at_most(size: int) -> Rule:
    """No more than `size`, each of a list."""

    def rule(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(rule(each) for each in value)
        return min(size, value) if _is_whole(value) and value > 0 else value

    return rule


def _divided(by: int, least: int) -> Rule:
    """A list of widths, in the same proportion; a single one becomes `WIDTH`."""

    def rule(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(max(least, each // by // 8 * 8) if _is_whole(each) else each for each in value)
        return WIDTH if _is_whole(value) else value

    return rule


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


RULES: Final[tuple[tuple[str, Rule], ...]] = (
    ((r"num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder|text|vision)_(hidden_)?layers|"
     r"num_(conv|transformer)_layers|decoder_num_layers|encoder_num_layers|num_hidden_groups|"
     r"num_decoder_blocks|num_blocks|depth|num_block_layers|cross_layers|[lxr]_layers|num_(prompt_)?adapter_layers|"
     r"vision_layers|text_layers|num_reader_layers|attention_layers|num_hidden_layers_.*"), _at_most(LAYERS)),
    (r"depths|stage_num_blocks|layer_depths|num_conv_blocks|num_attention_blocks", _at_most(1)),
    ((r"num_attention_heads|n_heads?|num_heads|(encoder|decoder)_attention_heads|attention_heads|"
     r"(encoder|decoder)_num_attention_heads|num_attn_heads|linear_num_(key|value)_heads|decoder_num_heads"),
     _at_most(HEADS)),
    (r"num_key_value_heads|n_kv_heads|num_kv_heads|multi_query_group_num|num_attention_groups", _at_most(2)),
    ((r"head_dim|d_kv|d_head|attention_head_(dim|size)|kv_channels|linear_(key|value)_head_dim|"
     r"qk_nope_head_dim|qk_rope_head_dim|v_head_dim|global_head_dim|"
     r"index_head_dim|mamba_d_head|mamba_head_dim"), _whole(HEAD)),
    (r"qk_head_dim", _whole(2 * HEAD)),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank|.*_lora_rank|lora_rank", _whole(16)),
    ((r"hidden_size|d_model|n_embd|embed_dim|model_dim|dim|hidden_dim|emb_dim|embedding_size|embedding_dim|"
     r"word_embed_proj_dim|d_embed|(encoder|decoder|text|vision|language)_(hidden_size|embed_dim|width|dim)|"
     r"projection_dim|(text|image|audio)_projection_dim|out_hidden_size|output_dim|pooler_output_size|"
     r"output_hidden_size|encoder_hidden_dim|classifier_proj_size|proj_size|proj_dim|shared_embed_dim|attention_dim|"
     r"neck_hidden_size|text_embed_dim|lru_width|input_hidden_size|vision_dim|d_latents|n_embed|"
     r"mm_hidden_size|prediction_head_hidden_size|projector_hidden_size"), _divided(16, 16)),
    ((r"hidden_sizes|embed_dims|encoder_hidden_sizes|neck_hidden_sizes|embedding_hidden_size|stage_.*channels|"
     r"encoder_in_channels|decoder_in_channels|out_channels_list|stem_channels"), _divided(8, 8)),
    ((r"intermediate_size|d_ff|ffn_dim|n_inner|(encoder|decoder)_(ffn|intermediate)_(dim|size)|ffn_hidden_size|"
     r"moe_intermediate_size|intermediate_dim|(text|vision)_intermediate_size|mlp_dim|d_inner|hidden_dim_ff|"
     r"shared_expert_intermediate_size|intermediate_size_mlp|dim_feedforward|dense_intermediate_size|"
     r"filter_size|decoder_hidden_size_ff|moe_shared_expert_intermediate_size"), _whole(2 * WIDTH)),
    (r"vocab_size|.*_vocab_size|src_vocab_size|tgt_vocab_size|entity_vocab_size", _at_most(VOCAB)),
    ((r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_seq_length|seq_length|"
     r"max_source_positions|max_target_positions|max_2d_position_embeddings|block_size|"
     r"max_encoder_position_embeddings|max_decoder_position_embeddings|"
     r"original_max_position_embeddings|model_max_length"), _at_most(POSITIONS)),
    (r"image_size|img_size|pretrain_image_size", _whole(IMAGE)),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts", _at_most(4)),
    (r"num_experts_per_tok|moe_topk|moe_k|num_experts_per_token|num_selected_experts|top_k_experts|moe_top_k",
     _at_most(2)),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups", _at_most(1)),
    (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|n_dense_layers", _at_most(1)),
    (r"num_kv_shared_layers", _whole(0)),
    (r"mamba_n_heads|mamba_num_heads|mamba_heads", _whole(8)),
    (r"state_size|mamba_d_state|ssm_state_size|d_state", _whole(8)),
    (r"time_step_rank|mamba_dt_rank", _whole(8)),
    (r"num_queries|num_object_queries|num_latents|query_length|num_query_tokens", _at_most(8)),
    (r"conv_dim", _whole(16)),
    (r"num_conv_pos_embeddings", _at_most(16)),
    (r"num_conv_pos_embedding_groups", _at_most(4)),
    (r"num_codevector_.*|codevector_dim", _at_most(16)),
    (r"fusion_hidden_size|reassemble_hidden_size|fpn_hidden_size|decoder_hidden_size|channels|auxiliary_channels",
     _divided(16, 16)),
    (r"codebook_size|num_embeddings", _at_most(64)),
    (r"xvector_output_dim", _whole(16)),
    (r"sliding_window|attention_window|local_attention|attention_chunk_size|window", _at_most(16)),
    (r"mamba_chunk_size|chunk_size", _at_most(16)),
    (r"num_filters|base_channels", _at_most(8)),
)  # fmt: skip
"""(names of fields, what becomes of their value); the first that matches."""

_RULES: Final = tuple((re.compile(rf"(?:{names})\Z"), rule) for names, rule in RULES)
_TOKEN: Final = re.compile(r".*_token_(id|index)\Z|.*_(bos|eos|pad)_id\Z")
_LAYERWISE: Final = re.compile(
    r"layer_types|mlp_layer_types|.*_pattern_list|layers_block_type|ffn_layer_types"
)
_COUNTS: Final = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "decoder_layers", "depth")
_INDICES: Final = re.compile(r".*(_indices|_indexes|_layers_idx|layer_ids?)\Z")


def small(config_class: Any, given: Mapping[str, Any] = {}, seed: Any = None) -> Any:
    """A configuration of the class, small, with `given` fields as they are (dicts: of sub-configurations).

    Args:
        config_class: a `PretrainedConfig` class.
        given: values that the rules must not choose.
        seed: the configuration to begin with; default: the class's own default.

    Raises:
        ValueError, TypeError, KeyError: the class refuses the small values.
    """
    default = config_class() if seed is None else seed
    fields: dict[str, Any] = {}
    for name, value in _fields(default).items():
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            wanted = _mapping(given.get(name))
            fields[name] = dict(wanted) if "model_type" in wanted else small(type(value), wanted, value)
        elif name not in given:
            changed = _small_value(name, value)
            if changed != value:
                fields[name] = changed
    fields |= {name: value for name, value in given.items() if name not in fields}
    _fit(default, fields, given)
    return config_class(**fields)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _fields(config: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def _small_value(name: str, value: Any) -> Any:
    for pattern, rule in _RULES:
        if pattern.match(name):
            return rule(value)
    return value


def _fit(default: Any, fields: dict[str, Any], given: Mapping[str, Any]) -> None:
    """What depends on what was made small: heads, layer lists, token ids, patches."""
    merged = _fields(default) | fields
    layers = next((merged[name] for name in _COUNTS if _is_whole(merged.get(name))), LAYERS)
    for name, value in merged.items():
        if _LAYERWISE.fullmatch(name) and isinstance(value, list | tuple) and len(value) > layers:
            fields[name] = _both_kinds(list(value), layers)
    vocab = merged.get("vocab_size")
    if _is_whole(vocab):
        _clamp_tokens(merged, fields, vocab)
    size, patch = merged.get("image_size"), merged.get("patch_size")
    if _is_whole(patch) and patch > PATCH and size is not None and "patch_size" not in given:
        fields["patch_size"] = PATCH
    padding = merged.get("pad_token_id")
    if _is_whole(padding) and _is_whole(vocab) and padding >= vocab:
        fields["pad_token_id"] = 0


def _both_kinds(kinds: list[Any], layers: int) -> list[Any]:
    """As many as there are layers, every kind present where there is room; the last is kept the last kind."""
    seen = list(dict.fromkeys(kinds))[:layers]
    return (kinds[: layers - len(seen)] if len(seen) < layers else []) + seen


def _clamp_tokens(merged: Mapping[str, Any], fields: dict[str, Any], vocab: int) -> None:
    """Ids of special tokens lie in the vocabulary; no two that differed become one."""
    names = [
        name for name in merged if _TOKEN.match(name) and _is_whole(merged[name]) and merged[name] >= vocab
    ]
    by_value = {value: vocab - 1 - at for at, value in enumerate(sorted({merged[n] for n in names}))}
    for name in names:
        fields[name] = by_value[merged[name]]
    for name, value in merged.items():
        if _TOKEN.match(name) and isinstance(value, list | tuple):
            fields[name] = [each if each < vocab else vocab - 1 for each in value]
