"""A decoder that updates its cache in place: where, and in what, it promises to equal the neutral one.

A neutral decoder keeps the columns of a batch aligned: padding stays a hole in the cache, and is masked. A
lowered one keeps every row without gaps: a row of n tokens has them at places 0 to n - 1 of its buffer, and
its next token goes to place n, whatever the other rows do. So it takes prompts with padding on the right, as
many tokens at once as it likes while there is no past, and then one token for each row (or many for one row).
Its caches are buffers with room for more than there is: `past + new + room` long. What it computes for a row
is what it computes for that row alone; what stands in the places of padding, and in the room, is not defined.

A model says that it is one in its metadata, so that whoever runs or compares it knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Self, final

import numpy as np

from burnish.dim_sums import parts_of
from burnish.manifest import DimRange, Manifest, TensorSpec

KV_CACHE: Final = "burnish.kv_cache"
"""Key in a model's metadata: the operator that updates the cache, `group-query` or `tensor-scatter`."""
WINDOW: Final = "burnish.attention_window"
"""Key in a model's metadata: how many tokens the narrowest layer sees, where one does not see all."""

TOKENS: Final = 2
"""The axis of a cache [batch, kv_heads, tokens, head_size] that grows."""

_ROOM: Final = 3  # more places than tokens, in a comparison
_RUBBISH: Final = 7.0  # what is in places that are not filled yet

Arrays = Mapping[str, np.ndarray]
Sizes = Mapping[str, int]
Case = tuple[dict[str, int], Arrays]
"""Sizes of the dynamic dims, and feeds."""


