"""Conv(x * c, w)  ->  Conv(x, w * c);   Conv(x + c, w, b)  ->  Conv(x, w, b + sum(w * c)), without padding"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op, tensor_of
from burnish.passes.fusion.linear import Folded, as_float64, emit, is_linear, why_not_folded
from burnish.passes.matching import Scope, obstacle, scopes
from burnish.passes.shapes import Shapes

_STEPS: Final = frozenset({"Add", "Div", "Mul", "Sub"})
_MAX_CONSTANT: Final = 1 << 20


@final
@dataclasses.dataclass(frozen=True)
class FoldBeforeConv(Pass):
    """Fold constants for each channel before Conv, ConvTranspose, Gemm and MatMul into the weights.

    - Mul and Div by a constant, before any of them;
    - Add and Sub of one, before a Conv that pads nothing (a padded one sees zeros, and not the constant) and
      before a Gemm;
    - x * a + c before a Conv that pads becomes x + c / a, and a goes into the weight.

    Kept: weights that are not constant, or in half precision; results that are used elsewhere too; constants
    that differ by position. It comes after the fusions, which know a norm by its scale.
    """

    name: ClassVar[str] = "fold-before-conv"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many constants were folded."""
        before, shapes = len(context.rewrites), functools.cache(lambda: context.shapes(model))
        for scope in scopes(model):
            for node in list(scope.graph):
                linear: ir.Node | None = node if node.graph is not None and is_linear(node) else None
                while linear is not None:
                    linear = _Folder(linear, scope, context, shapes).fold()
        return len(context.rewrites) - before


@final
@dataclasses.dataclass(frozen=True)
class _Step:
    """`x * factor + shift`; each is [channels] or [1], float64."""

    node: ir.Node
    x: ir.Value
    factor: np.ndarray
    shift: np.ndarray

    @property
    def shifts(self) -> bool:
        return bool(np.any(self.shift != 0))

    @property
    def scales(self) -> bool:
        return bool(np.any(self.factor != 1))


