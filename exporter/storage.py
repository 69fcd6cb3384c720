"""The weights of a large module in one file, written once, tensor by tensor, and memory-mapped from then on.

The file is the data file of the exported model. A module that burnish loaded itself keeps its parameters as
views of the mapping, so that PyTorch and onnxruntime compute on the same pages and no weight is held twice.

A Linear layer's weight that nothing else uses is stored as the `[in, out]` matrix that MatMul reads, not as
the `[out, in]` that torch keeps: transposing it at every run would take as much memory again.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import onnx_ir as ir

from burnish.exporter.needs import torch
from burnish.files import write_scratch
from burnish.manifest import FileRecord
from burnish.reader import hashed
from burnish.weights import SMALLEST_EXTERNAL

_PAGE: Final = 4096
_PIECE: Final = 1 << 25  # bytes converted at once


@final
@dataclasses.dataclass(frozen=True)
class Kept:
    """One tensor of the file."""

    tensor: Any
    """The torch tensor as it was before."""
    dtype: Any
    """The torch dtype that it is stored in."""
    offset: int
    turned: bool
    """Stored as its transpose."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.tensor.numel() * self.dtype.itemsize  # type: ignore[no-any-return]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        shape = tuple(self.tensor.shape)
        return shape[::-1] if self.turned else shape


