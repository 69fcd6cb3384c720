"""The places that int8 can take over: Linear, Conv, lookup tables, and the ops that int8 flows through."""

from __future__ import annotations

import dataclasses
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, constant_of, is_op
from burnish.passes.quantize.numbers import FloatArray

_PACKED: Final = {
    "Attention": "unpack-attention writes them as Linears.",
    "FusedGemm": "quantise before fusing.",
    "FusedConv": "quantise before fusing.",
    "FusedMatMul": "quantise before fusing.",
}
"""Contrib ops that hold weights in a form no QDQ pattern matches, and what to do."""

COPIES: Final = frozenset(
    {
        "DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Ops that only move elements: input and output share one scale."""
JOINS: Final = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"})
"""Ops with an int8 kernel that takes quantised inputs of any scale and rounds its output."""


Pair = tuple[ir.Value, ir.Value]
"""Scale and zero point, as initializers."""


@final
@dataclasses.dataclass(frozen=True)
class Linear:
    """x @ weight (+ bias): a MatMul, a MatMul and its Add, or a Gemm."""

    node: ir.Node
    """The MatMul or Gemm."""
    add: ir.Node | None
    """The Add of the bias of a MatMul."""
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool = False
    """The weight is stored [N, K] (Gemm's transB) instead of [K, N]."""
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that it replaces, in graph order."""
        return (self.node,) if self.add is None else (self.node, self.add)

    @property
    def output(self) -> ir.Value:
        """The value that holds the result."""
        return (self.add or self.node).outputs[0]

    @property
    def axis(self) -> int:
        """The weight's axis of the output features."""
        return 0 if self.transposed else 1

    def weight_array(self) -> FloatArray:
        """The weight as stored, [K, N] or [N, K], times alpha."""
        return np.asarray(_array(self.weight) * np.float32(self.alpha), np.float32)

    def bias_array(self) -> FloatArray | None:
        """The bias [N] times beta, or None."""
        if self.bias is None:
            return None
        features = _array(self.weight).shape[self.axis]
        flat = np.broadcast_to(_array(self.bias).reshape(-1), (features,))
        return np.asarray(flat * np.float32(self.beta), np.float32)


@final
@dataclasses.dataclass(frozen=True)
class Conv:
    """A Conv with constant weight, and the Relu or Clip that its output is only used by."""

    node: ir.Node
    activation: ir.Node | None
    weight: ir.Value
    bias: ir.Value | None

    @property
    def output(self) -> ir.Value:
        """The value that holds the result."""
        return (self.activation or self.node).outputs[0]


def linear_at(node: ir.Node, context: Context) -> Linear | None:
    """The Linear that starts at `node`, if any; near misses go to `context`."""
    if not (is_op(node, "MatMul") or is_op(node, "Gemm")) or len(node.inputs) < 2:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or not is_constant(weight) or _is_integer(weight):
        return None
    if is_constant(x) or (x.shape is not None and len(x.shape) < 2):
        return None
    if why := _unfit(weight, rank=2):
        context.miss(node, why)
        return None
    return _gemm(node, x, weight, context) if node.op_type == "Gemm" else _matmul(node, x, weight)


def _gemm(node: ir.Node, x: ir.Value, weight: ir.Value, context: Context) -> Linear | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    transposed = bool(node.attributes.get_int("transB", 0))
    features = constant_shape(weight)[0 if transposed else 1]
    if node.attributes.get_int("transA", 0):
        context.miss(node, "Gemm with transA has no int8 kernel.")
        return None
    if bias is not None and not (is_constant(bias) and _is_row(bias, features)):
        context.miss(node, "The third input of Gemm is not a constant row.")
        return None
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return Linear(node, None, x, weight, bias, transposed, alpha or 0.0, beta or 0.0)


def _matmul(node: ir.Node, x: ir.Value, weight: ir.Value) -> Linear:
    add = _only_user(node.outputs[0])
    if add is None or not is_op(add, "Add"):
        return Linear(node, None, x, weight, None)
    bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    rank = len(x.shape) if x.shape is not None else 1
    features = constant_shape(weight)[1]
    if bias is None or not is_constant(bias) or bias.dtype != ir.DataType.FLOAT:
        return Linear(node, None, x, weight, None)
    if not _is_row(bias, features) or len(constant_shape(bias)) > max(rank, 1):
        return Linear(node, None, x, weight, None)
    return Linear(node, add, x, weight, bias)


def conv_at(node: ir.Node, context: Context) -> Conv | None:
    """The Conv at `node`, if its weight is constant; near misses go to `context`."""
    if not is_op(node, "Conv"):
        return None
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or not is_constant(weight) or (bias and not is_constant(bias)):
        context.miss(node, "The weight or bias of the Conv is not constant.")
        return None
    if why := _unfit(weight):
        context.miss(node, why)
        return None
    return Conv(node, folded_activation(node), weight, bias)


def folded_activation(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that alone reads the node's output: the rounding of the output can do its work."""
    user = _only_user(node.outputs[0])
    if user is None or not (is_op(user, "Relu") or is_op(user, "Clip")):
        return None
    return user if user.inputs[0] is node.outputs[0] and clip_bounds(user) else None


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Relu or of a Clip with constant bounds; None otherwise."""
    if is_op(node, "Relu"):
        return 0.0, np.inf
    found = [-np.inf, np.inf]
    for side, (index, attribute) in enumerate(((1, "min"), (2, "max"))):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None:
            array = constant_of(value)
            if array is None:
                return None
            found[side] = float(array)
        elif (old := node.attributes.get_float(attribute, None)) is not None:
            found[side] = old
    return found[0], found[1]


def is_activation_matmul(node: ir.Node) -> bool:
    """True for a float MatMul of two computed values, as in attention."""
    if not is_op(node, "MatMul") or all(pair_of(value) for value in node.inputs):
        return False
    return all(
        value is not None and value.dtype in (ir.DataType.FLOAT, None) and not is_constant(value)
        for value in node.inputs
    )


def pair_of(value: ir.Value | None) -> Pair | None:
    """Scale and zero point of an int8 activation seen as float: the output of Q -> DQ."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear") or len(node.inputs) < 3:
        return None
    source, scale, zero = node.inputs[:3]
    quantize = source.producer() if source is not None else None
    if scale is None or zero is None or not is_op(quantize, "QuantizeLinear"):
        return None
    array = constant_of(scale)
    return (scale, zero) if array is not None and array.ndim == 0 else None


def scale_of(pair: Pair) -> float:
    """The scale of a pair as a number."""
    array = constant_of(pair[0])
    return 1.0 if array is None else float(array)


def note_packed(node: ir.Node, context: Context) -> None:
    """Say so where a fused op holds constant weights that cannot be quantised in its form."""
    advice = _PACKED.get(node.op_type) if node.domain == "com.microsoft" else None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if advice and weight is not None and is_constant(weight) and not _is_integer(weight):
        context.miss(node, f"{node.op_type} holds its weights in a fused form; {advice}")


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def is_constant(value: ir.Value) -> bool:
    """True for an initializer or a Constant's output; its numbers are not touched."""
    return not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_floating_point()


def constant_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant; () of anything else."""
    tensor = ir.convenience.get_const_tensor(value)
    return () if tensor is None else tuple(int(size) for size in tensor.shape.numpy())


def _array(value: ir.Value) -> FloatArray:
    array = constant_of(value)
    return np.zeros(0, np.float32) if array is None else array


def _is_row(bias: ir.Value, features: int) -> bool:
    """True for [N], [1, N], ... and a single number: what can be written as one value a column."""
    shape = constant_shape(bias)
    size = int(np.prod(shape))
    return size == 1 or (size == features and shape[-1] == features)


def _unfit(weight: ir.Value, rank: int | None = None) -> str:
    """Why a constant weight cannot be int8; empty when it can."""
    tensor = ir.convenience.get_const_tensor(weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        kind = "not constant" if tensor is None else str(tensor.dtype)
        return f"The weight is {kind}; int8 kernels need a float32 graph."
    if rank is not None and len(tensor.shape) != rank:
        return f"The weight has rank {len(tensor.shape)}; an int8 kernel needs {rank}."
    return "" if tensor.size else "The weight is empty."
