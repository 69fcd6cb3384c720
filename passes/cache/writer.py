"""What every form of an attention over a cache is written with."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.passes.cache.layers import Layer
from burnish.passes.cache.lengths import Lengths
from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_operands import ROWS
from burnish.passes.fusion.axes import View
from burnish.passes.matching import Scope
from burnish.passes.shapes import Fact, Shape, Shapes

SWAP: Final = {"perm": [0, 2, 1, 3]}
"""[batch, heads, tokens, features] from [batch, tokens, heads, features], and back."""


class Writer(abc.ABC):
    """Writes one layer in the place of the old nodes; lengths are shared by all layers."""

    def __init__(self, layer: Layer, scope: Scope, shapes: Shapes, lengths: Lengths) -> None:
        self.layer, self.scope, self.shapes, self.lengths = layer, scope, shapes, lengths
        self.nodes: list[ir.Node] = []
        self._dtype = shapes[layer.key.new].dtype or ir.DataType.FLOAT
        self._name = layer.found.result.value.name or "attention"

    @abc.abstractmethod
    def replace(self, pass_name: str) -> tuple[ir.Value, ir.Value]:
        """Put the new nodes in the place of the old ones; return the present keys and values."""

    def put(self, old: Sequence[ir.Node], results: Mapping[ir.Value, ir.Value], pass_name: str) -> None:
        """Exchange the nodes; results keep the shapes they had."""
        for before, after in results.items():
            self.shapes[after] = self.shapes[before]
        self.scope.replace(old, self.nodes, results, pass_name)

    def apart(self, view: View) -> ir.Value:
        """[batch, heads, tokens, features], from that or from rows."""
        if view.labels != ROWS:
            return view.value
        b, n, s, d = (next(f.size for f in view.factors if f.label == label) for label in "BNSD")
        split = self.reshaped(view.value, [0, 0, n.size or -1, d.size or -1], (b, s, n, d))
        return self.op("Transpose", [split], (b, n, s, d), SWAP)

    def joined(self, view: View) -> ir.Value:
        """[batch, tokens, heads * features], from that or from heads apart."""
        if view.labels == ROWS:
            return view.value
        b, n, s, d = self.shapes[view.value].shape or ()
        swapped = self.op("Transpose", [view.value], (b, s, n, d), SWAP)
        return self.reshaped(swapped, [0, 0, (n * d).size or -1], (b, s, n * d))

    def reshaped(self, value: ir.Value, sizes: Sequence[int], shape: Shape) -> ir.Value:
        """The value in another shape; 0 keeps a size."""
        anchor = self.layer.found.nodes[0]
        target = self.scope.constant(anchor, f"{self._name}_shape", np.array(sizes, np.int64))
        return self.op("Reshape", [value, target], shape)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Shape | None,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        """The result of a new standard node."""
        node = ir.node(op_type, inputs, dict(attributes or {}))  # type: ignore[arg-type]
        self.nodes.append(node)
        self.settle(node.outputs[0], op_type.lower(), shape)
        return node.outputs[0]

    def settle(self, value: ir.Value, name: str, shape: Shape | None) -> None:
        """Give a new value its name, type and shape."""
        value.name = self.scope.fresh(f"{self._name}_{name}")
        value.type = ir.TensorType(self._dtype)
        value.shape = None if shape is None else ir.Shape([_written(size) for size in shape])
        self.shapes[value] = Fact(self._dtype, shape)


def _written(size: Dim) -> int | str | None:
    """A dim as a model states it."""
    plain = size.name is not None and size.name.isidentifier()
    return size.size if size.size is not None else (size.name if plain else None)
