"""A plan written as QuantizeLinear / DequantizeLinear pairs, by the rules of a target.

For onnxruntime's CPU provider (reference/compression.md section 4.1) that is: u8 activations, s8 weights
with their zero points, the bias of a Linear as an int32 DequantizeLinear, no QuantizeLinear after a
Linear, one after a Conv. A value that several int8 nodes read is quantised once. Nodes keep their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, constant_of
from burnish.passes.quantize import find
from burnish.passes.quantize.find import pair_of
from burnish.passes.quantize.numbers import FloatArray, activation_params, weight_scale
from burnish.passes.quantize.plan import Plan, TensorPlan
from burnish.passes.quantize.tables import store_table, table_at
from burnish.passes.quantize.writer import QdqWriter, graph_of, needed_scale
from burnish.target import QdqRules

ANY_RULES: Final = QdqRules(
    "u8", symmetric=False, bias_int32=True, linear_output=False, conv_output=True
)  # for tables, which every target can store


def lower(model: ir.Model, plan: Plan, context: Context) -> int:
    """Write the plan into the main graph; return how many nodes became int8.

    A node whose plan does not hold here (a range is missing, an input of a join is float) stays float,
    and `context.misses` says why.
    """
    rules = context.target.qdq or ANY_RULES
    lowering = _Lowering(QdqWriter(model, rules), context, {tensor.value: tensor for tensor in plan.tensors})
    wanted = {item.value: item for item in plan.nodes if item.mode in ("static", "weight-only")}
    nodes = [node for node in model.graph if node.outputs and node.outputs[0].name in wanted]
    return lowering.run(nodes)


@final
@dataclasses.dataclass(frozen=True)
class _Lowering:
    writer: QdqWriter
    context: Context
    tensors: dict[str, TensorPlan]

    def run(self, nodes: Sequence[ir.Node]) -> int:
        count = sum(self._write(node) for node in nodes)
        self.writer.drop_unused()
        return count

    def _write(self, node: ir.Node) -> bool:
        quiet = Context(self.context.target)
        if table := table_at(node):
            if not self.context.permit(node):
                return False
            store_table(node, table, self.writer)
            return True
        if self.context.target.qdq is None:
            return False
        if linear := find.linear_at(node, quiet):
            return self._linear(linear)
        if conv := find.conv_at(node, quiet):
            return self._conv(conv)
        if find.is_activation_matmul(node):
            return self._activation_matmul(node)
        return self._copy(node) if node.op_type in find.COPIES else self._join(node)

    def _linear(self, linear: find.Linear) -> bool:
        rules, node = self.writer.rules, linear.node
        rounded = [linear.output] if rules.linear_output else []
        if not self._may(node, [linear.x], rounded):
            return False
        bias, holder = linear.bias_array(), linear.add or node
        at = next((i for i, value in enumerate(holder.inputs) if value is linear.bias), -1)
        parts = self._product(node, linear.x, linear.weight_array(), bias)
        node.attributes.pop("alpha", None)
        if bias is not None and rules.bias_int32:
            self.writer.quantize_bias(holder, at, bias, *parts)
            node.attributes.pop("beta", None)
        for value in rounded:
            self.writer.round_output(value, self._bounds(value))
        return True

    def _conv(self, conv: find.Conv) -> bool:
        node, x = conv.node, conv.node.inputs[0]
        rounded = [conv.output] if self.writer.rules.conv_output else []
        if x is None or not self._may(node, [x], rounded):
            return False
        bias = None if conv.bias is None else np.asarray(constant_of(conv.bias), np.float32)
        weight = np.asarray(constant_of(conv.weight), np.float32)
        parts = self._product(node, x, weight, bias)
        if bias is not None and self.writer.rules.bias_int32:
            self.writer.quantize_bias(node, 2, bias, *parts)
        for value in rounded:
            self._round(node, value)
        return True

    def _activation_matmul(self, node: ir.Node) -> bool:
        inputs = [value for value in node.inputs if value is not None]
        if not self._may(node, inputs, []):
            return False
        for value in inputs:
            self.writer.quantize_input(node, value, self._bounds(value))
        return True

    def _join(self, node: ir.Node) -> bool:
        """An op between int8 values: its output is rounded, after a Relu if one follows."""
        output = (find.folded_activation(node) or node).outputs[0]
        if not self._all_int8(node) or not self._may(node, [], [output]):
            return False
        self._round(node, output)
        return True

    def _copy(self, node: ir.Node) -> bool:
        """An op that moves elements: its output has the scale of its input."""
        pair = pair_of(node.inputs[0])
        if pair is None:
            self.context.miss(node, "The input is not int8, so the op stays float.")
        if pair is None or not self.context.permit(node):
            return False
        self.writer.share_output(node.outputs[0], pair)
        return True

    def _product(
        self, node: ir.Node, x: ir.Value, array: FloatArray, bias: FloatArray | None
    ) -> tuple[float, FloatArray]:
        """Quantise the input and the weight of a product; the scales of both."""
        weight = node.inputs[1]
        plan = self.tensors.get((weight.name if weight is not None else None) or "")
        axis, bits = (plan.axis, plan.bits) if plan is not None else (None, 8)
        input_scale = self.writer.quantize_input(node, x, self._bounds(x))
        least = needed_scale(bias, input_scale, channels=axis is not None)
        scale = np.maximum(weight_scale(array, axis, bits), least).astype(np.float32)
        self.writer.quantize_weight(node, array, scale, axis)
        return input_scale, scale

    def _round(self, node: ir.Node, value: ir.Value) -> None:
        """Round a result; a Relu or Clip that the rounding does anyway goes."""
        bounds = self._bounds(value)
        activation = value.producer()
        if activation is not None and activation is not node and self._saturates(activation, bounds):
            source, name = node.outputs[0], value.name
            source.type, source.shape = value.type or source.type, value.shape or source.shape
            value.replace_all_uses_with(source, replace_graph_outputs=True)
            graph_of(activation).remove(activation, safe=True)
            value.name, source.name = source.name, name
            value = source
        self.writer.round_output(value, bounds)

    def _saturates(self, activation: ir.Node, bounds: tuple[float, float]) -> bool:
        """True when all numbers that the int8 range can hold lie inside the Relu's or Clip's bounds."""
        clip = find.clip_bounds(activation)
        scale, zero = activation_params(*bounds, self.writer.rules)
        lowest = 0 if zero.dtype == np.uint8 else -128
        low, high = ((lowest + step - int(zero)) * float(scale) for step in (0, 255))
        return clip is not None and clip[0] <= low and high <= clip[1] * (1 + 1e-6)

    def _all_int8(self, node: ir.Node) -> bool:
        if all(pair_of(value) for value in node.inputs):
            return True
        self.context.miss(node, "An input is not int8, so the op stays float.")
        return False

    def _may(self, node: ir.Node, inputs: Sequence[ir.Value], rounded: Sequence[ir.Value]) -> bool:
        """True when all ranges are known and one more rewrite is permitted."""
        for value in (*(v for v in inputs if pair_of(v) is None), *rounded):
            tensor = self.tensors.get(value.name or "")
            if tensor is None or tensor.low is None:
                self.context.miss(node, f"No calibrated range for {value.name!r}.")
                return False
        return self.context.permit(node)

    def _bounds(self, value: ir.Value) -> tuple[float, float]:
        tensor = self.tensors.get(value.name or "")
        return (tensor.low or 0.0, tensor.high or 0.0) if tensor is not None else (0.0, 0.0)
