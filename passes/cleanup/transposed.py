"""What an operator does to a tensor whose axes are stored in another order.

A value V is stored as V' when V = Transpose(V', perm). An operator that can work on V' gives its result
stored likewise, with its axes renamed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, tensor_of
from burnish.passes.shapes import Call

Perm = tuple[int, ...]

_UNARY: Final = frozenset(
    {
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu",
        "Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
        "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu",
        "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
        "ThresholdedRelu",
    }
)  # fmt: skip
"""They treat every element of the first input alike; further inputs are scalars."""
_BROADCASTING: Final = frozenset(
    {
        "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
        "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum",
        "Where", "Xor",
    }
)  # fmt: skip
_SOFTMAXES: Final = frozenset({"Hardmax", "LogSoftmax", "Softmax"})
_REDUCTIONS: Final = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
_MAX_COPY: Final = 1 << 16
"""Bytes of a constant that is written once more because something else needs it as it was."""


@final
@dataclasses.dataclass(frozen=True)
class Step:
    """How a node works on stored tensors."""

    perm: Perm
    """Of its outputs."""
    constants: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    """Inputs that it needs instead of those it has."""
    attributes: Mapping[str, object] = dataclasses.field(default_factory=dict)


def step(call: Call, perms: Mapping[int, Perm], wish: Perm) -> Step | None:
    """The node on stored tensors, given the perms of those inputs that are; None when it cannot.

    A node that may choose its result's perm takes `wish`, that of other values around it.
    """
    if call.node.domain or not perms or len(set(perms.values())) > 1:
        return None
    rule = _RULES.get(call.node.op_type)
    perm = next(iter(perms.values()))
    if rule is None or (rule is not _broadcasting and rule is not _concat and set(perms) != {0}):
        return None
    return rule(call, perms, wish if rule is _unsqueeze else perm)


def _unary(_: Call, __: Mapping[int, Perm], perm: Perm) -> Step | None:
    return Step(perm)


def _broadcasting(call: Call, perms: Mapping[int, Perm], perm: Perm) -> Step | None:
    constants = _others(call, perms, perm, broadcast=True)
    return None if constants is None else Step(perm, constants)


def _concat(call: Call, perms: Mapping[int, Perm], perm: Perm) -> Step | None:
    constants, axis = _others(call, perms, perm, broadcast=False), call.axis(len(perm))
    if constants is None or axis is None:
        return None
    return Step(perm, constants, {"axis": perm[axis]})


def _others(
    call: Call, perms: Mapping[int, Perm], perm: Perm, *, broadcast: bool
) -> dict[int, np.ndarray] | None:
    """The inputs that are not stored yet, as constants in the new order; None when one is not constant."""
    constants = {}
    for index, value in enumerate(call.node.inputs):
        fact = call.input(index)
        if index in perms or value is None:
            continue
        if fact.rank is None or fact.rank > len(perm):
            return None
        if broadcast and fact.static is not None and all(size == 1 for size in fact.static):
            continue
        array = _constant(value, call.node)
        if array is None or (not broadcast and array.ndim != len(perm)):
            return None
        ordered = array.reshape([1] * (len(perm) - array.ndim) + list(array.shape))
        constants[index] = np.ascontiguousarray(ordered.transpose(np.argsort(perm)))
    return constants


def _constant(value: ir.Value, user: ir.Node) -> np.ndarray | None:
    tensor = tensor_of(value)
    shared = any(each is not user for each in value.consumers()) or value.is_graph_output()
    if tensor is None or (shared and tensor.nbytes > _MAX_COPY):
        return None
    return constant_of(value)


def _softmax(call: Call, _: Mapping[int, Perm], perm: Perm) -> Step | None:
    axis = call.axis(len(perm), default=-1)
    return None if axis is None or call.opset < 13 else Step(perm, {}, {"axis": perm[axis]})


def _split(call: Call, _: Mapping[int, Perm], perm: Perm) -> Step | None:
    axis = call.axis(len(perm))
    return None if axis is None else Step(perm, {}, {"axis": perm[axis]})


def _slice(call: Call, _: Mapping[int, Perm], perm: Perm) -> Step | None:
    starts = call.input(1).shape
    count = starts[0].size if starts else None
    axes = call.ints("axes", 3) if call.has(3) else (None if count is None else tuple(range(count)))
    renamed = None if axes is None else _renamed(axes, perm)
    return None if renamed is None or call.opset < 10 else Step(perm, {3: _like(call, 3, renamed)})


def _pad(call: Call, _: Mapping[int, Perm], perm: Perm) -> Step | None:
    if call.has(3):
        renamed = _renamed(call.ints("axes", 3), perm)
        return None if renamed is None else Step(perm, {3: _like(call, 3, renamed)})
    pads, rank = call.ints("pads", 1), len(perm)
    if pads is None or len(pads) != 2 * rank or call.opset < 11:
        return None
    order = [perm.index(axis) for axis in range(rank)]
    moved = [pads[axis] for axis in order] + [pads[rank + axis] for axis in order]
    return Step(perm, {1: np.array(moved, np.int64)})


def _reduce(call: Call, _: Mapping[int, Perm], perm: Perm) -> Step | None:
    axes = call.ints("axes", 1)
    if axes is None or not axes:
        return None
    renamed = _renamed(axes, perm)
    if renamed is None:
        return None
    kept = call.node.attributes.get_int("keepdims", 1)
    return _with_axes(call, renamed, perm if kept else _without(perm, renamed))


def _squeeze(call: Call, _: Mapping[int, Perm], perm: Perm) -> Step | None:
    renamed = _renamed(call.ints("axes", 1), perm)
    return None if renamed is None else _with_axes(call, renamed, _without(perm, renamed))


def _unsqueeze(call: Call, perms: Mapping[int, Perm], wish: Perm) -> Step | None:
    axes, perm = call.ints("axes", 1), perms[0]
    rank = len(perm) + len(axes or ())
    if axes is None or any(not -rank <= axis < rank for axis in axes):
        return None
    added = sorted({axis % rank for axis in axes})
    if len(wish) == rank and _without(wish, [wish[axis] for axis in added]) == perm:
        return _with_axes(call, [wish[axis] for axis in added], wish)
    places = [axis for axis in range(rank) if axis not in added]  # of the dims that were there before
    moved = iter(perm)
    return Step(tuple(axis if axis in added else places[next(moved)] for axis in range(rank)))


def _with_axes(call: Call, axes: Sequence[int], perm: Perm) -> Step:
    if "axes" in call.node.attributes:
        return Step(perm, {}, {"axes": list(axes)})
    return Step(perm, {1: np.array(axes, np.int64)})


def _renamed(axes: Sequence[int] | None, perm: Perm) -> list[int] | None:
    rank = len(perm)
    if axes is None or any(not -rank <= axis < rank for axis in axes):
        return None
    return [perm[axis % rank] for axis in axes]


def _without(perm: Perm, gone: Sequence[int]) -> Perm:
    """The order that is left when stored axes are gone."""
    left = [axis for axis in range(len(perm)) if axis not in gone]
    return tuple(left.index(axis) for axis in perm if axis not in gone)


def _like(call: Call, index: int, numbers: Sequence[int]) -> np.ndarray:
    """The numbers in the dtype that the node takes its other bounds in."""
    dtype = call.input(index).dtype if call.has(index) else call.input(1).dtype
    return np.array(numbers, np.int32 if dtype == ir.DataType.INT32 else np.int64)


_Rule = Callable[[Call, Mapping[int, Perm], Perm], Step | None]

_RULES: Final[dict[str, _Rule]] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCASTING, _broadcasting),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_SOFTMAXES, _softmax),
    "Concat": _concat, "Pad": _pad, "Slice": _slice, "Split": _split, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}  # fmt: skip
