"""Which rows of its inputs an operator needs for some rows of its result: it treats the others on their own.

A rule that cannot be sure says None. Rows are along one axis, whose size in the result is known to be that of
the axis in each input that is narrowed with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Final, final

import onnx_ir as ir

from burnish.passes.dims import Dim, product
from burnish.passes.fusion.columns import qkv_widths
from burnish.passes.matching import CONTRIB
from burnish.passes.shape_contents import slice_bounds
from burnish.passes.shape_rules import transpose_perm
from burnish.passes.shapes import Call, Fact, Shape


@final
@dataclasses.dataclass(frozen=True)
class Place:
    """A node of whose result only some rows along an axis are needed."""

    call: Call
    shape: Shape
    """The result's; of every output that is used."""
    axis: int
    """Not negative."""

    @property
    def node(self) -> ir.Node:
        """The node."""
        return self.call.node

    @property
    def size(self) -> Dim:
        """How many rows there are."""
        return self.shape[self.axis]

    @property
    def is_last(self) -> bool:
        """The rows are columns."""
        return self.axis == len(self.shape) - 1

    def has(self, index: int, axis: int) -> bool:
        """True when an input has the rows along that axis."""
        shape = self.call.input(index).shape
        return shape is not None and 0 <= axis < len(shape) and shape[axis] == self.size


@final
@dataclasses.dataclass(frozen=True)
class Move:
    """What a node reads when its result is narrowed."""

    reads: Mapping[int, int]
    """Input -> the axis of it that is narrowed; others are read whole."""
    whole: frozenset[int] = frozenset()
    """Inputs among them that are read whole too."""


Rule = Callable[[Place], Move | None]


def move(place: Place) -> Move | None:
    """What a node reads when its result is narrowed; None where it mixes rows, or may."""
    domain = "" if place.node.domain == "ai.onnx" else place.node.domain
    rule = RULES.get((domain, place.node.op_type))
    return None if rule is None else rule(place)


def keeps_batch(place: Place, found: Move) -> bool:
    """True when rows may differ from one element of axis 0 to the next: both axes stay where they are."""
    if (place.node.domain, place.node.op_type) not in _KEEP_BATCH or place.axis != 1:
        return False
    shapes = [place.call.input(index).shape for index in found.reads]
    return set(found.reads.values()) == {1} and all(s and s[0] == place.shape[0] for s in shapes)


def _all(inputs: Iterable[int], axis: int) -> Move:
    return Move(dict.fromkeys(inputs, axis))


def _unary(place: Place) -> Move | None:
    return _all([0], place.axis) if place.call.input(0).shape == place.shape else None


def _biased(place: Place) -> Move | None:
    """The bias is along the last axis."""
    return None if place.is_last else _unary(place)


def _broadcast(place: Place) -> Move | None:
    return _spread(place, range(len(place.node.inputs)))


def _spread(place: Place, indices: Iterable[int]) -> Move | None:
    """The rows of inputs whose axes are counted from the last one; those without the axis are read whole."""
    reads = {}
    for index in indices:
        shape = place.call.input(index).shape
        if shape is None:
            return None
        axis = place.axis - len(place.shape) + len(shape)
        if axis < 0 or shape[axis].size == 1:
            continue
        if shape[axis] != place.size:
            return None
        reads[index] = axis
    return Move(reads)


def _norm(place: Place) -> Move | None:
    """Over the axes from `axis` on; scale and bias must not reach the rows."""
    first = place.call.axis(len(place.shape), -1)
    inner = len(place.shape) - place.axis - 1
    call = place.call
    vectors = [call.input(index).rank for index in range(1, len(call.inputs)) if call.has(index)]
    if first is None or place.axis >= first or any(rank is None or rank > inner for rank in vectors):
        return None
    return _unary(place)


def _skip_norm(place: Place) -> Move | None:
    """Sum and norm over the last axis; a skip that is spread over the batch is left alone."""
    alike = all(place.call.input(index).shape == place.shape for index in (0, 1))
    return None if place.is_last or not alike else _all([0, 1], place.axis)


def _softmax(place: Place) -> Move | None:
    since_13 = place.call.opset >= 13
    axis = place.call.axis(len(place.shape), -1 if since_13 else 1)
    apart = axis is not None and (place.axis != axis if since_13 else place.axis < axis)
    return _unary(place) if apart else None


def _product(place: Place, second: int = 1) -> Move | None:
    """Rows of the first operand, or matrices of a batch."""
    left, right = place.call.input(0).shape, place.call.input(second).shape
    attributes, behind = place.node.attributes, len(place.shape) - place.axis
    if not left or not right or len(left) < 2 or len(right) < 2 or behind < 2:
        return None
    if attributes.get_int("transBatchA", 0) or attributes.get_int("transBatchB", 0):
        return None
    if behind == 2:
        axis = len(left) - (1 if attributes.get_int("transA", 0) else 2)
        return _all([0], axis) if place.has(0, axis) else None
    return _spread(place, (0, second))


