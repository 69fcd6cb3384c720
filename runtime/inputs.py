"""Check the arrays given to a model before it runs: names, dtypes, ranks, sizes, dims that must agree.

Everything that can be is worked out once; a call with shapes seen before costs about a microsecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, final

import ml_dtypes
import numpy as np

from burnish.dim_sums import parts_of, size_of
from burnish.errors import InputError, nearest
from burnish.feeds import dtype_of
from burnish.manifest import DimRange, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
Shapes = tuple[tuple[int, ...], ...]

_SEEN_LIMIT: Final = 4096  # shape combinations remembered; a stream of ever new ones must not fill memory
_OPAQUE: Final = ("seq(", "optional(", "map(", "sparse_tensor(")
_FROM: Final = {"b": "b", "i": "biu", "u": "biu", "f": "biuf", "c": "biufc"}
"""Kinds of Python values (right) that become a dtype of the kind on the left without a surprise."""
STRING: Final = "str"


@final
class InputChecker:
    """Turns what a caller gives into the arrays that onnxruntime gets, or says what does not fit.

    Args:
        specs: the inputs that must be given.
        dims: the sizes that dynamic dims may take, by name (an unnamed dim is `INPUT.AXIS`).
        optional: inputs that have a default in the model.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        dims: Mapping[str, DimRange],
        *,
        optional: Sequence[TensorSpec] = (),
    ) -> None:
        self._specs = {spec.name: spec for spec in (*specs, *optional)}
        self._required = tuple((spec.name, _dtype(spec)) for spec in specs)
        self._optional = tuple((spec.name, _dtype(spec)) for spec in optional)
        self._dims = dict(dims)
        self._seen: dict[Shapes, dict[str, int]] = {}

    def __call__(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """The arrays by name, converted where that is safe; and the sizes of the dynamic dims by name.

        Lists and scalars of Python become arrays of the wanted dtype where no value changes; an array is
        never cast, since that would hide a mistake and cost a copy.

        Raises:
            InputError: INPUT_MISSING, INPUT_UNKNOWN, INPUT_DTYPE, INPUT_RANK or INPUT_SHAPE.
        """
        arrays: dict[str, Any] = {}
        shapes = []
        for name, dtype in self._required:
            array = feeds.get(name)
            if type(array) is not np.ndarray or array.dtype is not dtype:
                array = self._convert(name, dtype, feeds)
            arrays[name] = array
            shapes.append(array.shape)
        if len(feeds) != len(arrays):
            self._take_optional(feeds, arrays, shapes)
        key = tuple(shapes)
        sizes = self._seen.get(key)
        if sizes is None:
            sizes = self._sizes(arrays)
            if len(self._seen) < _SEEN_LIMIT and not self._optional:
                self._seen[key] = sizes
        return arrays, sizes

    def _sizes(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        """The size of each dynamic dim in those arrays, after checking ranks, sizes and ranges."""
        sizes: dict[str, int] = {}
        owners: dict[str, str] = {}
        for name, array in arrays.items():
            spec = self._specs[name]
            if spec.shape is None:
                continue
            if len(array.shape) != len(spec.shape):
                _refuse_rank(spec, array.shape)
            for axis, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
                if isinstance(wanted, int):
                    if size != wanted:
                        _refuse_size(spec, axis, size, str(wanted))
                    continue
                if wanted is not None and parts_of(wanted):
                    continue
                dim = wanted if wanted is not None else f"{name}.{axis}"
                self._check_range(spec, axis, size, dim)
                if sizes.setdefault(dim, size) != size:
                    _refuse_disagreement(dim, owners[dim], sizes[dim], name, size)
                owners.setdefault(dim, name)
        self._check_sums(arrays, sizes)
        return sizes

    def _check_sums(self, arrays: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        for name, array in arrays.items():
            spec = self._specs[name]
            for axis, wanted in enumerate(spec.shape or ()):
                if isinstance(wanted, str) and parts_of(wanted):
                    expected = size_of(wanted, sizes)
                    if expected is not None and array.shape[axis] != expected:
                        _refuse_size(spec, axis, array.shape[axis], f"{expected} ({wanted})")

    def _check_range(self, spec: TensorSpec, axis: int, size: int, dim: str) -> None:
        allowed = self._dims.get(dim)
        if allowed is None:
            return
        if size < allowed.min or (allowed.max is not None and size > allowed.max):
            top = "or more" if allowed.max is None else f"to {allowed.max}"
            _refuse_size(spec, axis, size, f"{allowed.min} {top} (dim {dim!r})")

    def _take_optional(
        self, feeds: Mapping[str, Any], arrays: dict[str, Any], shapes: list[tuple[int, ...]]
    ) -> None:
        for name, dtype in self._optional:
            if name in feeds:
                arrays[name] = self._convert(name, dtype, feeds)
                shapes.append(arrays[name].shape)
        self._refuse_unknown(feeds)

    def _convert(self, name: str, dtype: np.dtype[Any] | None, feeds: Mapping[str, Any]) -> Any:
        if name not in feeds:
            self._refuse_missing(name, feeds)
        value = feeds[name]
        if dtype is None:
            return value if hasattr(value, "shape") else _Opaque(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return _same_dtype(name, np.asarray(value), dtype)
        if hasattr(value, "__array__"):
            return _same_dtype(name, _to_numpy(name, value), dtype)
        return _from_python(name, value, dtype)

    def _refuse_unknown(self, feeds: Mapping[str, Any]) -> None:
        unknown = [name for name in feeds if name not in self._specs]
        if unknown:
            raise InputError(
                f"The model has no input {unknown[0]!r}.",
                nearest(unknown[0], self._specs),
                code="INPUT_UNKNOWN",
            )

    def _refuse_missing(self, name: str, feeds: Mapping[str, Any]) -> NoReturn:
        self._refuse_unknown(feeds)  # a misspelled name is the likelier mistake
        spec = self._specs[name]
        raise InputError(
            f"Input {name!r} is missing.",
            f"Give it as {spec.dtype} of shape {describe(spec)}.",
            code="INPUT_MISSING",
        )


@final
class _Opaque:
    """A value of a sequence, map or optional input, which has no shape to check."""

    shape: tuple[int, ...] = ()

    def __init__(self, value: Any) -> None:
        self.value = value


def unwrap(value: Any) -> Any:
    """What onnxruntime gets for a checked value."""
    return value.value if isinstance(value, _Opaque) else value


def describe(spec: TensorSpec) -> str:
    """The shape in words: `[batch, 3, ?]`."""
    if spec.shape is None:
        return "unknown"
    return f"[{', '.join('?' if dim is None else str(dim) for dim in spec.shape)}]"


def is_opaque(spec: TensorSpec) -> bool:
    """True for what is no tensor: sequences, maps, optional values."""
    return spec.dtype.startswith(_OPAQUE)


def _dtype(spec: TensorSpec) -> np.dtype[Any] | None:
    """None: not a tensor; nothing is checked. Strings are objects, as onnxruntime wants them."""
    if is_opaque(spec):
        return None
    return np.dtype(object) if spec.dtype == STRING else dtype_of(spec.dtype)


def _same_dtype(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype == dtype:
        return array.view(dtype)  # an equal but not identical dtype object misses the fast path
    if dtype == np.object_ and array.dtype.kind in "UT":
        return array.astype(object)
    if array.dtype == dtype.newbyteorder():
        return array.astype(dtype)
    raise InputError(
        f"Input {name!r} is {array.dtype}, the model wants {_name(dtype)}.",
        f"Convert it yourself: {name}.astype({_name(dtype)!r}).",
        code="INPUT_DTYPE",
    )


def _to_numpy(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Input {name!r}, a {type(value).__name__}, does not become an array: {error}.",
            "Give a numpy array (a torch tensor: tensor.detach().cpu().numpy()).",
            code="INPUT_DTYPE",
        ) from error


def _from_python(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """An array of `dtype` from lists and scalars, where no value changes its kind or leaves its range."""
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"Input {name!r} has rows of different lengths.",
            "Pad them to one length; every row of a tensor is equally long.",
            code="INPUT_SHAPE",
        ) from error
    if dtype == np.object_:
        return _strings(name, found)
    if found.size and not _fits(found, dtype):
        _refuse_python(name, found, dtype)
    return found.astype(dtype)


def _fits(found: Array, dtype: np.dtype[Any]) -> bool:
    wanted = _kind(dtype)
    if found.dtype.kind not in _FROM[wanted]:
        return False
    if wanted in "iu":
        low, high = _limits(dtype)
        return bool(found.min() >= low and found.max() <= high)
    if wanted == "f":
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        finite = found[np.isfinite(found)]
        return not finite.size or bool(np.abs(finite).max() <= largest)
    return True


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind == "V":
        small = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        return int(small.min), int(small.max)
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _strings(name: str, found: Array) -> Array:
    if found.dtype.kind == "U" or found.size == 0:
        return found.astype(object)
    raise InputError(
        f"Input {name!r} holds {found.dtype}, the model wants text.",
        "Give a list of str.",
        code="INPUT_DTYPE",
    )


def _kind(dtype: np.dtype[Any]) -> str:
    """Kind as numpy spells it; ml_dtypes' floats and 4-bit integers are `V` to numpy."""
    if dtype.kind != "V":
        return dtype.kind
    return "i" if "int" in dtype.name else "f"


def _refuse_python(name: str, found: Array, dtype: np.dtype[Any]) -> NoReturn:
    raise InputError(
        f"Input {name!r} holds values that are not {_name(dtype)} (they read as {found.dtype}).",
        f"Give {_name(dtype)} values, or convert: np.asarray(..., dtype={_name(dtype)!r}).",
        code="INPUT_DTYPE",
    )


def _refuse_rank(spec: TensorSpec, shape: tuple[int, ...]) -> NoReturn:
    raise InputError(
        f"Input {spec.name!r} has shape {list(shape)}, the model wants rank {len(spec.shape or ())}.",
        f"Its shape is {describe(spec)}; a single example needs a leading dim: x[None].",
        code="INPUT_RANK",
    )


def _refuse_size(spec: TensorSpec, axis: int, size: int, wanted: str) -> NoReturn:
    raise InputError(
        f"Input {spec.name!r} has size {size} in axis {axis}, the model wants {wanted}.",
        f"Its shape is {describe(spec)}.",
        code="INPUT_SHAPE",
    )


def _refuse_disagreement(dim: str, first: str, size: int, second: str, other: int) -> NoReturn:
    where = f"{size} in {first!r} and {other} in {second!r}"
    raise InputError(
        f"Dim {dim!r} is {where}.",
        "It is the same dim of the model: give arrays that agree.",
        code="INPUT_SHAPE",
    )


def _name(dtype: np.dtype[Any]) -> str:
    return "str" if dtype == np.object_ else dtype.name