@final
@dataclasses.dataclass(frozen=True)
class InPlace:
    """The promise of a lowered decoder; names of its inputs, outputs and dims."""

    mask: str
    past: tuple[str, ...]
    outputs: Mapping[str, tuple[int | str | None, ...]]
    """The dims of every output that has a known rank."""
    past_dim: str
    """How many tokens are past."""
    new_dim: str
    """How many are new; a number, as text, where that is fixed."""
    buffer_dim: str
    """How many places a cache has."""
    batch_dim: int | str | None
    new: tuple[str, int]
    """An input and the axis of it that is as long as the new tokens."""
    window: int | None
    """How many tokens the narrowest layer sees; None: all."""
    shortest_past: int

    @classmethod
    def of(cls, metadata: Mapping[str, str], interface: Manifest) -> Self | None:
        """The promise of a model; None: it makes none.

        Args:
            metadata: of the model.
            interface: its inputs and outputs, and the ranges of its dims.
        """
        roles = _roles(interface) if KV_CACHE in metadata else None
        if roles is None:
            return None
        mask, past, new, buffer = roles
        found = _axis(interface, new)
        if found is None:
            return None
        window = metadata.get(WINDOW, "")
        return cls(
            mask=mask.name,
            past=tuple(each.name for each in interface.inputs if _cache_dim(each) == buffer),
            outputs={each.name: each.shape for each in interface.outputs if each.shape is not None},
            past_dim=past,
            new_dim=new,
            buffer_dim=buffer,
            batch_dim=(mask.shape or (None,))[0],
            new=found,
            window=int(window) if window.isdecimal() else None,
            shortest_past=interface.dims.get(past, DimRange(0)).min,
        )

    def cases(self, cases: Iterable[Case], make: Callable[[Sizes], Arrays]) -> list[Case]:
        """The cases that it takes, or close ones: not many tokens for many rows that have a past.

        Args:
            cases: sizes of the dims, and feeds.
            make: makes feeds at other sizes.
        """
        found: list[Case] = []
        for sizes, feeds in cases:
            near = self._nearest(sizes)
            fitting = self.feeds(feeds if near == sizes else make(near))
            if fitting is not None and near not in [known for known, _ in found]:
                found.append((near, fitting))
        return found

    def beyond(self, cases: Sequence[Case]) -> dict[str, int] | None:
        """Sizes at which a token is outside of the window; None: one is in some of the cases, or always."""
        longest = max((feeds[self.mask].shape[1] for _, feeds in cases), default=0)
        if self.window is None or longest > self.window or not cases:
            return None
        return self._nearest(dict.fromkeys(cases[0][0], 1) | {self.past_dim: self.window + 1})

    def _nearest(self, sizes: Sizes) -> dict[str, int]:
        found, rows, new = dict(sizes), _size(self.batch_dim, sizes), _size(self.new_dim, sizes)
        if rows > 1 and new > 1 and sizes.get(self.past_dim, 0) > 0:
            if self.shortest_past and self.new_dim in found:
                found[self.new_dim] = 1
            else:
                found[self.past_dim] = 0
        return found

    def feeds(self, feeds: Arrays) -> dict[str, np.ndarray] | None:
        """The feeds with a mask that it takes; None: it takes no such feeds.

        Prompts keep their padding where that is on the right. One token for each row comes after pasts of
        different lengths, where no layer has a narrower window (the neutral graph counts holes as places
        of a window). Other masks become full.
        """
        mask, past = feeds[self.mask], self._past_of(feeds)
        rows, new = mask.shape[0], mask.shape[1] - past
        if past and rows > 1 and new > 1:
            return None
        right = np.sort(mask, axis=1)[:, ::-1]
        if past:
            holes = rows > 1 and (self.window is None or mask.shape[1] <= self.window)
            lengths = past - np.arange(rows) % past if holes else np.full(rows, past)
            right = np.arange(mask.shape[1]) < lengths[:, None]
            right[:, past:] = True
        return dict(feeds) | {self.mask: np.ascontiguousarray(right).astype(mask.dtype)}

    def fit(self, metadata: Mapping[str, str], feeds: Arrays) -> dict[str, np.ndarray]:
        """The same feeds with caches as a model of that metadata takes them.

        Where it is lowered, in buffers with room for more than all tokens; else as long as the past.
        """
        total, past = feeds[self.mask].shape[1], self._past_of(feeds)
        if KV_CACHE not in metadata:
            return dict(feeds) | {name: feeds[name][:, :, :past] for name in self.past}
        short = [name for name in self.past if feeds[name].shape[TOKENS] < total]
        return dict(feeds) | {name: _roomy(feeds[name], total + _ROOM) for name in short}

    def fitting(
        self, metadata: Mapping[str, str], samples: Iterable[Arrays]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The samples that a model of that metadata takes, with caches and masks as it takes them."""
        taken = (self.feeds(sample) for sample in samples)
        return (self.fit(metadata, feeds) for feeds in taken if feeds is not None)

    def promised(self, feeds: Arrays, outputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs, caches cut to the tokens there are, with 0 at the places of padding.

        A new token after pasts of different lengths is at different places in caches, so left out there.
        """
        mask, past = feeds[self.mask] != 0, self._past_of(feeds)
        kept = mask.copy()
        kept[:, past:] &= mask[:, :past].all(axis=1, keepdims=True)
        masks = {self.buffer_dim: kept, self.new_dim: mask[:, past:]}
        return {name: self._promised(name, array, masks) for name, array in outputs.items()}

    def _promised(self, name: str, array: np.ndarray, masks: Arrays) -> np.ndarray:
        dims = self.outputs.get(name, ())
        if array.ndim != len(dims) or array.ndim < 2:
            return array
        for axis, dim in enumerate(dims[1:], 1):
            mask = masks.get(str(dim))
            if mask is not None and array.shape[axis] >= mask.shape[1]:
                array = array[(slice(None),) * axis + (slice(mask.shape[1]),)]
                shape = [mask.shape[0], *[1] * (axis - 1), mask.shape[1], *[1] * (array.ndim - axis - 1)]
                array = np.where(mask.reshape(shape), array, np.zeros((), array.dtype))
        return array

    def _past_of(self, feeds: Arrays) -> int:
        name, axis = self.new
        return int(feeds[self.mask].shape[1] - feeds[name].shape[axis])


def _roles(interface: Manifest) -> tuple[TensorSpec, str, str, str] | None:
    """The mask, and the dims of past tokens, of new ones, and of buffers with room for more than both."""
    buffers = {dim for dim in map(_cache_dim, interface.inputs) if dim}
    for spec in interface.inputs:
        dim = str(spec.shape[-1]) if spec.shape is not None and len(spec.shape) == 2 else ""
        for buffer in buffers:
            if len(parts_of(dim)) == 2 and buffer.startswith(f"{dim} + "):
                past, new = parts_of(dim)
                return spec, past, new, buffer
    return None


def _cache_dim(spec: TensorSpec) -> str | None:
    """How long a cache is, where that is a sum."""
    shape = spec.shape or ()
    dim = shape[TOKENS] if len(shape) == 4 else None
    return dim if isinstance(dim, str) and parts_of(dim) else None


def _axis(interface: Manifest, dim: str) -> tuple[str, int] | None:
    for spec in interface.inputs:
        for axis, size in enumerate(spec.shape or ()):
            if str(size) == dim:
                return spec.name, axis
    return None


def _size(dim: int | str | None, sizes: Sizes) -> int:
    """The size of a dim; 1 where nothing says it."""
    if dim is None or isinstance(dim, int):
        return 1 if dim is None else dim
    return int(dim) if dim.isdecimal() else sizes.get(dim, 1)


def _roomy(past: np.ndarray, total: int) -> np.ndarray:
    rows, heads, length, size = past.shape
    room = np.full((rows, heads, total - length, size), _RUBBISH, past.dtype)
    return np.concatenate([past, room], axis=TOKENS)
