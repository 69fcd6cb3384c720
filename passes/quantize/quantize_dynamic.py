"""x @ w + b  ->  DynamicQuantizeMatMul(x, w_s8, scale, b): int8 with the range of each x found as it runs"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.matching import Scope, scopes
from burnish.passes.quantize import find
from burnish.passes.quantize.exclude import check_exclude, is_excluded
from burnish.passes.quantize.gate import speedups
from burnish.passes.quantize.lower_qdq import lower
from burnish.passes.quantize.numbers import quantize_weight, weight_scale
from burnish.passes.quantize.plan import Granularity, Plan
from burnish.passes.quantize.tables import table_plan

_CONTRIB: Final = "com.microsoft"
_PORTABLE_OPSET: Final = 11  # DynamicQuantizeLinear
_TABLE_OPSET: Final = 13  # DequantizeLinear with an axis

Place = tuple[Scope, find.Linear]
Shared = dict[tuple[ir.Value, ir.Graph], list[ir.Value]]
"""The outputs of the DynamicQuantizeLinear of a value in a graph."""


@final
@dataclasses.dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Quantise Linears (MatMul or Gemm with constant weight, bias included) without calibration data.

    Each run measures the range of the input, so accuracy does not depend on samples. Works in the
    bodies of If, Loop and Scan and in functions too. A large embedding table is stored as int8. Where the
    context can time models, each distinct shape is timed and stays float when int8 is not faster.
    """

    name: ClassVar[str] = "quantize-dynamic"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    weights: Granularity = "channel"
    """One scale for each output feature of a weight, or one for the tensor."""
    exclude: str = ""
    """Regular expression; nodes whose whole name matches stay float."""
    embeddings: bool = True
    """Store large lookup tables as int8, one scale a column."""
    portable: bool = False
    """Write standard ops (DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Add) instead of one contrib op."""
    reduce_range: bool = False
    """7-bit weights: for x86 CPUs without VNNI, whose int8 kernels add pairs of products in 16 bits."""
    min_speedup: float = 1.0
    """A Linear stays float when int8 is less than this many times faster."""

    def __post_init__(self) -> None:
        check_exclude(self.name, self.exclude)

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes became int8."""
        places = self._faster(model, self._places(model, context), context)
        nodes = [node for node in model.graph if not is_excluded(node, self.exclude)]
        opset = model.graph.opset_imports.get("", 1)
        tables = table_plan(nodes) if self.embeddings and opset >= _TABLE_OPSET else Plan()
        return self._write(places, context) + lower(model, tables, context)

    def _places(self, model: ir.Model, context: Context) -> list[Place]:
        """Every Linear that may become int8, with the graph that holds it."""
        found: list[Place] = []
        for scope in scopes(model):
            for node in scope.graph:
                find.note_packed(node, context)
                linear = None if is_excluded(node, self.exclude) else find.linear_at(node, context)
                if linear is not None:
                    found.append((scope, linear))
        if not found:
            return []
        why = "" if context.target.dynamic_int8 else f"{context.target.name} has no dynamic int8 kernel."
        if self.portable and found[0][0].opset < _PORTABLE_OPSET:
            why = f"Opset {found[0][0].opset} has no DynamicQuantizeLinear; convert to 11 or later."
        if why:
            context.miss(found[0][1].node, why)
        return [] if why else found

    def _faster(self, model: ir.Model, places: Sequence[Place], context: Context) -> list[Place]:
        """Those that were not measured to be slower in int8."""

        def rewrite(region: ir.Model) -> None:
            quiet = Context(context.target)
            self._write(self._places(region, quiet), quiet)

        speeds = speedups(model, [linear.nodes for _, linear in places], rewrite, context)
        kept = []
        for (scope, linear), speed in zip(places, speeds, strict=True):
            if speed is None or speed >= self.min_speedup:
                kept.append((scope, linear))
                continue
            why = f"int8 was measured below {self.min_speedup:g} × the speed of float, so it stays float."
            context.miss(linear.node, why)
        return kept

    def _write(self, places: Sequence[Place], context: Context) -> int:
        count, shared = 0, Shared()
        for scope, linear in places:
            if not context.permit(linear.node):
                break
            weight = self._weight(scope, linear)
            new = _standard(scope, linear, weight, shared) if self.portable else _contrib(linear, weight)
            scope.replace(linear.nodes, new, {linear.output: new[-1].outputs[0]}, self.name)
            count += 1
        return count

    def _weight(self, scope: Scope, linear: find.Linear) -> list[ir.Value | None]:
        """The s8 weight [K, N], its scale ([N] or scalar) and the float bias [N] or None."""
        array = linear.weight_array()
        array = np.ascontiguousarray(array.T if linear.transposed else array)
        axis = 1 if self.weights == "channel" else None
        scale = weight_scale(array, axis, 7 if self.reduce_range else 8)
        name, node, bias = linear.weight.name, linear.node, linear.bias_array()
        return [
            scope.constant(node, f"{name}_s8", quantize_weight(array, scale, axis)),
            scope.constant(node, f"{name}_scale", scale),
            None if bias is None else scope.constant(node, f"{name}_bias", bias),
        ]


def _contrib(linear: find.Linear, weight: Sequence[ir.Value | None]) -> list[ir.Node]:
    matrix, scale, bias = weight
    inputs = [linear.x, matrix, scale, *([None, bias] if bias is not None else [])]
    return [ir.node("DynamicQuantizeMatMul", inputs, domain=_CONTRIB)]


def _standard(
    scope: Scope, linear: find.Linear, weight: Sequence[ir.Value | None], shared: Shared
) -> list[ir.Node]:
    matrix, scale, bias = weight
    key = (linear.x, scope.graph)
    if key not in shared:
        quantize = ir.node("DynamicQuantizeLinear", [linear.x], num_outputs=3)
        for value, kind in zip(quantize.outputs, ("u8", "scale", "zero_point"), strict=True):
            value.name = scope.fresh(f"{linear.x.name}_{kind}")
        scope.graph.insert_before(linear.node, quantize)
        shared[key] = list(quantize.outputs)
    x, x_scale, x_zero = shared[key]
    product = ir.node("MatMulInteger", [x, matrix, x_zero])
    cast = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT})
    factor = ir.node("Mul", [x_scale, scale])
    scaled = ir.node("Mul", [cast.outputs[0], factor.outputs[0]])
    nodes = [product, cast, factor, scaled]
    if bias is not None:
        nodes.append(ir.node("Add", [scaled.outputs[0], bias]))
    for node in nodes[:-1]:
        node.outputs[0].name = scope.fresh(f"{linear.output.name}_{node.op_type}")
    return nodes