@final
class Storage:
    """A file of weights, and which tensor of the module is where in it.

    Args:
        path: of the file, which must not exist yet.
        output: what errors name.
        module: a `torch.nn.Module`.
        dtype: what tensors of the module's main floating type become; None: they stay as they are.
        adopt: the module's tensors become views of the file, and small ones are converted. Otherwise the
            module stays as it is, and `dtype` must be None.

    Raises:
        OutputError: the file cannot be written (OUTPUT_PATH, DISK_FULL).
    """

    def __init__(self, path: Path, module: Any, *, output: Path, dtype: Any = None, adopt: bool) -> None:
        self.path = path
        main, kept = main_type(module), list(_laid_out(module, dtype))
        chunks = hashed(_content(kept))
        write_scratch(path, chunks, output)
        self.record: FileRecord = chunks.record
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._places = {place.tensor.data_ptr(): place for place in kept}
        if adopt:
            self._adopt(module)
            if dtype is not None:
                convert(module, main, dtype)

    @property
    def threads(self) -> int:
        """How many threads torch computes with, and so may others on the same weights."""
        return int(torch.get_num_threads())

    def find(self, tensor: Any) -> Kept | None:
        """Where a tensor of the module is in the file; None where it is not."""
        place = self._places.get(tensor.data_ptr())
        if place is None or tuple(place.tensor.shape) != tuple(tensor.shape):
            return None
        return place if place.dtype == tensor.dtype and place.tensor.stride() == tensor.stride() else None

    def external(self, place: Kept, name: str) -> ir.ExternalTensor:
        """A tensor of the file as the model refers to it."""
        return ir.ExternalTensor(
            self.path.name, place.offset, place.nbytes, ir.DataType.from_numpy(_numpy_type(place.dtype)),
            shape=ir.Shape(place.stored_shape), name=name, base_dir=self.path.parent,
        )  # fmt: skip

    def arrays(self, model: ir.Model) -> dict[str, np.ndarray]:
        """The mapped values of initializers that refer to the file, from where the model says they are."""
        found = {}
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) == self.path.parent:
                shape = tuple(tensor.shape.numpy())
                found[name] = np.frombuffer(
                    self._map, tensor.dtype.numpy(), math.prod(shape), tensor.offset or 0
                ).reshape(shape)
        return found

    def used_wholly(self, model: ir.Model) -> bool:
        """True when every tensor of the file is an initializer of the model."""
        used = {
            value.const_value.offset
            for value in model.graph.initializers.values()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        return used == {place.offset for place in self._places.values()}

    def _adopt(self, module: Any) -> None:
        """Let every parameter and buffer that is in the file be a view of it."""
        adopted: dict[int, Kept] = {}
        for tensor in list(_tensors(module)):
            place = self._places.get(tensor.data_ptr())
            if place is not None and tuple(tensor.shape) == tuple(place.tensor.shape):
                tensor.data = self._view(place)
                adopted[tensor.data_ptr()] = dataclasses.replace(place, tensor=tensor.data)
        self._places = adopted

    def _view(self, place: Kept) -> Any:
        flat = torch.frombuffer(self._map, dtype=place.dtype, count=place.tensor.numel(), offset=place.offset)
        stored = flat.reshape(place.stored_shape)
        return stored.t() if place.turned else stored


def convert(module: Any, old: Any, new: Any) -> None:
    """Turn, in place, the module's parameters and buffers of one dtype into another."""
    for tensor in list(_tensors(module)):
        if tensor.dtype == old:
            tensor.data = tensor.data.to(new)


def main_type(module: Any) -> Any:
    """The floating dtype that most of the module's parameters have; None where none is floating."""
    counts: dict[Any, int] = {}
    for weight in module.parameters():
        if weight.is_floating_point():
            counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.numel()
    return max(counts, key=lambda dtype: counts[dtype]) if counts else None


def wanted_type(name: str, main: Any) -> Any:
    """The torch dtype that weights of dtype `main` are to become; None where they stay as they are.

    Args:
        name: of a torch dtype; `auto`: float32 for bfloat16, in which onnxruntime's CPU provider (the judge
            of every export) has hardly a kernel.
        main: of the module; None where it has no floating weights.
    """
    if main is None or (name == "auto" and main != torch.bfloat16):
        return None
    wanted = torch.float32 if name == "auto" else getattr(torch, name)
    return wanted if wanted != main else None


def weight_size(module: Any, dtype: Any = None) -> int:
    """Bytes of the module's weights, each counted once, after conversion to the dtype."""
    return sum(place.nbytes for place in _laid_out(module, dtype))


def _tensors(module: Any) -> Iterator[Any]:
    """Every parameter and buffer; tied ones that are one object once."""
    yield from module.parameters()
    yield from module.buffers()


def _laid_out(module: Any, dtype: Any) -> Iterator[Kept]:
    """A place for each tensor that is large enough, memory that tensors share being stored once."""
    main = main_type(module)
    alone = _linear_weights(module)
    seen: set[int] = set()
    end = 0
    for tensor in _tensors(module):
        stored = dtype if dtype is not None and tensor.dtype == main else tensor.dtype
        plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and tensor.is_contiguous()
        small = tensor.numel() * stored.itemsize < SMALLEST_EXTERNAL
        if small or not plain or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        place = Kept(tensor.data, stored, -(-end // _PAGE) * _PAGE, id(tensor) in alone)
        end = place.offset + place.nbytes
        yield place


def _linear_weights(module: Any) -> set[int]:
    """The ids of the weights of Linear layers that no other part of the module holds."""
    holders: dict[int, list[bool]] = {}
    memory: dict[int, set[int]] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                linear = type(part) is torch.nn.Linear and name == "weight"
                holders.setdefault(id(weight), []).append(linear)
                memory.setdefault(weight.data_ptr(), set()).add(id(weight))
    shared = {each for ids in memory.values() if len(ids) > 1 for each in ids}
    return {each for each, uses in holders.items() if uses == [True]} - shared


def _content(kept: Sequence[Kept]) -> Iterator[bytes]:
    end = 0
    for place in kept:
        yield b"\0" * (place.offset - end)
        yield from _pieces(place)
        end = place.offset + place.nbytes


def _pieces(place: Kept) -> Iterator[bytes]:
    """The bytes of a tensor as they are stored, converted and turned a piece at a time."""
    whole = place.tensor.t() if place.turned else place.tensor.reshape(-1)
    rows = whole.shape[0]
    step = max(1, _PIECE * rows // max(place.nbytes, 1))
    for start in range(0, rows, step):
        piece = whole[start : start + step].to(place.dtype).contiguous()
        yield piece.reshape(-1).view(torch.uint8).numpy().tobytes()


def _numpy_type(dtype: Any) -> np.dtype[Any]:
    import ml_dtypes

    if dtype == torch.bfloat16:
        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    else:
        found = np.dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    return found