def _gemm(place: Place) -> Move | None:
    """A [rows, inner], or turned; C spreads from the right."""
    attributes, added = place.node.attributes, place.call.input(2)
    axis = 1 if attributes.get_int("transA", 0) else 0
    if place.axis != 0 or not place.has(0, axis) or place.call.input(0).rank != 2:
        return None
    reads = {0: axis}
    if place.call.has(2):
        if added.shape is None or (len(added.shape) == 2 and added.shape[0] not in (place.size, Dim.of(1))):
            return None
        reads |= {2: 0} if len(added.shape) == 2 and added.shape[0] == place.size else {}
    return Move(reads)


def _with_scales(*indices: int) -> Rule:
    """A product of integers; at those inputs are zero point and scale of the first operand: single."""

    def rule(place: Place) -> Move | None:
        single = all(_is_single(place.call.input(index)) for index in indices if place.call.has(index))
        return _product(place) if single else None

    return rule


def _is_single(fact: Fact) -> bool:
    return fact.shape is not None and all(dim.size == 1 for dim in fact.shape)


def _per_tensor(place: Place) -> Move | None:
    return _unary(place) if _is_single(place.call.input(1)) else None


def _in_blocks(place: Place) -> Move | None:
    """MatMulNBits: [..., K] -> [..., N]."""
    return None if place.is_last or not place.has(0, place.axis) else _all([0], place.axis)


def _transpose(place: Place) -> Move | None:
    return _all([0], transpose_perm(place.node, len(place.shape))[place.axis])


def _reshape(place: Place) -> Move | None:
    """The axis is one of the input's: as much lies before it, and it is as long."""
    axis = _same_axis(place.call.input(0).shape, place.shape, place.axis)
    return None if axis is None else _all([0], axis)


def _same_axis(source: Shape | None, result: Shape, axis: int) -> int | None:
    before = product(result[:axis])
    for at, dim in enumerate(source or ()):
        if dim == result[axis] and product((source or ())[:at]) == before:
            return at
    return None


def _concat(place: Place) -> Move | None:
    inputs, axis = range(len(place.node.inputs)), place.call.axis(len(place.shape))
    if axis is None or axis == place.axis or not all(place.has(index, place.axis) for index in inputs):
        return None
    return _all(inputs, place.axis)


def _split(place: Place) -> Move | None:
    axis = place.call.axis(len(place.shape))
    return None if axis is None or axis == place.axis else _all([0], place.axis)


def _slice(place: Place) -> Move | None:
    bounds = slice_bounds(place.call)
    return None if bounds is None or place.axis in bounds else _all([0], place.axis)


def _gather(place: Place) -> Move | None:
    """Along other axes than the indices have: each of those must be in range, also where nothing reads it."""
    axis, indices = place.call.axis(place.call.input(0).rank), place.call.input(1).rank
    if axis is None or indices is None or axis <= place.axis < axis + indices:
        return None
    return _all([0], place.axis if place.axis < axis else place.axis - indices + 1)


def _reduce(place: Place) -> Move | None:
    rank, axes = place.call.input(0).rank, place.call.ints("axes", 1)
    if rank is None or not axes:
        return None
    gone = {axis % rank for axis in axes}
    kept = [axis for axis in range(rank) if axis not in gone]
    axis = place.axis if place.node.attributes.get_int("keepdims", 1) else kept[place.axis]
    return None if axis in gone else _all([0], axis)


def _multi_head(place: Place) -> Move | None:
    """Query [batch, queries, hidden]; a mask or bias on scores is narrowed with it."""
    call, attributes = place.call, place.node.attributes
    unlike = any(call.has(index) for index in range(6, len(place.node.inputs)))
    if place.axis != 1 or len(place.shape) != 3 or not all(call.has(index) for index in (1, 2)) or unlike:
        return None
    if attributes.get_int("unidirectional", 0) or call.input(0).rank != 3 or not place.has(0, 1):
        return None
    return _with_mask(place, {0: 1}, mask=4, bias=5)


def _packed(place: Place) -> Move | None:
    """onnxruntime's Attention reads its input for queries, which are narrowed, and for keys and values."""
    call, attributes = place.call, place.node.attributes
    unlike = any(call.has(index) for index in (4, *range(6, len(place.node.inputs))))
    if place.axis != 1 or len(place.shape) != 3 or unlike or not place.has(0, 1):
        return None
    if attributes.get_int("unidirectional", 0) or attributes.get_int("do_rotary", 0):
        return None
    found = _with_mask(place, {0: 1}, mask=3, bias=5)
    if found is None or call.input(3).rank == 1 or packed_widths(call) is None:
        return None  # lengths of keys are told differently there
    return dataclasses.replace(found, whole=frozenset({0}))


