"""Why burnish is not right on a case: what stands in the way, and where upstream knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXPLAINED: Final[Mapping[str, str]] = {
    "text-generation/rwkv": (
        "Its state is a list of tensors (`state`) that starts at -1e38, not at zeros: no cache of "
        "transformers' kind, and no start that a graph's user would guess. Refused by name "
        "(EXPORT_CACHE)."
    ),
    "text2text-generation/led": (
        "Pads to a multiple of the window, and cuts the padding off again only where there is any "
        "(`hidden[:, :-padding]` is empty for 0): one trace holds one of the two. Refused by the "
        "comparison."
    ),
    "text2text-generation/prophetnet": (
        "Its decoder takes another path over an empty cache than over a filled one "
        "(`past_key_values_length != 0`, modeling_prophetnet.py:1163), so one graph is wrong for the other. "
        "Refused by the comparison."
    ),
    "fill-mask/funnel": (
        "`list(range(seq_len))` in get_position_embeds makes Python numbers of a size, and with them "
        "constants (huggingface/optimum#1231 met the same)."
    ),
    "feature-extraction/vilt": (
        "Every picture's patches are chosen and resized by the values of its mask (visual_embed, "
        "aten._local_scalar_dense): shapes that depend on data, in a Python loop over the batch."
    ),
}
"""One or two sentences by case; every key is a case of the table or of the zoo."""
