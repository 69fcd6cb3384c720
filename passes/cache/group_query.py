"""Writes com.microsoft::GroupQueryAttention in the place of an attention over a cache.

Source: docs/ContribOperators.md of onnxruntime; what its CPU kernel does is measured in
`tests/passes/cache/test_lowered_kv_cache_runs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import onnx_ir as ir

from burnish.passes.cache.layers import Cache, Layer
from burnish.passes.cache.writer import SWAP, Writer
from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_operands import ROWS, trace
from burnish.passes.fusion.attention_pattern import heads_apart
from burnish.passes.fusion.axes import View, forward
from burnish.passes.matching import CONTRIB
from burnish.passes.shapes import Shapes
from burnish.target import Target

_FLAT: Final = ("B S", "N D")
_MULTIPLE: Final = 8


def group_query_obstacle(layer: Layer, shapes: Shapes, target: Target) -> str | None:
    """Why the target's kernel does not take a layer; None: it does."""
    dtype = shapes[layer.key.new].dtype
    if not target.has_kernel(CONTRIB, "GroupQueryAttention"):
        return f"target {target.name} has no {CONTRIB}::GroupQueryAttention"
    if target.kv_cache is None or dtype is None or dtype.numpy().name not in target.kv_cache.dtypes:
        return f"GroupQueryAttention has no kernel for {dtype} on target {target.name}"
    if layer.head_size != layer.value_size:
        return "keys and values have heads of different sizes"
    if layer.head_size % _MULTIPLE:
        return f"GroupQueryAttention takes heads of a multiple of {_MULTIPLE} features, not {layer.head_size}"
    return None


@final
class GroupQuery(Writer):
    """GroupQueryAttention reads rows, and heads that share keys and values as they are."""

    def replace(self, pass_name: str) -> tuple[ir.Value, ir.Value]:
        """See `Writer`."""
        layer = self.layer
        behind, target = self._tail()
        attended, keys, values = self._operator()
        results = {
            target.value: self._shaped(attended, target.labels),
            layer.key.present: keys, layer.value.present: values,
        }  # fmt: skip
        self.put([*layer.nodes, *behind], results, pass_name)
        return keys, values

    def _tail(self) -> tuple[list[ir.Node], View]:
        """The nodes that join heads again, and what they make."""
        nodes: list[ir.Node] = []
        best: tuple[list[ir.Node], View] = ([], self.layer.found.result)
        for view, node in forward(self.layer.found.result, self.shapes):
            nodes.extend([] if node is None else [node])
            if view.labels == ROWS or (view.labels == _FLAT and best[1].labels != ROWS):
                best = list(nodes), view
        return best

    def _operator(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        layer = self.layer
        attributes: dict[str, object] = {
            "num_heads": layer.heads, "kv_num_heads": layer.kv_heads, "scale": layer.scale
        }  # fmt: skip
        attributes |= {"softcap": layer.found.softcap} if layer.found.softcap else {}
        attributes |= {"local_window_size": layer.window} if layer.window else {}
        inputs = [
            self.joined(layer.query), self._new(layer.key), self._new(layer.value),
            layer.key.past, layer.value.past, self.lengths.last(), self.lengths.total(),
        ]  # fmt: skip
        node = ir.node("GroupQueryAttention", inputs, attributes, domain=CONTRIB, num_outputs=3)  # type: ignore[arg-type]
        self.nodes.append(node)
        attended, keys, values = node.outputs
        batch, tokens = self._sizes()
        width = Dim.of(layer.heads * layer.head_size)
        self.settle(attended, "groupqueryattention", (batch, tokens, width))
        self.settle(keys, "present_key", None)
        self.settle(values, "present_value", None)
        return attended, keys, values

    def _sizes(self) -> tuple[Dim, Dim]:
        sizes = {factor.label: factor.size for factor in self.layer.found.result.factors}
        return sizes["B"], sizes["S"]

    def _new(self, cache: Cache) -> ir.Value:
        """New keys or values as rows."""
        view = heads_apart(cache.new, self.shapes[cache.new].shape or ())
        operand = trace(view, self.shapes, scaled=False)
        return self.joined(operand.rows or operand.heads)

    def _shaped(self, rows: ir.Value, labels: Sequence[str]) -> ir.Value:
        """Rows as the graph had them."""
        heads, size = self.layer.heads, self.layer.value_size
        batch, tokens = self._sizes()
        if tuple(labels) == ROWS:
            return rows
        if tuple(labels) == _FLAT:
            return self.reshaped(rows, [-1, heads * size], (batch * tokens, Dim.of(heads * size)))
        apart = (batch, tokens, Dim.of(heads), Dim.of(size))
        split = self.reshaped(rows, [0, 0, heads, size], apart)
        return self.op("Transpose", [split], (apart[0], apart[2], apart[1], apart[3]), SWAP)
