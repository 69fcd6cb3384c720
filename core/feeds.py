"""Random inputs that respect what each input means, on several assignments of the dynamic dims.

Token ids stay inside the vocabulary; masks are 0/1 with padding on the right and at least one 1 a row (where
they cover a past, as a decoder's do, the padding is the oldest of it); positions count up. The same seed
gives the same arrays on every machine.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import ml_dtypes
import numpy as np

from burnish.dim_sums import names_of, parts_of, size_of
from burnish.errors import InputError, nearest
from burnish.manifest import DimRange, TensorSpec

Assignment = dict[str, int]
"""A size for each dynamic dim, by name."""

_BATCH: Final = re.compile(r"batch|^b$|^n$|\.0$", re.IGNORECASE)  # x.0: the first axis of input x, unnamed
_SYMBOL: Final = re.compile(r"s\d+")  # what torch calls a dim that it was given no name for
_SIZES: Final = (7, 1, 16, 2)
_SMALL_SIZES: Final = (3, 1, 5, 2)
_MANY: Final = 1_000_000  # values in the inputs
_FREE_VOCABULARY: Final = 100  # without a known bound, ids below this fit any real embedding table


def dtype_of(name: str) -> np.dtype[np.generic]:
    """The numpy dtype of a manifest's dtype name, ml_dtypes' included.

    Raises:
        InputError: no such dtype.
    """
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        raise InputError(
            f"Unknown dtype {name!r}.", "Use a numpy or ml_dtypes name, such as float32."
        ) from None


def dynamic_dims(specs: Sequence[TensorSpec]) -> list[str]:
    """Names of the dynamic dims, in order of appearance; an unnamed one is called `INPUT.AXIS`.

    A dim that is a sum of others (`past + sequence`) is not among them, its parts are.
    """
    dims = (dim for spec in specs for dim in _dim_names(spec) if isinstance(dim, str))
    return list(dict.fromkeys(name for dim in dims for name in names_of(dim)))


def assignments(
    specs: Sequence[TensorSpec],
    dims: Mapping[str, DimRange] | None = None,
    *,
    sizes: Sequence[int] | None = None,
) -> list[Assignment]:
    """Four assignments: batch 1, 2, 3 crossed with lengths that include 1, kept in range.

    Batch-like dims go 1, 2, 3, 1 while the others go through `sizes` (7, 1, 16, 2; or 3, 1, 5, 2 where the
    inputs would have more than a million values), shifted against each other so that two dims are not always
    equal; where every dim is a batch they go 1, 2, 3, 4; a dim that may be 0 (the past of a decoder) is so
    first. Ranges may leave fewer. A model without dynamic dims has one assignment: `{}`.
    """
    if sizes is not None:
        return _crossed(specs, dims or {}, sizes)
    usual = _crossed(specs, dims or {}, _SIZES)
    if any(are_large(specs, each) for each in usual):
        return _crossed(specs, dims or {}, _SMALL_SIZES)
    return usual


def _crossed(
    specs: Sequence[TensorSpec], dims: Mapping[str, DimRange], sizes: Sequence[int]
) -> list[Assignment]:
    names = dynamic_dims(specs)
    if not names:
        return [{}]
    leading = batch_dims(specs)
    batches = (1, 2, 3, 4 if leading.issuperset(names) else 1)
    result: list[Assignment] = []
    for step in range(len(sizes)):
        others = itertools.count(step)
        wanted = {
            name: batches[step % 4] if name in leading else sizes[next(others) % len(sizes)] for name in names
        }
        if step == 0:
            wanted |= {name: 0 for name, allowed in dims.items() if name in wanted and not allowed.min}
        result.append({name: _clamp(size, dims.get(name)) for name, size in wanted.items()})
    return [a for i, a in enumerate(result) if a not in result[:i]]


def are_large(specs: Sequence[TensorSpec], assignment: Mapping[str, int]) -> bool:
    """True where the inputs have more than a million values at those sizes."""
    shapes = (shape_at(spec, assignment) for spec in specs if spec.shape is not None)
    return sum(map(math.prod, shapes)) > _MANY


def is_batch(dim: str) -> bool:
    """True for the name of a dim that counts independent examples (batch, N)."""
    return _BATCH.search(dim) is not None


def batch_dims(specs: Sequence[TensorSpec]) -> frozenset[str]:
    """The dynamic dims that count examples: by their names, or named by torch (`s72`) and always first."""
    rows = [list(_dim_names(spec)) for spec in specs]
    first = {row[0] for row in rows if row}
    later = {name for row in rows for dim in row[1:] if isinstance(dim, str) for name in names_of(dim)}
    return frozenset(
        name
        for name in dynamic_dims(specs)
        if is_batch(name) or (_SYMBOL.fullmatch(name) and name in first and name not in later)
    )


def typical_sizes(
    specs: Sequence[TensorSpec],
    dims: Mapping[str, DimRange] | None = None,
    *,
    given: Mapping[str, int] | None = None,
    batch: int = 1,
    other: int = 128,
) -> Assignment:
    """A size for each dynamic dim: as `given`, else `batch` for batch-like dims and `other`, kept in range.

    Raises:
        InputError: `given` names a dim that no input has (DIM_UNKNOWN).
    """
    names = dynamic_dims(specs)
    for name in given or {}:
        if name not in names:
            hint = nearest(name, names) if names else "Leave it out: every size is fixed."
            raise InputError(f"The model has no dynamic dim {name!r}.", hint, code="DIM_UNKNOWN")
    leading = batch_dims(specs)
    wanted = {name: batch if name in leading else other for name in names}
    in_range = {name: _clamp(size, (dims or {}).get(name)) for name, size in wanted.items()}
    return in_range | dict(given or {})


def make_feeds(
    specs: Sequence[TensorSpec], assignment: Mapping[str, int], *, seed: int
) -> dict[str, np.ndarray]:
    """One random array for each input at those sizes.

    Raises:
        InputError: an input has an unknown rank, or a dynamic dim without a size in `assignment`.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        shape = shape_at(spec, assignment)
        past = _past(spec, assignment) if spec.meaning == "mask" else 0
        array = _left_padded(shape, past, rng) if past else _array(spec, shape, rng)
        feeds[spec.name] = np.asarray(array).astype(dtype_of(spec.dtype), copy=False)
    return feeds


