"""What goes into a step of a decoder, and what one step gives to the next."""

from collections.abc import Mapping

import numpy as np

from common.ways import Feeds


def fed(ids: np.ndarray, cache: Feeds, past: int) -> Feeds:
    """Inputs of a step: tokens `[batch, sequence]`, a mask of all that was seen, and the cache."""
    return {"input_ids": ids, "attention_mask": np.ones((len(ids), past + ids.shape[1]), np.int64), **cache}


def grown(found: Mapping[str, np.ndarray]) -> Feeds:
    """The cache that a step gives to the next."""
    kept = {name: array for name, array in found.items() if name.startswith("present.")}
    return {name.replace("present", "past_key_values", 1): array for name, array in kept.items()}
