"""The value of a node whose inputs are all constant, from onnx's reference evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from burnish.passes.base import tensor_of

MOVING: Final = frozenset(
    {
        "Cast", "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike", "Flatten",
        "Gather", "GatherElements", "GatherND", "Identity", "OneHot", "Pad", "Reshape", "ReverseSequence",
        "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze",
        "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that move elements, at the speed of memory."""

EXACT: Final = MOVING | frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
        "BitwiseXor", "Ceil", "Clip", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf",
        "IsNaN", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or",
        "PRelu", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "Relu", "Round", "Sign", "Sqrt", "Sub",
        "TopK", "Unique", "Xor",
    }
)  # fmt: skip
"""Operators whose result is rounded once at most, so that every implementation agrees on it."""

CLOSE: Final = frozenset(
    {
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BlackmanWindow", "Celu", "Cos", "Cosh",
        "CumSum", "Dropout", "Einsum", "Elu", "Erf", "Exp", "Gelu", "Gemm", "HammingWindow", "HannWindow",
        "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MatMul",
        "Mean", "Mish", "Pow", "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Selu", "Sigmoid",
        "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sum", "Tan", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators whose result differs in the last bits: good in float32, too coarse in half precision."""


_FIRST_WITH_ONE_AXIS: Final = 13  # of Softmax, which took all axes from one on for one long row before
_PLAIN: Final = frozenset(
    {ir.DataType.BOOL, ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64}
)
_EXTREMES: Final = ("ReduceMax", "ReduceMean", "ReduceMin")
_FIRST_AT_ONCE: Final = 13  # from which on Slice, Unsqueeze and Squeeze take inputs, not attributes
Given = Sequence[np.ndarray | None]
AtOnce = Callable[[ir.Node, Given], "np.ndarray | np.generic | None"]


def evaluate(node: ir.Node, opset: int) -> Sequence[np.ndarray | None] | None:
    """One array for each output (None for an absent one); None when the node cannot be evaluated.

    The node has no bodies, no reference attributes, and only constant inputs.
    """
    found_at_once = _at_once(node, opset)
    if found_at_once is not None:
        return [found_at_once]
    proto = ir.to_proto(node)
    arrays = {}
    for value in node.inputs:
        tensor = None if value is None else tensor_of(value)
        if value is not None and tensor is not None and value.name:
            arrays[value.name] = tensor.numpy()
    if not _is_agreed(node, opset, arrays.values()):
        return None
    names = [name for name in proto.output if name]
    graph = onnx.helper.make_graph(
        [proto],
        "fold",
        [onnx.helper.make_empty_tensor_value_info(name) for name in arrays],
        [onnx.helper.make_empty_tensor_value_info(name) for name in names],
    )
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(graph, opsets={"": opset}).run(None, arrays)
    except Exception:  # noqa: BLE001 - the evaluator raises whatever numpy does
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in found):
        return None
    results = dict(zip(names, map(np.asarray, found), strict=True))
    return [results.get(name) for name in proto.output]


def _at_once(node: ir.Node, opset: int) -> np.ndarray | None:
    """What numpy alone says of the commonest operators; None for the rest, which is the evaluator's.

    That imports all of its operators when it is first used, and makes a model of each node.
    """
    compute = _AT_ONCE.get(node.op_type)
    if node.domain or compute is None or opset < _FIRST_AT_ONCE or len(node.outputs) != 1:
        return None
    tensors = [None if value is None else tensor_of(value) for value in node.inputs]
    given = [None if tensor is None else tensor.numpy() for tensor in tensors]
    present = [array for array in given if array is not None]
    if not present or any(array.dtype.kind not in "biuf" for array in present):
        return None
    try:
        with np.errstate(all="ignore"):
            found = compute(node, given)
    except (IndexError, TypeError, ValueError):
        return None
    return None if found is None else np.asarray(found)


def _is_agreed(node: ir.Node, opset: int, arrays: Iterable[np.ndarray]) -> bool:
    """False for what the evaluator computes in another way than runtimes do, or than the opset says.

    It knows the newest Softmax and LogSoftmax only, and sorts in Unique in any case; of NaN and of nothing,
    each has its own maximum and mean.
    """
    if node.op_type in ("LogSoftmax", "Softmax"):
        return opset >= _FIRST_WITH_ONE_AXIS
    if node.op_type == "Unique":
        return node.attributes.get_int("sorted", 1) == 1
    if node.op_type in _EXTREMES:
        return not any(
            array.size == 0 or (array.dtype.kind == "f" and np.isnan(array).any()) for array in arrays
        )
    return True


def _cast(node: ir.Node, given: Given) -> np.ndarray | None:
    (data,) = given
    dtype = ir.DataType(node.attributes.get_int("to", 0) or 0)
    return data.astype(dtype.numpy()) if data is not None and dtype in _PLAIN else None


def _transpose(node: ir.Node, given: Given) -> np.ndarray | None:
    (data,) = given
    return None if data is None else np.transpose(data, node.attributes.get_ints("perm"))


def _reshape(_: ir.Node, given: Given) -> np.ndarray | None:
    data, sizes = given
    if data is None or sizes is None or sizes.ndim != 1 or not sizes.all():
        return None
    return data.reshape(sizes)


def _unsqueeze(_: ir.Node, given: Given) -> np.ndarray | None:
    data, axes = given
    return None if data is None or axes is None else np.expand_dims(data, tuple(axes.reshape(-1).tolist()))


def _expand(_: ir.Node, given: Given) -> np.ndarray | None:
    data, sizes = given
    if data is None or sizes is None or sizes.ndim != 1:
        return None
    shape = np.broadcast_shapes(data.shape, tuple(sizes.tolist()))
    return np.broadcast_to(data, shape).copy()


def _concat(node: ir.Node, given: Given) -> np.ndarray | None:
    parts = [array for array in given if array is not None]
    axis = node.attributes.get_int("axis", None)
    if axis is None or len(parts) < len(given) or len({array.dtype for array in parts}) > 1:
        return None
    return np.concatenate(parts, axis)


def _gather(node: ir.Node, given: Given) -> np.ndarray | None:
    data, indices = given
    if data is None or indices is None or indices.dtype.kind != "i":
        return None
    return np.asarray(np.take(data, indices, axis=node.attributes.get_int("axis", 0)))


def _slice(_: ir.Node, given: Given) -> np.ndarray | None:
    data, starts, ends, axes, steps = (*given, None, None)[:5]
    if data is None or starts is None or ends is None or not starts.ndim == ends.ndim == 1:
        return None
    order = range(starts.size) if axes is None else axes.tolist()
    strides = [1] * starts.size if steps is None else steps.tolist()
    cuts = [slice(None)] * data.ndim
    for axis, *bounds in zip(order, starts.tolist(), ends.tolist(), strides, strict=True):
        cuts[axis] = slice(*bounds)
    return np.asarray(data[tuple(cuts)])


def _where(_: ir.Node, given: Given) -> np.ndarray | None:
    condition, x, y = given
    if condition is None or x is None or y is None or condition.dtype != np.bool_ or x.dtype != y.dtype:
        return None
    return np.where(condition, x, y)


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray], kinds: str) -> AtOnce:
    """An operator of two arrays of one dtype, of one of those kinds."""

    def compute(_: ir.Node, given: Given) -> np.ndarray | None:
        a, b = given
        if a is None or b is None or a.dtype != b.dtype or a.dtype.kind not in kinds:
            return None
        return function(a, b)

    return compute


def _unary(function: Callable[[np.ndarray], np.ndarray], kinds: str) -> AtOnce:
    def compute(_: ir.Node, given: Given) -> np.ndarray | None:
        (a,) = given
        return function(a) if a is not None and a.dtype.kind in kinds else None

    return compute


_AT_ONCE: Final[dict[str, AtOnce]] = {
    "Add": _binary(np.add, "iuf"), "Cast": _cast, "Concat": _concat, "Div": _binary(np.divide, "f"),
    "Equal": _binary(np.equal, "biuf"), "Expand": _expand, "Gather": _gather,
    "Mul": _binary(np.multiply, "iuf"), "Not": _unary(np.logical_not, "b"), "Reshape": _reshape,
    "Slice": _slice, "Sqrt": _unary(np.sqrt, "f"), "Sub": _binary(np.subtract, "iuf"),
    "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Where": _where,
}  # fmt: skip
