"""Puts QuantizeLinear and DequantizeLinear into a graph: pairs, int8 weights, int32 biases."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from burnish.passes.base import new_initializer
from burnish.passes.matching import Scope, remove_dead_constants, scopes
from burnish.passes.quantize.find import Pair, pair_of, scale_of
from burnish.passes.quantize.numbers import (
    FloatArray,
    activation_params,
    quantize_bias,
    quantize_weight,
    widen_for_bias,
)
from burnish.target import QdqRules


@final
@dataclasses.dataclass
class QdqWriter:
    """Writes into one model; every name it makes is new there."""

    model: ir.Model
    rules: QdqRules
    _pairs: dict[ir.Value, ir.Value] = dataclasses.field(default_factory=dict)
    _constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = dataclasses.field(default_factory=dict)
    _left: list[ir.Value] = dataclasses.field(default_factory=list)
    _scope: Scope = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._scope = next(scopes(self.model))

    # -- activations -----------------------------------------------------------------------------------

    def quantize_input(self, node: ir.Node, value: ir.Value, bounds: tuple[float, float]) -> float:
        """Make `node` read `value` as int8; its scale. Readers of one value share one pair."""
        pair = pair_of(value)
        if pair is None:
            quantized = self._pairs.get(value) or self._new_pair(node, value, bounds)
            for index, old in enumerate(node.inputs):
                if old is value:
                    node.replace_input_with(index, quantized)
            pair = pair_of(quantized)
        return scale_of(pair) if pair else 1.0

    def round_output(self, value: ir.Value, bounds: tuple[float, float]) -> None:
        """Let all readers of `value` (and the graph's output) see it rounded to int8."""
        self.share_output(value, self.parameters(_name(value), bounds))

    def share_output(self, value: ir.Value, pair: Pair) -> None:
        """Round `value` with the parameters of another value."""
        result = self.take_over(value)
        producer = value.producer()
        if producer is not None:
            graph_of(producer).insert_after(producer, self._qdq(value, result, pair))

    def parameters(self, name: str, bounds: tuple[float, float]) -> Pair:
        """Scale and zero point of a range, as initializers."""
        scale, zero = activation_params(*bounds, self.rules)
        own = new_initializer(self.model.graph, self._scope.fresh(f"{name}_scale"), scale)
        return own, self.constant(f"zero_{zero.dtype}", zero)

    def _new_pair(self, node: ir.Node, value: ir.Value, bounds: tuple[float, float]) -> ir.Value:
        result = ir.Value(name=self._scope.fresh(f"{_name(value)}_dq"), type=value.type, shape=value.shape)
        pair = self.parameters(_name(value), bounds)
        graph_of(node).insert_before(node, self._qdq(value, result, pair))
        self._pairs[value] = result
        return result

    def _qdq(self, value: ir.Value, result: ir.Value, pair: Pair) -> list[ir.Node]:
        name = self._scope.fresh(f"{_name(value)}_q")
        kind = ir.TensorType(pair[1].dtype or ir.DataType.UINT8)
        middle = ir.Value(name=name, type=kind, shape=value.shape)
        return [
            ir.node("QuantizeLinear", [value, *pair], outputs=[middle], name=name),
            ir.node("DequantizeLinear", [middle, *pair], outputs=[result], name=f"{_name(value)}_dq"),
        ]

    def take_over(self, value: ir.Value) -> ir.Value:
        """A new value under the old one's name, for all its readers; the old one gets a new name."""
        result = ir.Value(type=value.type, shape=value.shape)
        value.replace_all_uses_with(result, replace_graph_outputs=True)
        name, value.name = value.name, self._scope.fresh(f"{_name(value)}_float")
        result.name = name
        return result

    # -- constants -------------------------------------------------------------------------------------

    def quantize_weight(self, node: ir.Node, array: FloatArray, scale: FloatArray, axis: int | None) -> None:
        """Make the node's second input a DequantizeLinear of s8."""
        parts = self.stored_weight(_name(node.inputs[1]), array, scale, axis)
        self.replace(node, 1, self._dequantize(node, parts, axis))

    def stored_weight(
        self, name: str, array: FloatArray, scale: FloatArray, axis: int | None
    ) -> list[ir.Value]:
        """The s8 weight, its scale and its zero point, as initializers."""
        return [
            self.constant(f"{name}_s8", quantize_weight(array, scale, axis)),
            self.constant(f"{name}_scale", scale),
            self.constant("zeros_s8", np.zeros(scale.shape, np.int8)),
        ]

    def quantize_bias(
        self, node: ir.Node, index: int, bias: FloatArray, input_scale: float, scale: FloatArray
    ) -> None:
        """Make the node's bias a DequantizeLinear of int32 with scale input_scale * scale."""
        rounded, factor = quantize_bias(bias, input_scale, scale)
        name = _name(node.inputs[index])
        parts = [self.constant(f"{name}_s32", rounded), self.constant(f"{name}_scale", factor)]
        self.replace(node, index, self._dequantize(node, parts, 0 if factor.ndim else None))

    def _dequantize(self, node: ir.Node, inputs: list[ir.Value], axis: int | None) -> ir.Value:
        attributes = {} if axis is None else {"axis": axis}
        name = self._scope.fresh(f"{inputs[0].name}_dq")
        result = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=inputs[0].shape)
        dequantize = ir.node("DequantizeLinear", inputs, attributes, outputs=[result], name=name)
        graph_of(node).insert_before(node, dequantize)
        return result

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """An initializer of the main graph, named `name` or close to it; equal arrays share one."""
        digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
        key = (str(array.dtype), array.shape, digest)
        if key not in self._constants:
            self._constants[key] = new_initializer(self.model.graph, self._scope.fresh(name), array)
        return self._constants[key]

    def replace(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Change one input of a node; the old one is dropped by `drop_unused` if nobody reads it."""
        old = node.inputs[index]
        if old is not None:
            self._left.append(old)
        node.replace_input_with(index, value)

    def drop_unused(self) -> None:
        """Remove the float constants that have lost their last reader."""
        remove_dead_constants(dict.fromkeys(self._left))


def needed_scale(bias: FloatArray | None, input_scale: float, channels: bool) -> FloatArray:
    """The smallest weight scale whose int32 bias does not overflow: 0 without a bias."""
    if bias is None:
        return np.asarray(0.0, np.float32)
    none = np.zeros(bias.shape if channels else (), np.float32)
    return widen_for_bias(none, bias, input_scale)


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or "constant"


def graph_of(node: ir.Node) -> ir.Graph | ir.Function:
    """The graph that holds the node.

    Raises:
        ValueError: none does; the node was removed.
    """
    if node.graph is None:
        raise ValueError(f"Node {node.name!r} is in no graph.")
    return node.graph
