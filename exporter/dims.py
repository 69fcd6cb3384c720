"""Which axes of the inputs are dynamic: their names, their ranges, and example sizes that hide nothing.

torch specialises a dim on an example of size 0 or 1, and takes two dims of equal size for one where it
can; `example_sizes` picks sizes for which neither happens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, final

from burnish.dim_sums import names_of, parts_of, size_of
from burnish.errors import ExportError, nearest
from burnish.manifest import DimRange

DimSpec = Any
"""A name, `(name, min, max)` with max None for no bound, a `torch.export.Dim`, or a sum of named dims
(`past_sequence + sequence`)."""


@final
@dataclasses.dataclass(frozen=True)
class Assumed:
    """A named dim whose range a configuration says: one that the module narrows is noted, and no error."""

    name: str
    min: int = 1
    max: int | None = None


Dynamic = Mapping[str, Mapping[int, DimSpec]]
"""For each input, the dim at each dynamic axis: `{"input_ids": {0: "batch", 1: ("sequence", 1, 512)}}`."""

_UNBOUNDED: Final = 2**31
_TRIED: Final = 8  # sizes above the given one, before smaller ones


@final
@dataclasses.dataclass(frozen=True)
class Axis:
    """One dynamic axis of one input."""

    input: str
    axis: int
    name: str
    allowed: DimRange
    promised: bool
    """The range was given (so a narrower one is an error), not assumed."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The terms, where the dim is a sum of others."""
        return parts_of(self.name)


def read_axes(
    dynamic: Dynamic | None,
    shapes: Mapping[str, Sequence[int]],
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
) -> tuple[Axis, ...]:
    """The dynamic axes of inputs of those example shapes; `ranges` replaces the ranges of dims by name.

    Raises:
        ExportError: no such input, axis or dim; or a name, range or size that cannot be (EXPORT_DYNAMIC).
    """
    axes = [_axis(name, index, spec, shapes) for name, index, spec in _asked(dynamic or {})]
    known = dict.fromkeys(axis.name for axis in axes if not axis.parts)
    _need_parts(axes, known)
    for name in ranges or {}:
        if name not in known:
            raise _bad(f"No dynamic dim is named {name!r}.", nearest(name, known))
    agreed = {name: _agree(name, axes, (ranges or {}).get(name)) for name in known}
    agreed |= {axis.name: (axis.allowed, False) for axis in axes if axis.parts}
    return tuple(
        dataclasses.replace(axis, allowed=agreed[axis.name][0], promised=agreed[axis.name][1])
        for axis in axes
    )


