"""Arrays of dtypes that numpy does not have itself (bfloat16, float8) in and out of onnxruntime."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from burnish.feeds import dtype_of
from burnish.manifest import TensorSpec
from burnish.runtime.inputs import STRING, Array

# onnx.TensorProto.DataType of the dtypes of ml_dtypes that have whole bytes.
_CODES: Final = {
    "bfloat16": 16, "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
}  # fmt: skip


def is_foreign(spec: TensorSpec) -> bool:
    """True for a dtype that onnxruntime does not exchange with numpy by itself."""
    return spec.dtype in _CODES


def run_values(
    session: ort.InferenceSession, outputs: Sequence[TensorSpec], arrays: Mapping[str, Any]
) -> list[Any]:
    """Run a session whose inputs or outputs have such dtypes; the arrays of `outputs` in order."""
    values = {name: to_value(array) for name, array in arrays.items()}
    found = session.run_with_ort_values([spec.name for spec in outputs], values)
    return [to_array(value, spec) for value, spec in zip(found, outputs, strict=True)]


def to_value(array: Array) -> ort.OrtValue:
    """An OrtValue on the memory of `array` (a copy where it is not contiguous)."""
    code = _CODES.get(array.dtype.name)
    if code is None:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, code)


def to_array(value: ort.OrtValue, spec: TensorSpec) -> Array:
    """The array of an output; a copy."""
    if spec.dtype not in _CODES or spec.dtype == STRING:
        return np.asarray(value.numpy())
    dtype = dtype_of(spec.dtype)
    shape = tuple(value.shape())
    # onnxruntime's own numpy() knows no bfloat16; its memory is read instead.
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = ctypes.string_at(value.data_ptr(), size)
    return np.frombuffer(bytearray(memory), dtype).reshape(shape)
