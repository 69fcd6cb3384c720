"""The shape and dtype that each operator gives, for symbolic dims; other operators are asked of onnx."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from burnish.passes.base import tensor_of
from burnish.passes.dims import Dim, total
from burnish.passes.shape_contents import CONTENTS, slice_bounds
from burnish.passes.shape_fallback import ask_onnx
from burnish.passes.shape_layers import LAYERS
from burnish.passes.shape_products import CONTRIB_PRODUCTS, PRODUCTS
from burnish.passes.shape_reshapes import flatten, reshape
from burnish.passes.shape_rules_quantized import QUANTISED, branches, stacked
from burnish.passes.shape_windows import WINDOWS, convolution
from burnish.passes.shapes import Call, Fact

Rule = Callable[[Call], Sequence[Fact]]

_SAME: Final = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitwiseNot", "Ceil",
    "Celu", "Clip", "Cos", "Cosh", "CumSum", "Elu", "Erf", "Exp", "Floor", "Gelu", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "LRN", "LayerNormalization",
    "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Mish", "Neg", "Not",
    "PRelu", "RMSNormalization", "Reciprocal", "Relu", "ReverseSequence", "Round", "ScatterElements",
    "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Sinh",
    "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu",
)  # fmt: skip
_CONTRIB_SAME: Final = (
    "BiasGelu", "FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding",
)  # fmt: skip
_CONTRIB_ATTENTIONS: Final = ("GroupQueryAttention", "MultiHeadAttention")
_ARITHMETIC: Final = (
    "Add", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Max", "Mean", "Min", "Mod", "Mul",
    "Pow", "Sub", "Sum",
)  # fmt: skip
_PREDICATES: Final = (
    "And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Or", "Xor",
)  # fmt: skip
_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip


def infer(call: Call) -> Sequence[Fact]:
    """Facts of the outputs, as many as are known."""
    node = call.node
    if node.domain == "com.microsoft":
        if node.op_type in _CONTRIB_ATTENTIONS:
            return _attended(call)
        if node.op_type in _CONTRIB_SAME:
            return _same(call)
        contrib = CONTRIB_RULES.get(node.op_type)
        return contrib(call) if contrib else []
    if node.domain:
        return []
    rule = RULES.get(node.op_type)
    facts = list(rule(call) if rule else ask_onnx(call))
    content = CONTENTS.get(node.op_type)
    if content and facts and facts[0].rank is not None and facts[0].rank <= 1:
        facts[0] = Fact(facts[0].dtype, facts[0].shape, content(call))
    return facts


def _same(call: Call) -> Sequence[Fact]:
    return [Fact(call.input(0).dtype, call.input(0).shape)]


def _attended(call: Call) -> Sequence[Fact]:
    """[batch, queries, heads * features]; of packed inputs nothing is known."""
    query = call.input(0).shape or ()
    value = call.input(2).shape or ()
    if len(query) != 3 or len(value) not in (3, 4):
        return [Fact(call.input(0).dtype)]
    wide = call.node.op_type == "GroupQueryAttention"  # its values have fewer heads, of the same size
    last = query[-1] if wide else value[-1] * (value[1] if len(value) == 4 else Dim.of(1))
    return [Fact(call.input(0).dtype, (*query[:2], last))]


def _packed(call: Call) -> Sequence[Fact]:
    """onnxruntime's Attention: [batch, positions, heads * features of a value]."""
    x, weight = call.input(0), call.input(1).shape or ()
    if x.rank != 3 or x.shape is None or len(weight) != 2:
        return [Fact(x.dtype)]
    sizes = call.node.attributes.get_ints("qkv_hidden_sizes", None)
    last = Dim.of(sizes[2]) if sizes and len(sizes) == 3 else weight[1].divided_by(Dim.of(3))
    return [Fact(x.dtype, None if last is None else (*x.shape[:2], last))]


def _skip_norm(call: Call) -> Sequence[Fact]:
    """Normalised, mean, inverse deviation, and the sum that is normalised."""
    same = Fact(call.input(0).dtype, call.input(0).shape)
    return [same, Fact(), Fact(), same][: len(call.node.outputs)]


def _broadcast(call: Call) -> Sequence[Fact]:
    shape = call.shapes.broadcast(*(fact.shape for fact in call.inputs))
    return [Fact(call.input(0).dtype, shape)]


def _predicate(call: Call) -> Sequence[Fact]:
    return [Fact(ir.DataType.BOOL, call.shapes.broadcast(*(fact.shape for fact in call.inputs)))]


def _where(call: Call) -> Sequence[Fact]:
    return [Fact(call.input(1).dtype, call.shapes.broadcast(*(fact.shape for fact in call.inputs)))]


def _cast(call: Call) -> Sequence[Fact]:
    return [Fact(ir.DataType(call.node.attributes["to"].as_int()), call.input(0).shape)]