def example_sizes(axes: Sequence[Axis], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """A size for each dim: at least 2, unlike every other dim's, in range; the given one where it can be.

    Raises:
        ExportError: a dim has different sizes in two inputs, or one outside its range (EXPORT_DYNAMIC).
    """
    chosen: dict[str, int] = {}
    sums = [axis for axis in axes if axis.parts]
    for axis in axes:
        if axis.parts:
            continue
        size = shapes[axis.input][axis.axis]
        given = {shapes[other.input][other.axis] for other in axes if other.name == axis.name}
        if len(given) > 1:
            raise _bad(
                f"Dim {axis.name!r} has the sizes {sorted(given)} in the example inputs.",
                "Give it one size everywhere, or two names.",
            )
        if axis.name not in chosen:
            chosen[axis.name] = _free_size(size, axis.allowed, set(chosen.values()))
    return chosen | _sums(sums, chosen)


def other_sizes(axes: Sequence[Axis], sizes: Mapping[str, int]) -> dict[str, int]:
    """Another size for each dim, where its range allows one, unlike every other size of either kind."""
    chosen: dict[str, int] = {}
    for axis in axes:
        if axis.name not in chosen and not axis.parts:
            size, taken = sizes[axis.name], {*sizes.values(), *chosen.values()}
            chosen[axis.name] = _free_size(size, axis.allowed, taken)
    return chosen | _sums([axis for axis in axes if axis.parts], chosen)


def _sums(axes: Sequence[Axis], sizes: Mapping[str, int]) -> dict[str, int]:
    return {axis.name: size_of(axis.name, sizes) or 0 for axis in axes}


def _asked(dynamic: Any) -> Iterator[tuple[str, int, DimSpec]]:
    """Input, axis and dim of every axis that is asked for; what is no such mapping is refused."""
    for name, specs in dynamic.items() if isinstance(dynamic, Mapping) else [("", dynamic)]:
        if not isinstance(specs, Mapping):
            raise _bad(
                f"Cannot take dynamic dims{f' of {name!r}' if name else ''} from {specs!r}.",
                'Give the axes of each input: {"input_ids": {0: "batch", 1: "sequence"}}.',
            )
        for index, spec in specs.items():
            if not isinstance(index, int):
                raise _bad(f"Input {name!r} has no axis {index!r}.", "Axes are numbers, counted from 0.")
            yield name, index, spec


def _need_parts(axes: Sequence[Axis], known: Mapping[str, object]) -> None:
    for axis in axes:
        unknown = [name for name in names_of(axis.name) if axis.parts and name not in known]
        if unknown:
            raise _bad(f"Dim {axis.name!r} adds {unknown[0]!r}, which is no dim.", nearest(unknown[0], known))


def _axis(name: str, index: int, spec: DimSpec, shapes: Mapping[str, Sequence[int]]) -> Axis:
    if name not in shapes:
        raise _bad(f"No input is named {name!r}.", nearest(name, shapes))
    rank = len(shapes[name])
    if not -rank <= index < rank:
        raise _bad(f"Input {name!r} has no axis {index}.", f"It has {rank} axes, counted from 0.")
    dim, allowed, promised = _read(spec)
    if not dim.isidentifier() and not parts_of(dim):
        raise _bad(f"{dim!r} cannot name a dim.", "Use letters, digits and _, such as batch.")
    return Axis(name, index % rank, dim, allowed, promised)


def _read(spec: DimSpec) -> tuple[str, DimRange, bool]:
    if isinstance(spec, str):
        return spec, DimRange(), False
    if isinstance(spec, Assumed):
        return spec.name, DimRange(spec.min, spec.max), False
    if isinstance(spec, tuple) and len(spec) == 3 and isinstance(spec[0], str) and _are_sizes(*spec[1:]):
        return spec[0], read_range(*spec), True
    if hasattr(spec, "__name__") and hasattr(spec, "min") and not hasattr(spec, "root"):
        bounded = spec.min > 1 or spec.max < _UNBOUNDED
        return spec.__name__, read_range(spec.__name__, max(1, spec.min), spec.max), bounded
    raise _bad(
        f"Cannot take a dynamic dim from {spec!r}.",
        "Give a name, (name, min, max), or a torch.export.Dim with a name of its own.",
    )


def _are_sizes(low: object, high: object) -> bool:
    return isinstance(low, int) and (high is None or isinstance(high, int))


def read_range(name: str, low: int, high: int | None) -> DimRange:
    """The range of a dim.

    Raises:
        ExportError: no dim can have it (EXPORT_DYNAMIC).
    """
    low = int(low)
    top = None if high is None or high >= _UNBOUNDED else int(high)
    if low < 0 or (top is not None and top <= low):
        raise _bad(
            f"Dim {name!r} cannot range from {low} to {top}.",
            "Give min < max, or leave the dim out: it is then fixed.",
        )
    return DimRange(low, top)


def _agree(name: str, axes: Sequence[Axis], override: tuple[int, int | None] | None) -> tuple[DimRange, bool]:
    if override is not None:
        if not isinstance(override, (tuple, list)) or len(override) != 2 or not _are_sizes(*override):
            raise _bad(f"Cannot take the range of {name!r} from {override!r}.", "Give (min, max).")
        return read_range(name, *override), True
    promised = {axis.allowed for axis in axes if axis.name == name and axis.promised}
    if len(promised) > 1:
        raise _bad(f"Dim {name!r} has two ranges.", "Give it the same range everywhere.")
    if promised:
        return promised.pop(), True
    assumed = [axis.allowed for axis in axes if axis.name == name and axis.allowed != DimRange()]
    return (assumed[0] if assumed else DimRange()), False


def _free_size(size: int, allowed: DimRange, taken: set[int]) -> int:
    for candidate in _candidates(size, allowed):
        if candidate not in taken:
            return candidate
    return size


def _candidates(size: int, allowed: DimRange) -> Iterator[int]:
    low = max(2, allowed.min)
    high = allowed.max if allowed.max is not None else max(low, size) + 64
    wanted = itertools.chain([size], range(max(size, low), size + _TRIED), range(low, high + 1))
    return (candidate for candidate in wanted if low <= candidate <= high)


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_DYNAMIC")
