"""Writes com.microsoft::GroupQueryAttention in the place of an attention over a cache.

Source: docs/ContribOperators.md of onnxruntime; what its CPU kernel does is measured in
`tests/passes/test_lower_kv_cache.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.cache.layers import Cache, Layer
from burnish.passes.cache.lengths import Lengths
from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_operands import ROWS, trace
from burnish.passes.fusion.attention_pattern import heads_apart
from burnish.passes.fusion.axes import View, forward
from burnish.passes.matching import CONTRIB, Scope
from burnish.passes.shapes import Fact, Shape, Shapes
from burnish.target import Target

_FLAT: Final = ("B S", "N D")
_MULTIPLE: Final = 8
_SWAP: Final = {"perm": [0, 2, 1, 3]}


def obstacle(layer: Layer, shapes: Shapes, target: Target) -> str | None:
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
class GroupQuery:
    """Writes one layer; lengths are shared by all."""

    def __init__(self, layer: Layer, scope: Scope, shapes: Shapes, lengths: Lengths) -> None:
        self._layer, self._scope, self._shapes, self._lengths = layer, scope, shapes, lengths
        self._dtype = shapes[layer.key.new].dtype or ir.DataType.FLOAT
        self._name = layer.found.result.value.name or "attention"
        self._nodes: list[ir.Node] = []
        sizes = {factor.label: factor.size for factor in layer.found.result.factors}
        self._batch, self._tokens = sizes["B"], sizes["S"]
        self.caches: list[tuple[ir.Value, ir.Value]] = []
        """Past and present, of keys and of values."""

    def replace(self, pass_name: str) -> list[ir.Value | None]:
        """Put the operator in the place of the old nodes; return what those read, which may be unused now."""
        layer = self._layer
        behind, target = self._tail()
        old = [layer.value.concat, layer.key.concat, *layer.found.nodes, *behind]
        attended, keys, values = self._operator()
        result = self._shaped(attended, target.labels)
        self._shapes[result] = self._shapes[target.value]
        results = {target.value: result, layer.key.present: keys, layer.value.present: values}
        loose = [value for node in old for value in node.inputs]
        self._scope.replace(old, self._nodes, results, pass_name)
        return loose

    def _tail(self) -> tuple[list[ir.Node], View]:
        """The nodes that join heads again, and what they make."""
        nodes: list[ir.Node] = []
        best: tuple[list[ir.Node], View] = ([], self._layer.found.result)
        for view, node in forward(self._layer.found.result, self._shapes):
            nodes.extend([] if node is None else [node])
            if view.labels == ROWS or (view.labels == _FLAT and best[1].labels != ROWS):
                best = list(nodes), view
        return best

    def _operator(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        layer = self._layer
        attributes: dict[str, object] = {
            "num_heads": layer.heads, "kv_num_heads": layer.kv_heads, "scale": layer.scale
        }  # fmt: skip
        attributes |= {"softcap": layer.found.softcap} if layer.found.softcap else {}
        attributes |= {"local_window_size": layer.window} if layer.window else {}
        inputs = [
            self._joined(layer.query), self._new(layer.key), self._new(layer.value),
            layer.key.past, layer.value.past, self._lengths.last(), self._lengths.total(),
        ]  # fmt: skip
        node = ir.node("GroupQueryAttention", inputs, attributes, domain=CONTRIB, num_outputs=3)  # type: ignore[arg-type]
        self._nodes.append(node)
        attended, keys, values = node.outputs
        self.caches = [(layer.key.past, keys), (layer.value.past, values)]
        self._settle(attended, "groupqueryattention", self._rows_shape(layer.heads * layer.head_size))
        self._settle(keys, "present_key", self._shapes[layer.key.present].shape)
        self._settle(values, "present_value", self._shapes[layer.value.present].shape)
        return attended, keys, values

    def _rows_shape(self, width: int) -> Shape:
        return self._batch, self._tokens, Dim.of(width)

    def _new(self, cache: Cache) -> ir.Value:
        """New keys or values as rows."""
        operand = trace(
            heads_apart(cache.new, self._shapes[cache.new].shape or ()), self._shapes, scaled=False
        )
        return self._joined(operand.rows or operand.heads)

    def _joined(self, view: View) -> ir.Value:
        """[batch, tokens, heads * features]"""
        if view.labels == ROWS:
            return view.value
        b, n, s, d = self._shapes[view.value].shape or ()
        swapped = self._op("Transpose", [view.value], (b, s, n, d), _SWAP)
        return self._reshaped(swapped, [0, 0, (n * d).size or -1], (b, s, n * d))

    def _shaped(self, rows: ir.Value, labels: Sequence[str]) -> ir.Value:
        """Rows as the graph had them."""
        heads, size = self._layer.heads, self._layer.value_size
        if tuple(labels) == ROWS:
            return rows
        if tuple(labels) == _FLAT:
            shape = (self._batch * self._tokens, Dim.of(heads * size))
            return self._reshaped(rows, [-1, heads * size], shape)
        apart = (self._batch, self._tokens, Dim.of(heads), Dim.of(size))
        split = self._reshaped(rows, [0, 0, heads, size], apart)
        return self._op("Transpose", [split], (apart[0], apart[2], apart[1], apart[3]), _SWAP)

    def _reshaped(self, value: ir.Value, sizes: Sequence[int], shape: Shape) -> ir.Value:
        anchor = self._layer.found.nodes[0]
        target = self._scope.constant(anchor, f"{self._name}_shape", np.array(sizes, np.int64))
        return self._op("Reshape", [value, target], shape)

    def _op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Shape,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, dict(attributes or {}))  # type: ignore[arg-type]
        self._nodes.append(node)
        self._settle(node.outputs[0], op_type.lower(), shape)
        return node.outputs[0]

    def _settle(self, value: ir.Value, name: str, shape: Shape | None) -> None:
        value.name = self._scope.fresh(f"{self._name}_{name}")
        value.type = ir.TensorType(self._dtype)
        value.shape = None if shape is None else ir.Shape([_written(size) for size in shape])
        self._shapes[value] = Fact(self._dtype, shape)


def _written(size: Dim) -> int | str | None:
    """A dim as a model states it."""
    plain = size.name is not None and size.name.isidentifier()
    return size.size if size.size is not None else (size.name if plain else None)
