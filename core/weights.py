"""Where the tensors of a model are: inside it, memory-mapped from a data file, or laid out for a new one."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, NamedTuple, final

import numpy as np
import onnx_ir as ir

from burnish.disk import Chunk
from burnish.errors import ExternalDataError, shown
from burnish.reader import open_inside

SMALLEST_EXTERNAL: Final = 1024
"""Bytes; smaller tensors stay in the model, as shape inference needs those that are shapes."""
_GRAPHS: Final = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_TENSORS: Final = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
_PIECE: Final = 1 << 19  # bytes copied at once: they are still in the processor's cache when they are written
_PAGE: Final = 4096  # what onnx.proto recommends for offsets, so that a reader can memory-map


class Place(NamedTuple):
    """Where a tensor goes in a data file."""

    offset: int
    value: ir.Value
    tensor: ir.TensorProtocol


def dims_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor; onnx-ir makes a new object of it for each question."""
    if type(tensor) is ir.TensorProtoTensor:
        return tuple(tensor.raw.dims)
    return tuple([int(size) for size in tensor.shape.numpy()])


def byte_size(tensor: ir.TensorProtocol) -> int:
    """Bytes of a tensor's values: its `nbytes`, which takes far longer."""
    if tensor.dtype == ir.DataType.STRING:
        return int(tensor.nbytes)
    return -(-math.prod(dims_of(tensor)) * tensor.dtype.bitwidth // 8)


def set_folder(model: ir.Model, folder: Path) -> None:
    """Say where the data files of a model are (in function bodies too, which `ir.load` leaves out)."""

    def locate(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
        return tensor

    _replace(model, locate)


def embed(model: ir.Model, but: Sequence[Place] = ()) -> None:
    """Replace, in place, external tensors (`but` those) by tensors that hold their memory-mapped values."""
    kept = {id(place.tensor) for place in but}

    def inside(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return tensor if id(tensor) in kept else in_memory(tensor)

    _replace(model, inside)


@contextlib.contextmanager
def embedded(model: ir.Model) -> Iterator[None]:
    """`embed` for as long as the block takes; then every tensor is where it was, whatever happened."""
    back: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}

    def inside(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        made = in_memory(tensor)
        if made is not tensor:
            back[id(made)] = made, tensor
        return made

    def outside(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return back[id(tensor)][1] if id(tensor) in back else tensor

    try:
        _replace(model, inside)
        yield
    finally:
        _replace(model, outside)


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same tensor; one in a data file as one that holds its memory-mapped values."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(
        _values(tensor), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name,
        doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props),
    )  # fmt: skip


def _values(tensor: ir.ExternalTensor) -> np.ndarray:
    try:
        return tensor.numpy()
    except OSError as error:
        why = f"can no longer be read ({error.strerror})"
        raise _gone(tensor, str(tensor.location), why, "EXT_MISSING") from error


def has_external(model: ir.Model) -> bool:
    """True when some tensor of the model is in a data file."""
    found = False

    def look(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        nonlocal found
        found = found or isinstance(tensor, ir.ExternalTensor)
        return tensor

    _replace(model, look)
    return found


def weight_bytes(model: ir.Model, *, external: bool = True) -> int:
    """Bytes of all initializers, or of those that are not in a data file."""
    tensors = (value.const_value for value in _initializers(model))
    return sum(
        byte_size(tensor)
        for tensor in tensors
        if tensor is not None and (external or not isinstance(tensor, ir.ExternalTensor))
    )


def lay_out(model: ir.Model) -> list[Place]:
    """Give each initializer that is large enough a place in a data file, in the order of the graph."""
    places: list[Place] = []
    end = 0
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST_EXTERNAL:
            continue
        start = -(-end // _PAGE) * _PAGE
        places.append(Place(start, value, tensor))
        end = start + tensor.nbytes
    return places


def content(places: Sequence[Place]) -> Iterator[Chunk]:
    """The bytes of a data file, one tensor at a time."""
    end = 0
    with DataFiles() as files:
        for place in places:
            if place.offset > end:
                yield b"\0" * (place.offset - end)
            yield from files.bytes_of(place.tensor)
            end = place.offset + place.tensor.nbytes


@final
class DataFiles:
    """Reads tensors, in memory or in data files, of which the last is kept open for the next tensor."""

    def __init__(self) -> None:
        self._place: tuple[str, str] | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def bytes_of(self, tensor: ir.TensorProtocol) -> Iterator[Chunk]:
        """The bytes of a tensor; one that is on disk is copied in pieces, so that it never fills the memory.

        Raises:
            ExternalDataError: EXT_MISSING, EXT_BOUNDS: its data file is gone or cut.
        """
        if not isinstance(tensor, ir.ExternalTensor):
            yield _held(tensor)
        elif tensor.raw is not None:
            yield from _mapped(tensor, tensor.raw)
        elif not tensor.base_dir:
            yield tensor.tobytes()
        else:
            yield from self._read(tensor)

    def _read(self, tensor: ir.ExternalTensor) -> Iterator[bytes]:
        location, left = str(tensor.location), tensor.nbytes
        try:
            file = self._open(str(tensor.base_dir), location)
            file.seek(tensor.offset or 0)
            while left and (chunk := file.read(min(left, _PIECE))):
                left -= len(chunk)
                yield chunk
        except OSError as error:
            why = f"can no longer be read ({error.strerror})"
            raise _gone(tensor, location, why, "EXT_MISSING") from error
        if left:
            raise _gone(tensor, location, f"is now {left} bytes too short", "EXT_BOUNDS")

    def _open(self, folder: str, location: str) -> BinaryIO:
        if self._file is None or self._place != (folder, location):
            if self._file is not None:
                self._file.close()
            self._file, self._place = open_inside(folder, PurePosixPath(location)), (folder, location)
        return self._file


def _held(tensor: ir.TensorProtocol) -> Chunk:
    """The bytes of a tensor in memory; an array that lies there as it is written is not copied."""
    if isinstance(tensor, ir.LazyTensor) and not tensor.cache:
        tensor = tensor.raw()
    if type(tensor) is ir.Tensor and sys.byteorder == "little" and tensor.dtype.bitwidth >= 8:
        array = np.ascontiguousarray(tensor.numpy())  # `tobytes` copies others element by element
        if array.nbytes == tensor.nbytes:
            return array.reshape(-1).view(np.uint8).data
    return tensor.tobytes()


def _mapped(tensor: ir.ExternalTensor, file: mmap.mmap) -> Iterator[bytes]:
    """From the mapping that was made when the tensor was touched; its pages are let go as they are copied."""
    start = tensor.offset or 0
    end = start + tensor.nbytes
    for at in range(start, end, _PIECE):
        yield file[at : min(at + _PIECE, end)]
        forget(file, at, min(at + _PIECE, end))


def forget(file: mmap.mmap, start: int, end: int) -> None:
    """Let go of the pages of a mapped file, where the system can; they are read again when touched."""
    if hasattr(file, "madvise"):
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_DONTNEED, first, end - first)


def _gone(tensor: ir.ExternalTensor, location: str, why: str, code: str) -> ExternalDataError:
    return ExternalDataError(
        f"Tensor '{shown(tensor.name)}' is in '{shown(location)}', which {why}.",
        "The file was changed after the model was loaded; load the model again.",
        code=code,
    )


def refer(places: Sequence[Place], location: str) -> None:
    """Replace, in place, initializers by references to a data file beside the model."""
    for offset, value, tensor in places:
        value.const_value = ir.ExternalTensor(
            location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "", doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )  # fmt: skip


def _graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    todo: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while todo:
        graph = todo.pop(0)
        yield graph
        for node in graph:
            for attribute in node.attributes.data.values():  # the mapping around it is slow
                if attribute.type not in _GRAPHS or attribute.is_ref():
                    continue
                one = attribute.type == ir.AttributeType.GRAPH
                todo.extend([attribute.as_graph()] if one else attribute.as_graphs())


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in _graphs(model):
        if isinstance(graph, ir.Graph):
            yield from graph.initializers.values()


def _replace(model: ir.Model, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put `change(tensor)` in the place of every tensor: of initializers and of attributes."""
    for graph in _graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                before = value.const_value
                after = None if before is None else change(before)
                if after is not before:
                    value.const_value = after
        for node in graph:
            for name, attribute in list(node.attributes.data.items()):
                if attribute.type in _TENSORS and not attribute.is_ref():
                    _replace_in(node, name, attribute, change)


def _replace_in(
    node: ir.Node, name: str, attribute: ir.Attr, change: Callable[[ir.TensorProtocol], ir.TensorProtocol]
) -> None:
    if attribute.type == ir.AttributeType.TENSOR:
        before: ir.TensorProtocol = attribute.value  # `as_tensor` checks its type by a slow protocol
        after = change(before)
        if after is not before:
            node.attributes[name] = ir.AttrTensor(name, after, doc_string=attribute.doc_string)
        return
    tensors = [change(tensor) for tensor in attribute.as_tensors()]
    node.attributes[name] = ir.AttrTensors(name, tensors, doc_string=attribute.doc_string)
