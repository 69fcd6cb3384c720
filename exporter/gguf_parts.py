"""The blocks of GGUF's simple quantised types as 4-bit parts that onnxruntime's kernels hold exactly.

    Q4_0   d·(q - 8)        one part: nibbles q, scale d, zero point 8
    Q4_1   d·q + m          one part: nibbles q, scale d, zero point 8; and m + 8d for each block
    Q8_0   d·q              two parts: q + 128 = 16·h + l, so 16d·(h - 8) + d·l

d and m are float16 in the file, so every product above is exact in float32; where m + 8d is not, the zero
point of that matrix is 0. (With 8, far less cancels in a sum of products.) A float zero point -m/d for Q4_1
would round, and such a kernel is slow on the CPU; so is its 8-bit kernel for float32 inputs (measured with
onnxruntime 1.31.1, one token: 20 and 16 times slower than these parts).
"""

from __future__ import annotations

import dataclasses
from typing import Final, final

import numpy as np

from burnish.exporter.gguf_weights import StoredTensor

BLOCK: Final = 32
"""Elements of a block of each of these types."""
KEPT: Final = ("Q4_0", "Q4_1", "Q8_0")


@final
@dataclasses.dataclass(frozen=True)
class Part:
    """What stands for `(nibble - zero) * scale`."""

    packed: np.ndarray
    """Two nibbles a byte, the first in the low half: uint8 `[rows, blocks, 16]`."""
    scales: np.ndarray
    """float32 `[rows, blocks]`."""
    zero: int
    """Zero point: 8 or 0."""

    def values(self) -> np.ndarray:
        """float32 `[rows, blocks, 32]`."""
        nibbles = np.stack([self.packed & 15, self.packed >> 4], -1).reshape(*self.scales.shape, BLOCK)
        found: np.ndarray = (nibbles.astype(np.float32) - np.float32(self.zero)) * self.scales[..., None]
        return found


@final
@dataclasses.dataclass(frozen=True)
class Parts:
    """A weight `[rows, columns]` as the sum of its parts and the minimum of each block."""

    parts: tuple[Part, ...]
    minima: np.ndarray | None = None
    """float32 `[rows, blocks]`."""

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return int(self.parts[0].scales.shape[0])

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return int(self.parts[0].scales.shape[1])

    def values(self) -> np.ndarray:
        """The weight, float32 `[rows, columns]`."""
        found = self.parts[0].values()
        for part in self.parts[1:]:
            found += part.values()
        if self.minima is not None:
            found += self.minima[..., None]
        return found.reshape(self.rows, -1)

    def equal(self, weight: np.ndarray) -> bool:
        """True where the parts make up exactly this weight, bit for bit; looked at some rows at a time."""
        if weight.shape != (self.rows, self.blocks * BLOCK) or weight.dtype != np.float32:
            return False
        step = max(1, 2**20 // weight.shape[1])
        return all(
            np.array_equal(self._some(start, start + step).values(), weight[start : start + step])
            for start in range(0, self.rows, step)
        )

    def _some(self, start: int, end: int) -> Parts:
        parts = tuple(Part(part.packed[start:end], part.scales[start:end], part.zero) for part in self.parts)
        return Parts(parts, None if self.minima is None else self.minima[start:end])


def split(stored: StoredTensor) -> Parts | None:
    """The parts of a stored matrix; None where its type is not one of `KEPT`, or it is no matrix."""
    if len(stored.shape) != 2 or stored.type_name not in KEPT or stored.offset:
        return None
    blocks = stored.blocks().reshape(stored.shape[0], stored.shape[1] // BLOCK, -1)
    scales = _halves(blocks, 0)
    if stored.type_name == "Q8_0":
        whole = blocks[..., 2:] ^ 128  # int8 + 128 as uint8
        high = Part(_packed(whole >> 4), scales * np.float32(16), 8)
        return Parts((high, Part(_packed(whole & 15), scales, 0)))
    if stored.type_name == "Q4_0":
        return Parts((Part(_packed(_nibbles(blocks[..., 2:])), scales, 8),))
    return _with_minima(_packed(_nibbles(blocks[..., 4:])), scales, _halves(blocks, 2))


def _with_minima(packed: np.ndarray, scales: np.ndarray, minima: np.ndarray) -> Parts:
    middle = minima + np.float32(8) * scales
    if np.array_equal(middle, minima.astype(np.float64) + 8.0 * scales):
        return Parts((Part(packed, scales, 8),), middle)
    return Parts((Part(packed, scales, 0),), minima)


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    """A float16 of each block, as float32 `[rows, blocks]`."""
    found = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]
    return found.astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """GGUF's order: the low halves are the first 16 elements, the high halves the others."""
    return np.concatenate([data & 15, data >> 4], -1)


def _packed(nibbles: np.ndarray) -> np.ndarray:
    """onnxruntime's order: two neighbours a byte."""
    packed: np.ndarray = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return packed
