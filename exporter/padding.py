"""What a decoder computes at padding counts for nothing: nobody reads it, and masks hide it ever after.

A padding token attends to nothing where all before it is padding, or beyond its sliding window. torch then
gives zeros, a decomposed softmax the mean of the values: both are right, so neither is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from burnish.dim_sums import parts_of
from burnish.manifest import Manifest, TensorSpec

Arrays = Mapping[str, np.ndarray]


def padding_cleared(interface: Manifest, feeds: Arrays) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """What sets outputs to zero at the places that a decoder's mask calls padding.

    Only masks over a past and the current tokens (`past_sequence + sequence`) do that, and only outputs with
    an axis of that length, or of the current tokens alone, are touched.
    """
    masks = [spec for spec in interface.inputs if spec.meaning == "mask" and _sum(spec)]

    def cleared(outputs: Arrays) -> dict[str, np.ndarray]:
        found = dict(outputs)
        for spec in interface.outputs:
            for mask in masks:
                if spec.name in found:
                    found[spec.name] = _clear(spec, found[spec.name], mask, feeds[mask.name])
        return found

    return cleared


def _sum(spec: TensorSpec) -> tuple[str, ...]:
    last = spec.shape[-1] if spec.shape and len(spec.shape) == 2 else None
    return parts_of(last) if isinstance(last, str) else ()


def _clear(spec: TensorSpec, array: np.ndarray, mask: TensorSpec, given: np.ndarray) -> np.ndarray:
    """`given`: the mask, `[batch, past + sequence]`."""
    parts = _sum(mask)
    for axis, dim in enumerate(spec.shape or ()):
        if axis == 0 or not isinstance(dim, str) or array.ndim <= axis:
            continue
        whole = sorted(parts_of(dim)) == sorted(parts)
        if (whole or dim == parts[-1]) and array.shape[0] == given.shape[0]:
            kept = given[:, given.shape[1] - array.shape[axis] :].astype(bool)
            shape = [given.shape[0]] + [1] * (array.ndim - 1)
            shape[axis] = array.shape[axis]
            return np.where(kept.reshape(shape), array, np.zeros((), array.dtype))
    return array
