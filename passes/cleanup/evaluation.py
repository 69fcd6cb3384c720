"""The value of a node whose inputs are all constant, from onnx's reference evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
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
_PLAIN: Final = frozenset({ir.DataType.DOUBLE, ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64})
_EXTREMES: Final = ("ReduceMax", "ReduceMean", "ReduceMin")


def evaluate(node: ir.Node, opset: int) -> Sequence[np.ndarray | None] | None:
    """One array for each output (None for an absent one); None when the node cannot be evaluated.

    The node has no bodies, no reference attributes, and only constant inputs.
    """
    moved = _moved(node)
    if moved is not None:
        return [moved]
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


def _moved(node: ir.Node) -> np.ndarray | None:
    """What numpy alone says at once of the commonest; None for the rest, which is the evaluator's.

    That imports all of its operators when it is first used.
    """
    if node.domain or len(node.outputs) != 1 or node.op_type not in ("Cast", "Reshape", "Transpose"):
        return None
    tensors = [None if value is None else tensor_of(value) for value in node.inputs]
    given = [tensor.numpy() for tensor in tensors if tensor is not None]
    if len(given) != (2 if node.op_type == "Reshape" else 1) or len(given) != len(tensors):
        return None
    try:
        if node.op_type == "Transpose":
            return np.transpose(given[0], node.attributes.get_ints("perm"))
        if node.op_type == "Reshape":
            sizes = given[1]
            return given[0].reshape(sizes) if sizes.ndim == 1 and sizes.all() else None
        return _widened(given[0], node.attributes.get_int("to", 0))
    except (TypeError, ValueError):
        return None


def _widened(array: np.ndarray, to: int) -> np.ndarray | None:
    """A Cast to numbers among which all of `array` are; None for another, where much can be told apart."""
    dtype = ir.DataType(to)
    if dtype not in _PLAIN or array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, dtype.numpy()):
        return None
    return array.astype(dtype.numpy())


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