def _cast_like(call: Call) -> Sequence[Fact]:
    return [Fact(call.input(1).dtype, call.input(0).shape)]


def _shape(call: Call) -> Sequence[Fact]:
    rank = call.input(0).rank
    bounds = None if rank is None else shape_bounds(call.node, rank)
    return [Fact(ir.DataType.INT64, None if bounds is None else (Dim.of(len(range(*bounds))),))]


def shape_bounds(node: ir.Node, rank: int) -> tuple[int, int]:
    """First and last (excluded) axis that a Shape node reads from a value of that rank."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    first, last, _ = slice(start, end).indices(rank)
    return first, max(first, last)


def _size(_: Call) -> Sequence[Fact]:
    return [Fact(ir.DataType.INT64, ())]


def _constant(call: Call) -> Sequence[Fact]:
    tensor = tensor_of(call.node.outputs[0])
    if tensor is None:
        return []
    return [Fact(tensor.dtype, tuple(Dim.of(int(size)) for size in tensor.shape.numpy()))]


def _transpose(call: Call) -> Sequence[Fact]:
    data = call.input(0)
    if data.shape is None:
        return [Fact(data.dtype)]
    perm = transpose_perm(call.node, len(data.shape))
    return [Fact(data.dtype, tuple(data.shape[axis] for axis in perm))]


def transpose_perm(node: ir.Node, rank: int) -> tuple[int, ...]:
    """The permutation of a Transpose; without one it reverses the axes."""
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank - 1, -1, -1)
    return tuple(axis % rank for axis in perm)


def _squeeze(call: Call) -> Sequence[Fact]:
    data, axes = call.input(0), call.ints("axes", 1)
    if data.shape is None:
        return [Fact(data.dtype)]
    if axes is not None:
        gone = {axis % len(data.shape) for axis in axes}
    elif call.has(1) or any(dim.size is None for dim in data.shape):
        return [Fact(data.dtype)]
    else:
        gone = {axis for axis, dim in enumerate(data.shape) if dim.size == 1}
    return [Fact(data.dtype, tuple(dim for axis, dim in enumerate(data.shape) if axis not in gone))]


def _unsqueeze(call: Call) -> Sequence[Fact]:
    data, axes = call.input(0), call.ints("axes", 1)
    if data.shape is None or axes is None:
        return [Fact(data.dtype)]
    rank = len(data.shape) + len(axes)
    new, dims = {axis % rank for axis in axes}, iter(data.shape)
    return [Fact(data.dtype, tuple(Dim.of(1) if axis in new else next(dims) for axis in range(rank)))]


def _expand(call: Call) -> Sequence[Fact]:
    data, target = call.input(0), call.input(1)
    return [Fact(data.dtype, call.shapes.broadcast(data.shape, target.content))]


def _tile(call: Call) -> Sequence[Fact]:
    data, repeats = call.input(0), call.input(1).content
    if data.shape is None or repeats is None or len(repeats) != len(data.shape):
        return [Fact(data.dtype)]
    return [Fact(data.dtype, tuple(dim * times for dim, times in zip(data.shape, repeats, strict=True)))]


def _concat(call: Call) -> Sequence[Fact]:
    shapes = [fact.shape for fact in call.inputs if fact.shape is not None]
    axis = call.axis(len(shapes[0]) if shapes else None)
    if axis is None or len(shapes) < len(call.inputs) or any(len(s) != len(shapes[0]) for s in shapes):
        return [Fact(call.input(0).dtype)]
    dims = [min(column, key=_is_vague) for column in zip(*shapes, strict=True)]  # all are one size
    dims[axis] = total(shape[axis] for shape in shapes)
    return [Fact(call.input(0).dtype, tuple(dims))]


def _is_vague(dim: Dim) -> int:
    """0 for a known size, 1 for one that the model names, 2 for one that nothing is known of."""
    made_up = any(name.startswith("?") for names, _ in dim.terms for name in names)
    return 0 if dim.size is not None else 1 + made_up


def _slice(call: Call) -> Sequence[Fact]:
    data, bounds = call.input(0), slice_bounds(call)
    if data.shape is None:
        return [Fact(data.dtype)]
    dims = list(data.shape) if bounds is not None else [call.shapes.fresh() for _ in data.shape]
    for axis, (start, end, step) in (bounds or {}).items():
        dims[axis] = sliced(call, dims[axis], start, end, step)
    return [Fact(data.dtype, tuple(dims))]


def sliced(call: Call, dim: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How much of an axis of size `dim` a Slice keeps."""
    if start.size is not None and end.size is not None and dim.size is not None:
        return Dim.of(len(range(*slice(start.size, end.size, step).indices(dim.size))))
    if step != 1:
        return call.shapes.fresh()
    if (start.size is not None and start.size <= -(2**31)) or start.size == 0:
        if end.size is not None and end.size >= 2**31 - 1:
            return dim
        return call.shapes.least(dim, end) if end.is_at_least(0) else call.shapes.fresh()
    left = dim - start
    to_the_end = end == dim or (end.size is not None and end.size >= 2**31 - 1)
    if to_the_end and start.is_at_least(0) and left.is_at_least(0):
        return left
    return call.shapes.fresh()


