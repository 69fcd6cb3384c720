"""Whether what a tensor declares (dtype, dims) fits the data it has, computed without touching the data.

Sizes are Python integers, so that no product of dims can overflow. Source: onnx/onnx.proto, TensorProto.
"""

from __future__ import annotations

import math
from typing import Final

from burnish.errors import ModelError
from burnish.wire import Tensor

STRING: Final = 8
# Bits of an element by ONNX's number of the dtype.
_BITS: Final[dict[int, int]] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 8: 0, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64,
    15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6,
}  # fmt: skip
# Field of TensorProto for typed data by dtype; all others are in int32_data (5).
_FIELD: Final[dict[int, int]] = {1: 4, 14: 4, 7: 7, 8: 6, 11: 10, 15: 10, 12: 11, 13: 11}
_INT32_DATA: Final = 5
_LARGEST: Final = 2**63 - 1


def byte_size(tensor: Tensor, name: str) -> int:
    """Bytes that the elements take in `raw_data` or in an external file; 0 for strings.

    Raises:
        ModelError: TENSOR_DTYPE (unknown), TENSOR_SIZE (a negative dim, or more than 2^63 bytes).
    """
    if tensor.dtype not in _BITS:
        raise ModelError(
            f"{_what(tensor, name)} has the unknown dtype {tensor.dtype}.",
            "Write it with a dtype that ONNX defines (1 to 28).",
            code="TENSOR_DTYPE",
        )
    if any(dim < 0 for dim in tensor.dims):
        raise _size(tensor, name, "a dim is negative")
    size: int = (math.prod(tensor.dims) * _BITS[tensor.dtype] + 7) // 8
    if size > _LARGEST:
        raise _size(tensor, name, "that is more than 2^63 bytes")
    return size


def check_tensor(tensor: Tensor, name: str) -> None:
    """Check one tensor of the model file `name`; where its data is external, all but the data.

    Raises:
        ModelError: TENSOR_DTYPE, or TENSOR_SIZE: its data is missing, too short or too long.
    """
    size = byte_size(tensor, name)
    if tensor.dtype == STRING and (tensor.external or tensor.raw is not None):
        raise ModelError(
            f"{_what(tensor, name)} holds strings as raw or external bytes.",
            "Strings belong in string_data; write the file again.",
            code="TENSOR_DTYPE",
        )
    if tensor.external:
        return
    counts = {field: count for field, count in tensor.typed.items() if count}
    if tensor.raw is not None:
        if counts:
            raise _size(tensor, name, "it has raw and typed data at once")
        if tensor.raw != size:
            raise _size(tensor, name, f"its data has {tensor.raw} bytes instead of {size}")
        return
    field, expected = _FIELD.get(tensor.dtype, _INT32_DATA), _typed_count(tensor)
    if expected and not counts:
        raise _size(tensor, name, "it has no data")
    if counts != ({field: expected} if expected else {}):
        found = ", ".join(f"{count} in field {number}" for number, count in sorted(counts.items()))
        raise _size(tensor, name, f"its values are {found} instead of {expected} in field {field}")


def _typed_count(tensor: Tensor) -> int:
    """Entries of the typed data field: two for a complex number, one for 8 bits of packed small ones."""
    count: int = math.prod(tensor.dims)
    if tensor.dtype in (14, 15):
        return 2 * count
    bits = _BITS[tensor.dtype]
    return (count * bits + 7) // 8 if bits in (2, 4) else count


def _size(tensor: Tensor, name: str, why: str) -> ModelError:
    dims = "x".join(map(str, tensor.dims[:8])) + ("…" if len(tensor.dims) > 8 else "")
    return ModelError(
        f"{_what(tensor, name)} has dims [{dims}] and dtype {tensor.dtype}, but {why}.",
        "The file is damaged or made by a broken tool; export the model again.",
        code="TENSOR_SIZE",
    )


def _what(tensor: Tensor, name: str) -> str:
    return f"{tensor.label[:1].upper()}{tensor.label[1:]} of {name}"