def shape_at(spec: TensorSpec, assignment: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input at those sizes of the dynamic dims.

    Raises:
        InputError: the rank is unknown, or a dynamic dim has no size in `assignment`.
    """
    if spec.shape is None:
        raise InputError(
            f"Input {spec.name!r} has an unknown rank.", "Give its data instead of random values."
        )
    return tuple(n if isinstance(n, int) else _size(n, spec, assignment) for n in _dim_names(spec))


def sizes_of(specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> Assignment:
    """The sizes of the dynamic dims in those inputs; what is a sum of others follows from them."""
    pairs = (pair for spec in specs for pair in zip(_dim_names(spec), feeds[spec.name].shape, strict=False))
    return {dim: size for dim, size in pairs if isinstance(dim, str) and not parts_of(dim)}


def _size(dim: str, spec: TensorSpec, assignment: Mapping[str, int]) -> int:
    size = size_of(dim, assignment)
    if size is None:
        missing = next(name for name in names_of(dim) if name not in assignment)
        raise InputError(
            f"Dim {missing!r} of input {spec.name!r} has no size.", f"Give one, such as {missing}=8."
        )
    return size


def _dim_names(spec: TensorSpec) -> Iterator[int | str]:
    for axis, dim in enumerate(spec.shape or ()):
        yield f"{spec.name}.{axis}" if dim is None else dim


def _past(spec: TensorSpec, assignment: Mapping[str, int]) -> int:
    """The size of what comes before the current tokens: of the first part, where the last dim is a sum."""
    last = spec.shape[-1] if spec.shape else None
    parts = parts_of(last) if isinstance(last, str) else ()
    return assignment.get(parts[0], 0) if parts else 0


def _clamp(size: int, allowed: DimRange | None) -> int:
    if allowed is None:
        return size
    return max(allowed.min, min(size, allowed.max if allowed.max is not None else size))


def _array(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    dtype = dtype_of(spec.dtype)
    match spec.meaning:
        case "token_ids":
            return rng.integers(0, spec.high or _FREE_VOCABULARY, shape).astype(dtype)
        case "segments":
            return rng.integers(0, spec.high or 1, shape).astype(dtype)
        case "positions":
            counts = np.arange(shape[-1] if shape else 1) % (spec.high or max(1, *shape, 1))
            return np.broadcast_to(counts, shape).astype(dtype)
        case "mask":
            return _right_padded(shape, rng).astype(dtype)
        case "values":
            return _values(dtype, shape, rng)


def _right_padded(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Rows of ones with zeros on the right; the first row is full, every row has at least one 1."""
    length = shape[-1] if shape else 1
    lengths = rng.integers(1, length + 1, shape[:-1]) if length else np.zeros(shape[:-1], int)
    lengths = np.atleast_1d(lengths)
    lengths.reshape(-1)[:1] = length
    return (np.arange(length) < lengths.reshape(*shape[:-1], 1)).reshape(shape)


def _left_padded(shape: tuple[int, ...], most: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of ones with up to `most` zeros on the left, which no current token is; the first row is full."""
    padding = np.atleast_1d(rng.integers(0, most + 1, shape[:-1]))
    padding.reshape(-1)[:1] = 0
    return (np.arange(shape[-1]) >= padding.reshape(*shape[:-1], 1)).reshape(shape)


def _values(dtype: np.dtype[np.generic], shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, min(_FREE_VOCABULARY, np.iinfo(dtype.name).max), shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
