"""Two initializers with the same dtype, shape and bytes  ->  one"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, bodies

Kind = tuple[ir.DataType, tuple[int, ...], bytes]
_LARGE: Final = 1 << 14  # bytes from which on some elements are compared before all are read
_SAMPLE: Final = 64  # elements at each end


@final
@dataclasses.dataclass(frozen=True)
class DeduplicateInitializers(Pass):
    """Keep one of several equal initializers, such as weights that were tied before export.

    Only tensors that share dtype, shape and their first and last elements with another are read whole. An
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
        kinds: defaultdict[Kind, int] = defaultdict(int)
        for graph in (model.graph, *_inside(model.graph)):
            for value in _candidates(graph):
                kinds[_kind(value)] += 1
        self._shared = {kind for kind, count in kinds.items() if count > 1}

    def visit(self, graph: ir.Graph, outer: dict[tuple[Kind, bytes], ir.Value]) -> int:
        """Merge what this graph holds into itself and `outer`, then what its subgraphs hold."""
        kept, merged = dict(outer), 0
        for value in _candidates(graph):
            kind = _kind(value)
            if kind not in self._shared or value.const_value is None:
                continue
            first = kept.setdefault((kind, _digest(value.const_value)), value)
            if first is not value and self._context.permit(value):
                value.replace_all_uses_with(first)
                del graph.initializers[value.name or ""]
                merged += 1
        return merged + sum(self.visit(body, kept) for node in graph for body in bodies(node))


def _candidates(graph: ir.Graph) -> list[ir.Value]:
    values = graph.initializers.values()
    free = (v for v in values if not v.is_graph_input() and not v.is_graph_output())
    return [value for value in free if value.const_value is not None]


def _inside(graph: ir.Graph) -> Iterator[ir.Graph]:
    for node in graph:
        for body in bodies(node):
            yield body
            yield from _inside(body)


def _kind(value: ir.Value) -> Kind:
    """Type, shape and, of a large tensor, some elements: mostly enough to tell two apart."""
    tensor = value.const_value
    if tensor is None:
        return ir.DataType.UNDEFINED, (), b""
    sample = b""
    if tensor.dtype != ir.DataType.STRING and tensor.nbytes > _LARGE:
        flat = tensor.numpy().reshape(-1)
        sample = flat[:_SAMPLE].tobytes() + flat[-_SAMPLE:].tobytes()
    return tensor.dtype, tuple(int(size) for size in tensor.shape.numpy()), sample


def _digest(tensor: ir.TensorProtocol) -> bytes:
    """Equal for equal elements only, to the odds of a sha256 collision."""
    if tensor.dtype == ir.DataType.STRING:
        texts = [bytes(text) for text in tensor.numpy().reshape(-1)]
        return hashlib.sha256(b"".join(b"%d:%s" % (len(text), text) for text in texts)).digest()
    return hashlib.sha256(tensor.tobytes()).digest()