@final
@dataclasses.dataclass(frozen=True)
class _Folder:
    linear: ir.Node
    scope: Scope
    context: Context
    shapes: Callable[[], Shapes]

    def fold(self) -> ir.Node | None:
        """Take in the step before the node; return what stands in its place."""
        step = self._step(self.linear.inputs[0])
        if step is None:
            return None
        if step.shifts and not self._takes_shifts():
            return self._fold_through(step)
        why = why_not_folded(self.linear, scales=step.scales) or obstacle(
            [step.node, self.linear], self.linear.outputs
        )
        folded = None if why is not None else self._folded(step)
        if folded is None:
            why = why or "the constants do not fit each other"
        if not self.context.permit_unless(why, step.node) or folded is None:
            return None
        return self._replace([step.node], step.x, folded, [])

    def _fold_through(self, shift: _Step) -> ir.Node | None:
        """x * a + c  ->  (x + c / a) * a, of which the last goes into the weights."""
        inner = self._step(shift.x)
        if inner is None or inner.shifts or shift.scales or not is_op(self.linear, "Conv"):
            self.context.miss(shift.node, f"the {self.linear.op_type} behind it pads, or has no bias")
            return None
        between = [inner.node, shift.node]
        why = why_not_folded(self.linear, scales=True) or obstacle(
            [*between, self.linear], self.linear.outputs
        )
        folded = None if why is not None else self._folded(inner)
        moved = self._divided(shift, inner)
        if folded is None or moved is None:
            why = why or "the constants do not fit each other"
        if not self.context.permit_unless(why, inner.node) or folded is None or moved is None:
            return None
        name = f"{shift.node.outputs[0].name}_before"
        add = ir.node("Add", [inner.x, self.scope.constant(inner.node, name, moved)])
        value, old = add.outputs[0], shift.node.outputs[0]
        value.name, value.type, value.shape = self.scope.fresh(name), old.type, old.shape
        return self._replace(between, value, folded, [add])

    def _replace(self, gone: list[ir.Node], x: ir.Value, folded: Folded, more: list[ir.Node]) -> ir.Node:
        new = emit(self.linear, folded, self.scope)
        new.replace_input_with(0, x)
        results = {self.linear.outputs[0]: new.outputs[0]}
        self.scope.replace([*gone, self.linear], [*more, new], results, FoldBeforeConv.name)
        return new

    def _step(self, value: ir.Value | None) -> _Step | None:
        node = None if value is None else value.producer()
        if node is None or node.domain or node.op_type not in _STEPS or self._channels() is None:
            return None
        for place in (0, 1):
            x, constant = node.inputs[place], node.inputs[1 - place]
            array = constant_of(constant, _MAX_CONSTANT)
            row = None if x is None or array is None else self._row(array, x)
            if x is not None and row is not None and tensor_of(x) is None:
                return _read(node, place, x, row)
        return None

    def _row(self, array: np.ndarray, x: ir.Value) -> np.ndarray | None:
        """The constant as [channels] or [1]; None when it is something else, or spreads x."""
        count, rank = self._channels(), self._rank()
        if array.dtype.kind != "f" or array.size not in (1, count) or (rank and array.ndim > rank):
            return None
        fact = self.shapes()[x]
        if array.ndim > 1 and (fact.rank is None or fact.rank < array.ndim):
            return None
        if array.size > 1:
            axis = -(rank - 1) if _is_conv(self.linear) else -1
            wide = array.reshape([1] * (-axis - array.ndim) + list(array.shape))
            if wide.shape[axis] != array.size or fact.shape is None or len(fact.shape) < -axis:
                return None
            if fact.shape[axis].size != count:
                return None
        return array.astype(np.float64).reshape(-1)

    def _rank(self) -> int:
        """Of the input; 0 where it may be any."""
        weight = _weight(self.linear)
        return 0 if is_op(self.linear, "MatMul") or weight is None else weight.ndim

    def _channels(self) -> int | None:
        """Of the input."""
        linear, weight = self.linear, _weight(self.linear)
        if weight is None:
            return None
        if is_op(linear, "Conv"):
            return int(weight.shape[1]) * (linear.attributes.get_int("group", 1) or 1)
        return int(weight.shape[1 if linear.attributes.get_int("transB", 0) else 0])

    def _takes_shifts(self) -> bool:
        attributes = self.linear.attributes
        if is_op(self.linear, "Conv"):
            own = attributes.get_string("auto_pad", "NOTSET")
            return own == "VALID" or (own == "NOTSET" and not any(attributes.get_ints("pads", ()) or ()))
        return is_op(self.linear, "Gemm")

    def _folded(self, step: _Step) -> Folded | None:
        """What the node needs to take the step too."""
        original = _weight(self.linear)
        if original is None:
            return None
        weight, factor = original.astype(np.float64), self._spread(step.factor, original)
        bias = None
        if step.shifts:
            given = self.linear.inputs[2] if len(self.linear.inputs) > 2 else None
            alpha, beta = (self.linear.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
            axes = (*range(1, weight.ndim),) if is_op(self.linear, "Conv") else self._input_axis()
            total = np.sum(weight * self._spread(step.shift, original), axis=axes)
            bias = (as_float64(given) * beta + alpha * total).astype(original.dtype)
        with np.errstate(over="ignore"):  # what comes out is looked at
            scaled = (weight * factor).astype(original.dtype) if step.scales else None
        folded = Folded(scaled, bias)
        return folded if (step.scales or step.shifts) and folded.is_finite() else None

    def _input_axis(self) -> int:
        return 1 if self.linear.attributes.get_int("transB", 0) else 0

    def _spread(self, row: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """A number for each channel of the input, in the shape that multiplies with the weight."""
        if row.size == 1:
            return row.reshape([1] * weight.ndim)
        behind = [1] * (weight.ndim - 2)
        if is_op(self.linear, "Conv"):
            group = self.linear.attributes.get_int("group", 1) or 1
            each = row.reshape(group, weight.shape[1])
            return np.repeat(each, weight.shape[0] // group, axis=0).reshape(*weight.shape[:2], *behind)
        return row.reshape(1, -1) if self._input_axis() else row.reshape(-1, 1, *behind)

    def _divided(self, shift: _Step, scale: _Step) -> np.ndarray | None:
        """The constant of `shift` as it is before `scale`."""
        original = _weight(self.linear)
        if original is None or np.any(scale.factor == 0):
            return None
        with np.errstate(over="ignore"):
            row = (shift.shift / scale.factor).astype(original.dtype)
        shape = [-1, *[1] * (original.ndim - 2)] if row.size > 1 else []
        return np.asarray(row.reshape(shape)) if np.isfinite(row).all() else None


def _is_conv(node: ir.Node) -> bool:
    """True for the operators with the channels on the second axis."""
    return is_op(node, "Conv") or is_op(node, "ConvTranspose")


def _weight(linear: ir.Node) -> np.ndarray | None:
    weight = constant_of(linear.inputs[1])
    if weight is None or weight.ndim < 2 or (weight.ndim > 2 and not _is_conv(linear)):
        return None
    return None if linear.attributes.get_int("transA", 0) else weight


def _read(node: ir.Node, place: int, x: ir.Value, row: np.ndarray) -> _Step | None:
    one, nothing = np.ones(1), np.zeros(1)
    match node.op_type:
        case "Add":
            return _Step(node, x, one, row)
        case "Sub":
            return _Step(node, x, one, -row) if place == 0 else _Step(node, x, -one, row)
        case "Mul":
            return _Step(node, x, row, nothing)
        case _:
            fine = place == 0 and bool(np.all(row != 0))
            return _Step(node, x, 1 / row, nothing) if fine else None