def packed_widths(call: Call) -> list[int] | None:
    """Features of query, key and value in the weight of onnxruntime's Attention, when it is a constant."""
    value = call.node.inputs[1]
    if value is None or value.is_graph_input() or not value.is_initializer():
        return None
    shape = call.input(1).static
    widths = None if shape is None or len(shape) != 2 else qkv_widths(call.node, shape[1])
    return widths if shape and widths and len(widths) == 3 and sum(widths) == shape[1] else None


def _with_mask(place: Place, reads: dict[int, int], mask: int, bias: int) -> Move | None:
    """A mask of keys is read whole; a mask or bias [..., queries, keys] is not."""
    if place.call.has(mask) and (rank := place.call.input(mask).rank) not in (1, 2):
        if rank != 3 or not place.has(mask, 1):
            return None
        reads[mask] = 1
    if place.call.has(bias):
        if place.call.input(bias).rank != 4 or not place.has(bias, 2):
            return None
        reads[bias] = 2
    return Move(reads)


def _attention(place: Place) -> Move | None:
    """The standard one: queries [batch, heads, queries, size] or [batch, queries, hidden]."""
    call, mask = place.call, place.call.input(3).shape
    axis = len(place.shape) - 2 if len(place.shape) == 4 else 1
    unlike = any(call.has(index) for index in range(4, len(place.node.inputs)))
    if place.node.attributes.get_int("is_causal", 0):
        return None
    if place.axis != axis or unlike or not place.has(0, axis):
        return None
    reads = {0: axis}
    if call.has(3):
        if mask is None or not place.has(3, len(mask) - 2):
            return None  # onnxruntime spreads a mask over batch and heads, not over queries
        reads[3] = len(mask) - 2
    return Move(reads)


_UNARY: Final = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu",
    "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh",
)  # fmt: skip
_BROADCAST: Final = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min",
    "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_NORMS: Final = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_SKIP_NORMS: Final = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_REDUCTIONS: Final = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")

RULES: Final[dict[tuple[str, str], Rule]] = {
    **dict.fromkeys([("", name) for name in _UNARY], _unary),
    **dict.fromkeys([(CONTRIB, name) for name in ("Gelu", "QuickGelu")], _unary),
    **dict.fromkeys([(CONTRIB, name) for name in ("BiasGelu", "FastGelu")], _biased),
    **dict.fromkeys([("", name) for name in _BROADCAST], _broadcast),
    **dict.fromkeys([("", name) for name in _NORMS], _norm),
    **dict.fromkeys([(CONTRIB, name) for name in _SKIP_NORMS], _skip_norm),
    **dict.fromkeys([("", name) for name in _REDUCTIONS], _reduce),
    **dict.fromkeys([("", name) for name in ("Softmax", "LogSoftmax")], _softmax),
    ("", "MatMul"): _product, (CONTRIB, "FusedMatMul"): _product, ("", "Gemm"): _gemm,
    ("", "MatMulInteger"): _with_scales(2), (CONTRIB, "MatMulIntegerToFloat"): _with_scales(2, 4),
    (CONTRIB, "MatMulNBits"): _in_blocks,
    ("", "DequantizeLinear"): _per_tensor, ("", "QuantizeLinear"): _per_tensor,
    ("", "Transpose"): _transpose, ("", "Reshape"): _reshape, ("", "Concat"): _concat, ("", "Split"): _split,
    ("", "Slice"): _slice, ("", "Gather"): _gather, ("", "Attention"): _attention,
    (CONTRIB, "MultiHeadAttention"): _multi_head, (CONTRIB, "Attention"): _packed,
}  # fmt: skip

_ON_THE_SPOT: Final = (_unary, _biased, _broadcast, _norm, _skip_norm, _multi_head, _packed)
_KEEP_BATCH: Final = frozenset(key for key, rule in RULES.items() if rule in _ON_THE_SPOT) | {
    ("", "MatMul"), (CONTRIB, "FusedMatMul"),
}  # fmt: skip

_PRODUCTS: Final = (_product, _gemm, _in_blocks, _multi_head, _packed, _attention)
COSTLY: Final = frozenset(key for key, rule in RULES.items() if rule in _PRODUCTS) | {
    ("", "MatMulInteger"), (CONTRIB, "MatMulIntegerToFloat"),
}  # fmt: skip
"""Operators that time is spent in: moving more nodes than one is worth it for them."""

WORTH_WHILE: Final = COSTLY | {
    *((CONTRIB, name) for name in (*_SKIP_NORMS, "Gelu", "QuickGelu", "BiasGelu", "FastGelu")),
    *(("", name) for name in (*_NORMS, "Gelu", "Erf", "Softmax", "LogSoftmax", "Tanh", "Sigmoid", "Exp")),
}  # fmt: skip
"""Operators for one of which rows are read further up; sums and what only moves elements are nearly free."""
