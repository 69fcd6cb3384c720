"""Writes TensorScatter and the standard Attention of opset 24 in the place of an attention over a cache.

Source: the ONNX operator specification, TensorScatter-24 and Attention-24. A row's new tokens, padding on
the right included, are written behind its past; causal over what a row then has, a token sees its past and
the new ones before it. Padding comes after all of them, and the next token is written over it.
"""

from __future__ import annotations

from typing import Final, final

import onnx_ir as ir

from burnish.passes.cache.layers import Cache, Layer
from burnish.passes.cache.writer import Writer
from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_operands import ROWS
from burnish.passes.fusion.attention_pattern import heads_apart
from burnish.passes.fusion.axes import View
from burnish.passes.shapes import Shapes
from burnish.target import Target

_OPSET: Final = 24
_DTYPES: Final = frozenset({"float32", "float16"})


def tensor_scatter_obstacle(layer: Layer, shapes: Shapes, target: Target, opset: int) -> str | None:
    """Why a layer cannot be written like that; None: it can."""
    dtype = shapes[layer.key.new].dtype
    if opset < _OPSET:
        return f"TensorScatter is of opset {_OPSET}, and the model of {opset}: export it with that opset"
    if not all(target.has_kernel("", name) for name in ("TensorScatter", "Attention")):
        return f"target {target.name} has no TensorScatter or Attention"
    if dtype is None or dtype.numpy().name not in _DTYPES:
        return f"the standard Attention has no kernel for {dtype} that was tried"
    return None


@final
class TensorScatter(Writer):
    """Attention reads heads apart, and heads that share keys and values as they are."""

    def replace(self, pass_name: str) -> tuple[ir.Value, ir.Value]:
        """See `Writer`."""
        layer, found = self.layer, self.layer.found
        keys, values = self._written(layer.key), self._written(layer.value)
        query = self.apart(layer.query)
        attributes: dict[str, object] = {"is_causal": 1, "scale": layer.scale}
        attributes |= {"softcap": found.softcap} if found.softcap else {}
        window = None if layer.window is None else self.lengths.window(layer.window, layer.key.past)
        inputs = [query, keys, values, window, None, None, self.lengths.filled()]
        shape = tuple(_size(found.result, label) for label in "BNSD")
        result = self.op("Attention", inputs, shape, attributes)
        if found.result.labels == ROWS:
            result = self.joined(heads_apart(result, shape))
        results = {found.result.value: result, layer.key.present: keys, layer.value.present: values}
        self.put(layer.nodes, results, pass_name)
        return keys, values

    def _written(self, cache: Cache) -> ir.Value:
        inputs = [cache.past, cache.new, self.lengths.written()]
        return self.op("TensorScatter", inputs, None, {"axis": 2})


def _size(view: View, label: str) -> Dim:
    return next(factor.size for factor in view.factors if factor.label == label)
