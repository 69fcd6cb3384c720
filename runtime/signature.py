"""A session's inputs and outputs as `TensorSpec`s: onnxruntime's description, completed by the manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import onnxruntime as ort

from burnish.manifest import Dim, Manifest, TensorSpec

_TENSOR: Final = re.compile(r"tensor\((\w+)\)")
_DTYPES: Final = {
    "float": "float32", "double": "float64", "string": "str", "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz", "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz", "float4e2m1": "float4_e2m1fn",
}  # fmt: skip
# Texts that exporters write into every dim they do not know; taken as a name they would all be equal.
_NAMELESS: Final = frozenset({"", "?", "-1", "None", "none", "unk", "Unknown", "dynamic"})


def make_specs(
    arguments: Iterable[ort.NodeArg],
    known: Sequence[TensorSpec],
    rankless: Callable[[], frozenset[str]] = frozenset,
) -> tuple[TensorSpec, ...]:
    """Specs of a session's inputs or outputs.

    Args:
        arguments: `get_inputs()`, `get_outputs()` or `get_overridable_initializers()`.
        known: what the manifest says; it wins where name, dtype and rank agree.
        rankless: gives the names whose rank is unknown; asked only where onnxruntime says rank 0, which
            it also says of those.
    """
    by_name = {spec.name: spec for spec in known}
    found = []
    for argument in arguments:
        spec = _spec(argument)
        if spec.shape == () and spec.name in rankless():
            spec = TensorSpec(spec.name, spec.dtype, None)
        found.append(_complete(spec, by_name.get(spec.name)))
    return tuple(found)


def manifest_specs(manifest: Manifest | None) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """(inputs, outputs) of a manifest, both empty without one."""
    return (manifest.inputs, manifest.outputs) if manifest is not None else ((), ())


def _spec(argument: ort.NodeArg) -> TensorSpec:
    match = _TENSOR.fullmatch(argument.type)
    if match is None:
        return TensorSpec(argument.name, argument.type, None)
    shape = tuple(_dim(dim) for dim in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(match.group(1), match.group(1)), shape)


def _dim(dim: object) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return None if dim is None or str(dim) in _NAMELESS else str(dim)


def _complete(spec: TensorSpec, known: TensorSpec | None) -> TensorSpec:
    if known is None or known.dtype != spec.dtype:
        return spec
    if known.shape is None or spec.shape is None or len(known.shape) != len(spec.shape):
        return TensorSpec(spec.name, spec.dtype, spec.shape, known.meaning, known.high)
    return known