def _gather(call: Call) -> Sequence[Fact]:
    data, indices = call.input(0), call.input(1)
    axis = call.axis(data.rank)
    if data.shape is None or indices.shape is None or axis is None:
        return [Fact(data.dtype)]
    return [Fact(data.dtype, data.shape[:axis] + indices.shape + data.shape[axis + 1 :])]


def _gather_elements(call: Call) -> Sequence[Fact]:
    return [Fact(call.input(0).dtype, call.input(1).shape)]


def _gather_nd(call: Call) -> Sequence[Fact]:
    data, indices = call.input(0), call.input(1)
    deep = indices.shape[-1].size if indices.shape else None
    if data.shape is None or indices.shape is None or deep is None:
        return [Fact(data.dtype)]
    batch = call.node.attributes.get_int("batch_dims", 0) or 0
    return [Fact(data.dtype, indices.shape[:-1] + data.shape[batch + deep :])]


def _split(call: Call) -> Sequence[Fact]:
    data, sizes, count = call.input(0), call.ints("split", 1), len(call.node.outputs)
    axis = call.axis(data.rank)
    if data.shape is None or axis is None:
        return [Fact(data.dtype)] * count
    whole = data.shape[axis].size
    if sizes is None and not call.has(1) and whole is not None and whole % count == 0:
        sizes = (whole // count,) * count
    each = [Dim.of(size) for size in sizes] if sizes else [call.shapes.fresh() for _ in range(count)]
    shapes = [(*data.shape[:axis], size, *data.shape[axis + 1 :]) for size in each]
    if data.content is None or not sizes or sum(sizes) != len(data.content):
        return [Fact(data.dtype, shape) for shape in shapes]
    ends = list(itertools.accumulate(sizes))
    parts = zip(shapes, sizes, ends, strict=True)
    return [Fact(data.dtype, shape, data.content[end - size : end]) for shape, size, end in parts]


def _range(call: Call) -> Sequence[Fact]:
    start, limit, step = (call.input(index) for index in range(3))
    if start.content and limit.content and step.ints == (1,):
        length = limit.content[0] - start.content[0]
        if length.is_at_least(0):
            return [Fact(start.dtype, (length,))]
    if start.ints and limit.ints and step.ints and step.ints[0]:
        return [Fact(start.dtype, (Dim.of(len(range(start.ints[0], limit.ints[0], step.ints[0]))),))]
    return [Fact(start.dtype, (call.shapes.fresh(),))]


def _constant_of_shape(call: Call) -> Sequence[Fact]:
    value = call.node.attributes.get("value")
    return [Fact(ir.DataType.FLOAT if value is None else value.as_tensor().dtype, call.input(0).content)]


def _reduce(call: Call) -> Sequence[Fact]:
    data, axes = call.input(0), call.ints("axes", 1)
    if data.shape is None or (axes is None and call.has(1)):
        return [Fact(data.dtype)]
    if not axes and call.node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return [Fact(data.dtype, data.shape)]
    rank = len(data.shape)
    gone = {axis % rank for axis in axes} if axes else set(range(rank))
    if call.node.attributes.get_int("keepdims", 1):
        return [Fact(data.dtype, tuple(Dim.of(1) if i in gone else d for i, d in enumerate(data.shape)))]
    return [Fact(data.dtype, tuple(d for i, d in enumerate(data.shape) if i not in gone))]


RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_ARITHMETIC, _broadcast),
    **dict.fromkeys(_PREDICATES, _predicate),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **PRODUCTS,
    **WINDOWS,
    **LAYERS,
    "Cast": _cast, "CastLike": _cast_like, "Concat": _concat, "Constant": _constant,
    "ConstantOfShape": _constant_of_shape, "Expand": _expand, "Flatten": flatten, "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "If": branches, "Loop": stacked,
    "Range": _range,
    "Reshape": reshape, "Scan": stacked, "Shape": _shape, "Size": _size, "Slice": _slice, "Split": _split,
    "Squeeze": _squeeze, "Tile": _tile, "Transpose": _transpose, "Unsqueeze": _unsqueeze, "Where": _where,
}  # fmt: skip

CONTRIB_RULES: Final[dict[str, Rule]] = {
    **CONTRIB_PRODUCTS, **QUANTISED, "Attention": _packed, "FusedConv": convolution,
    "SkipLayerNormalization": _skip_norm, "SkipSimplifiedLayerNormalization": _skip_norm,
}  # fmt: skip
"""Of onnxruntime's own operators."""
