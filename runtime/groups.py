"""Which values are computed in one run, so that what they need together stays within a budget of bytes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt

from burnish.byte_sizes import show_bytes
from burnish.errors import CalibrationError
from burnish.runtime import machine, memory

Feeds = Mapping[str, npt.NDArray[np.generic]]
Sizes = Callable[[Feeds], Mapping[str, int]]
"""The bytes of every wanted value for some feeds; runs the model without keeping any of them."""
Group = tuple[str, ...]

SCRATCH: Final = 32_000_000
"""Bytes that counting values and a session of one more group take besides the values."""
_SHARE: Final = 0.8  # of what is free, where nobody gave a budget
_ROUNDS: Final = 1.05  # what an allocator rounds up to, and loses


@final
@dataclasses.dataclass
class Groups:
    """Cuts names into groups, anew whenever a sample is larger than all before it.

    Args:
        names: of the values, in the order of the graph.
        sizes: measures them; None: all values are one group.
        budget: bytes that the process may have in memory; None: most of what is free.
    """

    names: Sequence[str]
    sizes: Sizes | None
    budget: int | None = None
    _largest: list[dict[str, tuple[int, ...]]] = dataclasses.field(default_factory=list)
    _bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    _beside: int = 0
    """Bytes that a run takes besides the values that it gives."""
    _groups: list[Group] = dataclasses.field(default_factory=list)

    def of(self, feeds: Feeds, number: int) -> list[Group]:
        """The groups for a sample.

        Raises:
            CalibrationError: one value alone does not fit into the budget (CALIB_MEMORY).
            ModelError: the model does not run on the sample.
        """
        if self.sizes is None or not self.names:
            return [tuple(self.names)]
        if not self._groups or not any(_within(feeds, known) for known in self._largest):
            self._measure(feeds, self.sizes)
            self._groups = self._cut(number)
        return self._groups

    def check(self, number: int) -> None:
        """Refuse to go on where the budget was not kept.

        Raises:
            CalibrationError: CALIB_MEMORY.
        """
        used = memory.peak()
        if self.budget is not None and used > self.budget:
            raise CalibrationError(
                f"Calibration took {show_bytes(used)} of memory on sample {number}, more than the budget of "
                f"{show_bytes(self.budget)}.",
                f"Raise --memory-budget to {show_bytes(int(used * 1.1))}, or give smaller samples.",
                code="CALIB_MEMORY",
            )

    def _measure(self, feeds: Feeds, sizes: Sizes) -> None:
        if not self._largest:
            sizes(feeds)  # a first run maps weights: those are in memory from here on
        memory.give_back()
        machine.reset_peak()
        before = memory.resident()
        found = sizes(feeds)
        self._beside = max(self._beside, memory.peak() - before)
        self._bytes = {name: max(found[name], self._bytes.get(name, 0)) for name in self.names}
        self._largest.append({name: np.shape(array) for name, array in feeds.items()})

    def _cut(self, number: int) -> list[Group]:
        memory.give_back()
        fixed = memory.resident() + self._beside + SCRATCH
        limit = self.budget or int(memory.resident() + _SHARE * memory.available())
        largest = max(self.names, key=lambda name: self._bytes[name])
        copy = int(self._bytes[largest] * _ROUNDS)  # one value at a time is copied from onnxruntime
        room = limit - fixed - copy
        if self.budget is not None and room < copy:
            self._refuse(largest, number, fixed, fixed + 2 * copy)
        return self._fill(room)

    def _fill(self, room: int) -> list[Group]:
        groups: list[list[str]] = [[]]
        used = 0
        for name in self.names:
            size = int(self._bytes[name] * _ROUNDS)
            if groups[-1] and used + size > room:
                groups.append([])
                used = 0
            groups[-1].append(name)
            used += size
        return [tuple(group) for group in groups]

    def _refuse(self, name: str, number: int, fixed: int, needed: int) -> None:
        raise CalibrationError(
            f"Calibration needs {show_bytes(needed)} for value {name!r} on sample {number} "
            f"({show_bytes(self._bytes[name])}, held twice, beside {show_bytes(fixed)} for the model and its "
            f"run); the budget is {show_bytes(self.budget or 0)}.",
            f"Raise --memory-budget to {show_bytes(int(needed * 1.05))}, or give smaller samples.",
            code="CALIB_MEMORY",
        )


def _within(feeds: Feeds, known: Mapping[str, tuple[int, ...]]) -> bool:
    """True where no axis of any input is longer than it was."""
    return all(
        np.ndim(array) == len(known.get(name, ()))
        and all(itertools.starmap(int.__le__, zip(np.shape(array), known[name], strict=True)))
        for name, array in feeds.items()
        if name in known or np.ndim(array)
    )
