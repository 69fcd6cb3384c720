"""Two initializers with the same dtype, shape and bytes  ->  one"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, bodies
from burnish.passes.matching import MADE_OF
from burnish.reader import open_inside
from burnish.weights import byte_size, dims_of

Kind = tuple[ir.DataType, tuple[int, ...], Hashable]
_LARGE: Final = 1 << 14  # bytes from which on some elements are compared before all are read
_SAMPLE: Final = 512  # bytes at each end and in the middle


@final
@dataclasses.dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Keep one of several equal initializers, such as weights that were tied before export.

    Only tensors that share dtype, shape and some elements with another are read whole; those that a pass puts
    together when they are read are compared by what they are put together from. An
    initializer of a subgraph gives way to an equal one of a graph around it, never the other way round. Kept:
    initializers that are inputs (a caller may replace them) or outputs (names stay).
    """

    name: ClassVar[str] = "deduplicate-initializers"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many initializers were removed."""
        return _Deduplication(model, context).visit(model.graph, {})


@final
class _Deduplication:
    def __init__(self, model: ir.Model, context: Context) -> None:
        self._context = context
        graphs = (model.graph, *_inside(model.graph))
        forms = [(v, t, _form(t)) for graph in graphs for v, t in _candidates(graph)]
        alike = Counter(form for _, _, form in forms)
        with contextlib.ExitStack() as stack:
            files = _Files(stack)
            self._kinds: dict[ir.Value, Kind] = {
                v: (*form, _sample(t, files) if alike[form] > 1 else None) for v, t, form in forms
            }
        counts = Counter(self._kinds.values())
        self._shared = {kind for kind, count in counts.items() if count > 1}

    def visit(self, graph: ir.Graph, outer: dict[tuple[Kind, Hashable], ir.Value]) -> int:
        """Merge what this graph holds into itself and `outer`, then what its subgraphs hold."""
        if not self._shared:
            return 0
        kept, merged = dict(outer), 0
        for value, tensor in _candidates(graph):
            kind = self._kinds[value]
            if kind not in self._shared:
                continue
            first = kept.setdefault((kind, _made_of(tensor) or _digest(tensor)), value)
            if first is not value and self._context.permit(value):
                value.replace_all_uses_with(first)
                del graph.initializers[value.name or ""]
                merged += 1
        return merged + sum(self.visit(body, kept) for node in graph for body in bodies(node))


def _candidates(graph: ir.Graph) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    pairs = [(value, value.const_value) for value in graph.initializers.values()]
    return [
        (value, tensor)
        for value, tensor in pairs
        if tensor is not None and not value.is_graph_input() and not value.is_graph_output()
    ]


def _inside(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        for body in bodies(node):
            yield body
            yield from _inside(body)


@final
class _Files:
    """The data files that samples are read from, opened once each; mapping every tensor takes far longer."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._open: dict[tuple[str, str], BinaryIO] = {}

    def sample(self, tensor: ir.ExternalTensor) -> bytes:
        """Some bytes of a tensor that was not touched yet; none where it cannot be read."""
        key = str(tensor.base_dir), str(tensor.location)
        try:
            if key not in self._open:
                self._open[key] = self._stack.enter_context(open_inside(key[0], PurePosixPath(key[1])))
            return b"".join(
                self._read(self._open[key], (tensor.offset or 0) + at) for at in _places(tensor.nbytes)
            )
        except OSError:
            return b""

    def _read(self, file: BinaryIO, at: int) -> bytes:
        file.seek(at)
        return file.read(_SAMPLE)


def _places(size: int) -> tuple[int, ...]:
    """Where the samples of a tensor of so many bytes start."""
    return 0, size // 2, size - _SAMPLE


def _form(tensor: ir.TensorProtocol) -> tuple[ir.DataType, tuple[int, ...]]:
    return tensor.dtype, dims_of(tensor)


def _sample(tensor: ir.TensorProtocol, files: _Files) -> Hashable:
    """Some elements of a large tensor, beside its type and shape: mostly enough to tell two apart."""
    if tensor.dtype == ir.DataType.STRING:
        return None
    size, made_of = byte_size(tensor), _made_of(tensor)
    if made_of is not None or size <= _LARGE:
        return made_of
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is None and tensor.base_dir:
        return files.sample(tensor)
    data = tensor.tobytes() if tensor.dtype.bitwidth < 8 else _bytes(tensor)
    return b"".join(bytes(data[at : at + _SAMPLE]) for at in _places(size))


def _bytes(tensor: ir.TensorProtocol) -> np.ndarray | bytes:
    """The bytes of a tensor, not copied where its array is in one piece."""
    array = tensor.numpy()
    if not array.flags.c_contiguous or sys.byteorder != "little":
        return tensor.tobytes()
    return array.reshape(-1).view(np.uint8)


def _made_of(tensor: ir.TensorProtocol) -> Hashable:
    """What a large tensor will be put together from, where a pass says so."""
    return tensor.meta.get(MADE_OF) if isinstance(tensor, ir.LazyTensor) and tensor.nbytes > _LARGE else None


def _digest(tensor: ir.TensorProtocol) -> bytes:
    """Equal for equal elements only, to the odds of a sha256 collision."""
    if tensor.dtype == ir.DataType.STRING:
        texts = [bytes(text) for text in tensor.numpy().reshape(-1)]
        return hashlib.sha256(b"".join(b"%d:%s" % (len(text), text) for text in texts)).digest()
    return hashlib.sha256(tensor.tobytes()).digest()
