"""GroupNormalization(x)  ->  InstanceNormalization of x by groups, where the target has no kernel for it"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of
from burnish.passes.matching import Scope, candidates
from burnish.passes.shapes import Shape

_BY_CHANNEL: Final = 21  # from this opset on scale and bias are those of channels; of groups before


@final
@dataclasses.dataclass(frozen=True)
class LowerGroupNorm(Pass):
    """Write GroupNormalization as operators that the target has kernels for.

    Reshape to groups, InstanceNormalization, Reshape back, scale and bias. onnxruntime's CPU provider runs
    the operator as a function otherwise, which was measured 1.5 to 2.2 times as slow (1.31.1, one thread);
    LayerNormalization by groups, which would be fewer nodes, takes 1.0 to 2.1 times as long as this. Kept:
    types other than float32, scales that are not constant, and ranks that are not known.
    """

    name: ClassVar[str] = "lower-group-norm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"GroupNormalization"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many norms were written out."""
        if context.target.has_kernel("", "GroupNormalization"):
            return 0
        before, shapes = len(context.rewrites), functools.cache(lambda: context.shapes(model))
        for node, scope in candidates(model, "GroupNormalization"):
            shape = shapes()[node.inputs[0]].shape
            _lower(node, scope, context, shape)
        return len(context.rewrites) - before


def _lower(node: ir.Node, scope: Scope, context: Context, shape: Shape | None) -> None:
    x, groups = node.inputs[0], node.attributes.get_int("num_groups")
    scale, bias = (constant_of(value) for value in node.inputs[1:3])
    why = None
    if x is None or shape is None or len(shape) < 3:
        why = "the rank of what it normalises is not known, or less than 3"
    elif x.dtype != ir.DataType.FLOAT:
        why = "InstanceNormalization is for float32, or the type is not known"
    elif scale is None or bias is None or scale.ndim != 1 or scale.shape != bias.shape:
        why = "its scale and bias are not constant"
    if not context.permit_unless(why, node) or x is None or shape is None:
        return
    if scale is not None and bias is not None and groups is not None:
        new = _Writer(node, scope, x).write(shape, groups, scale, bias)
        scope.replace([node], new, {node.outputs[0]: new[-1].outputs[0]}, LowerGroupNorm.name)


@final
@dataclasses.dataclass(frozen=True)
class _Writer:
    node: ir.Node
    scope: Scope
    x: ir.Value

    def write(self, shape: Shape, groups: int, scale: np.ndarray, bias: np.ndarray) -> list[ir.Node]:
        by_channel = self.scope.opset >= _BY_CHANNEL
        one, nothing = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        inner = (one, nothing) if by_channel else (scale, bias)
        epsilon = self.node.attributes.get_float("epsilon", 1e-5)
        split = self._op("Reshape", self.x, self._constant("groups", np.array([0, groups, -1])))
        weights = [self._constant(name, array) for name, array in zip(("scale", "bias"), inner, strict=True)]
        norm = self._op("InstanceNormalization", split.outputs[0], *weights, epsilon=epsilon)
        target = self._target(shape)
        back = self._op("Reshape", norm.outputs[0], target[-1])
        nodes = [split, norm, *(node for node in (target[0].producer(),) if node is not None), back]
        if not by_channel:
            return nodes
        spread = (-1, *[1] * (len(shape) - 2))
        scaled = self._op("Mul", back.outputs[0], self._constant("factor", scale.reshape(spread)))
        return [
            *nodes,
            scaled,
            self._op("Add", scaled.outputs[0], self._constant("shift", bias.reshape(spread))),
        ]

    def _target(self, shape: Shape) -> Sequence[ir.Value]:
        """The sizes to go back to: known, but for the batch and one more, or read from x."""
        sizes = [0, *(dim.size if dim.size is not None else -1 for dim in shape[1:])]
        if sizes.count(-1) <= 1 and 0 not in sizes[1:]:
            return [self._constant("sizes", np.array(sizes))]
        return [self._op("Shape", self.x).outputs[0]]

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: float) -> ir.Node:
        node = ir.node(op_type, inputs, attributes)
        value = node.outputs[0]
        value.name = self.scope.fresh(f"{self.node.outputs[0].name}_{op_type.lower()}")
        value.dtype = ir.DataType.INT64 if op_type == "Shape" else ir.DataType.FLOAT
        return node

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self.scope.constant(self.node, f"{self.node.outputs[0].name}_{name}", array)
