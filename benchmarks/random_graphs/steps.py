"""Single steps of a random graph: arithmetic of three kinds of types, and moves of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from onnx import helper

from burnish.benchmarks.random_graphs.writer import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOATS,
    HALF,
    INT64,
    INTS,
    Known,
    Writer,
    broadcast,
)

Step = Callable[[Writer, Known], Known | None]
"""Appends nodes; None where the value does not suit."""

_JUMPS: Final = ("Floor", "Sign")
_KEPT: Final = ("Relu", "Neg", "Abs", "Identity", "Tanh", "Sigmoid")
_FLOAT_UNARY: Final = (*_KEPT, *_JUMPS, "Erf", "Softplus")
_MOST: Final = 2**62


def unary(w: Writer, x: Known) -> Known | None:
    """One op of one operand that its type has."""
    if x.dtype == BOOL:
        return w.unary(w.choose(("Not", "Identity")), x)
    if x.dtype in INTS:
        return w.unary(w.choose(("Neg", "Abs", "Identity")), x)
    op = w.choose(_FLOAT_UNARY if x.dtype == FLOAT else _KEPT)
    return None if op in _JUMPS and x.rough else w.unary(op, x)


def keep(w: Writer, x: Known) -> Known:
    """A float step that keeps type and dims, for bodies."""
    if w.chance(0.5):
        return w.unary(w.choose(_KEPT), x)
    other = w.constant(w.choose((0.0, 1.0, 0.5, -2.0)))
    if x.dims and isinstance(x.dims[-1], int) and w.chance(0.5):
        other = w.weight(x.dims[-1])
    if x.dtype == DOUBLE:
        other = w.cast(other, DOUBLE)
    return w.on(w.choose(("Add", "Mul", "Sub")), x, other)


def _partner(w: Writer, x: Known) -> Known | None:
    """Another value of the type that fits, or a constant that is often neutral."""
    if w.chance(0.4):
        number = w.choose((0, 1, 1, 2, 3)) if x.dtype in INTS else w.choose((0.0, 1.0, 0.5, -1.0, 2.0))
        shape = (1,) * int(w.rng.integers(x.rank + 1))
        return w.constant(np.full(shape, number), helper.tensor_dtype_to_np_dtype(x.dtype).type)
    fitting = [y for y in w.values if y.dtype == x.dtype and broadcast(x.dims, y.dims) is not None]
    return w.choose(fitting) if fitting else None


def arithmetic(w: Writer, x: Known) -> Known | None:
    """One op of two operands, broadcast."""
    if x.dtype == BOOL:
        return logic(w, x)
    other = _partner(w, x)
    if other is None:
        return None
    first, second = (x, other) if w.chance(0.5) else (other, x)
    return w.binary(w.choose(("Add", "Sub", "Mul", "Max", "Min")), first, second)


def divide(w: Writer, x: Known) -> Known | None:
    """A quotient whose divisor is not near 0."""
    if x.dtype != FLOAT:
        return None
    other = _partner(w, x)
    if other is None:
        return None
    return w.binary("Div", x, w.on("Add", w.unary("Abs", other), w.constant(1.0)))


def logic(w: Writer, x: Known) -> Known | None:
    """An op of two bools; one is sometimes constant."""
    if x.dtype != BOOL:
        return None
    fitting = [y for y in w.values if y.dtype == BOOL and broadcast(x.dims, y.dims) is not None]
    other = w.constant(w.chance(0.5), np.bool_) if w.chance(0.3) or not fitting else w.choose(fitting)
    return w.binary(w.choose(("And", "Or", "Xor")), x, other)


def compare(w: Writer, x: Known) -> Known | None:
    """A comparison of values that no pass may move."""
    if x.dtype == BOOL or x.rough:
        return None
    other = _partner(w, x)
    if other is None or other.rough:
        return None
    return w.binary(w.choose(("Greater", "Less", "Equal", "LessOrEqual")), x, other, BOOL)


def where(w: Writer, x: Known) -> Known | None:
    """A choice between two values."""
    conditions = [c for c in w.values if c.dtype == BOOL and broadcast(c.dims, x.dims) is not None]
    other = None if x.dtype == BOOL else _partner(w, x)
    if other is None or not conditions:
        return None
    chosen: Known = w.choose(conditions)
    both = broadcast(x.dims, other.dims)
    dims = None if both is None else broadcast(chosen.dims, both)
    if dims is None:
        return None
    first, second = (x, other) if w.chance(0.5) else (other, x)
    return w.make("Where", [chosen, first, second], dims, x.dtype)


def cast(w: Writer, x: Known) -> Known | None:
    """To another type; where that drops digits, only of what no pass may move, and kept in range."""
    if x.dtype not in FLOATS:
        return w.cast(x, w.choose((FLOAT, INT64, x.dtype)))
    if w.chance(0.3):
        return w.cast(x, w.choose((x.dtype, DOUBLE)))
    if x.rough or x.dtype == DOUBLE:
        return w.cast(x, FLOAT)
    if w.chance(0.4):
        return w.cast(w.cast(x, HALF), FLOAT)
    bounded = w.make("Clip", [x, w.constant(-8.0), w.constant(8.0)], x.dims)
    nan = w.make("IsNaN", [bounded], x.dims, BOOL)
    clean = w.make("Where", [nan, w.constant(0.0), bounded], x.dims, FLOAT)
    return w.cast(clean, w.choose(INTS))


def clip(w: Writer, x: Known) -> Known | None:
    """Between constant bounds, one of which may be absent."""
    if x.dtype != FLOAT:
        return None
    inputs = [x.name, w.constant(-0.5).name, w.constant(0.75).name]
    if w.chance(0.3):
        inputs[1] = ""
    elif w.chance(0.3):
        inputs.pop()
    made = Known(w.fresh("clip"), FLOAT, x.dims, x.rough)
    w.add("Clip", inputs, [made])
    return made


def reduce(w: Writer, x: Known) -> Known | None:
    """A reduction over one or two axes."""
    if x.dtype not in (FLOAT, INT64) or not x.dims:
        return None
    count = 1 if x.rank == 1 or w.chance(0.7) else 2
    axes = [int(axis) - x.rank * w.chance(0.5) for axis in w.rng.permutation(x.rank)[:count]]
    ops = ("ReduceSum", "ReduceMax", "ReduceMean") if x.dtype == FLOAT else ("ReduceSum", "ReduceMax")
    return w.reduce(w.choose(ops), x, axes, keepdims=w.chance(0.5))


def linear(w: Writer, x: Known) -> Known | None:
    """A product with a weight, and often a bias."""
    if x.dtype != FLOAT or x.rank < 2 or not isinstance(x.dims[-1], int):
        return None
    out = int(w.choose((4, 8)))
    made = w.matmul(x, w.weight(x.dims[-1], out))
    return w.on("Add", made, w.weight(out)) if w.chance(0.6) else made


def softmax(w: Writer, x: Known) -> Known | None:
    """A Softmax over one axis."""
    if x.dtype != FLOAT or not x.dims:
        return None
    return w.unary("Softmax", x, axis=int(w.rng.integers(-x.rank, x.rank)))


def transpose(w: Writer, x: Known) -> Known | None:
    """In any order, also the same."""
    return w.transpose(x, [int(axis) for axis in w.rng.permutation(x.rank)]) if x.dims else None


def unsqueeze(w: Writer, x: Known) -> Known | None:
    """One axis of size 1 more, or less."""
    if 1 in x.dims and w.chance(0.5):
        axis = x.dims.index(1)
        return w.make("Squeeze", [x, w.ints(axis)], x.dims[:axis] + x.dims[axis + 1 :])
    axis = int(w.rng.integers(x.rank + 1))
    return w.make("Unsqueeze", [x, w.ints(axis)], (*x.dims[:axis], 1, *x.dims[axis:]))


def reshape(w: Writer, x: Known) -> Known | None:
    """To the same shape, by way of its sizes."""
    return w.reshape(x, w.sizes(x), x.dims)


def merge(w: Writer, x: Known) -> Known | None:
    """Two neighbouring axes made one."""
    if x.rank < 2:
        return None
    axis = int(w.rng.integers(x.rank - 1))
    parts, (a, b) = w.sizes(x), x.dims[axis : axis + 2]
    parts[axis : axis + 2] = [w.on("Mul", *parts[axis : axis + 2])]
    merged = a * b if isinstance(a, int) and isinstance(b, int) else f"({a}*{b})"
    return w.reshape(x, parts, (*x.dims[:axis], merged, *x.dims[axis + 2 :]))


def part(w: Writer, x: Known) -> Known | None:
    """An even axis made two."""
    axes = [axis for axis, dim in enumerate(x.dims) if dim in (4, 8)]
    if not axes:
        return None
    axis, parts = int(w.choose(axes)), w.sizes(x)
    half = int(x.dims[axis]) // 2
    parts[axis : axis + 1] = [w.ints(2, half)]
    return w.reshape(x, parts, (*x.dims[:axis], 2, half, *x.dims[axis + 1 :]))


def cut(w: Writer, x: Known) -> Known | None:
    """A Slice of everything, or of a part whose size is known."""
    if not x.dims:
        return None
    axis = int(w.rng.integers(x.rank))
    dim = x.dims[axis]
    if isinstance(dim, int) and dim > 1 and w.chance(0.5):
        first = int(w.rng.integers(dim))
        dims = (*x.dims[:axis], dim - first, *x.dims[axis + 1 :])
        return w.make("Slice", [x, w.ints(first), w.ints(w.choose((dim, _MOST))), w.ints(axis)], dims)
    end = w.size(x, axis) if w.chance(0.5) else w.ints(_MOST)
    return w.make("Slice", [x, w.ints(0), end, w.ints(axis - x.rank * w.chance(0.5))], x.dims)


def reverse(w: Writer, x: Known) -> Known | None:
    """A Slice that goes backwards."""
    if not x.dims:
        return None
    axis = int(w.rng.integers(x.rank))
    return w.make("Slice", [x, w.ints(-1), w.ints(-_MOST), w.ints(axis), w.ints(-1)], x.dims)


def gather(w: Writer, x: Known) -> Known | None:
    """Constant places, or all places by a Range."""
    if not x.dims:
        return None
    axis = int(w.rng.integers(x.rank))
    dim = x.dims[axis]
    if isinstance(dim, int) and dim > 0 and w.chance(0.6):
        places = w.rng.integers(-dim, dim, () if w.chance(0.4) else (int(w.rng.integers(1, 4)),))
        dims = (*x.dims[:axis], *places.shape, *x.dims[axis + 1 :])
        return w.make("Gather", [x, w.constant(places, np.int64)], dims, axis=axis)
    end = w.make("Squeeze", [w.size(x, axis)], ())
    every = w.make("Range", [w.constant(0, np.int64), end, w.constant(1, np.int64)], (dim,))
    return w.make("Gather", [x, every], x.dims, axis=axis)


def expand(w: Writer, x: Known) -> Known | None:
    """To the dims of another value."""
    wider = [y.dims for y in w.values if broadcast(x.dims, y.dims) == y.dims]
    like = [y for y in w.values if y.dims in wider]
    if not like:
        return None
    other: Known = w.choose(like)
    target = w.make("Concat", w.sizes(other), (other.rank,), axis=0) if other.dims else w.ints()
    return w.make("Expand", [x, target], other.dims)


def join(w: Writer, x: Known) -> Known | None:
    """What was split, joined again: in order, or not."""
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int) and dim > 1]
    if not axes or x.dtype == BOOL:
        return None
    axis = int(w.choose(axes))
    dim = int(x.dims[axis])
    sizes = (1, dim - 1)
    halves = [
        Known(w.fresh("split"), x.dtype, (*x.dims[:axis], size, *x.dims[axis + 1 :]), x.rough)
        for size in sizes
    ]
    w.add("Split", [x, w.ints(*sizes)], halves, axis=axis)
    if w.chance(0.3):
        w.values.append(halves[0])
    order = halves if w.chance(0.6) else halves[::-1]
    return w.make("Concat", order, x.dims, axis=axis)


def concat(w: Writer, x: Known) -> Known | None:
    """With another value of the same dims, or with itself."""
    if not x.dims or x.dtype == BOOL:
        return None
    axis = int(w.rng.integers(x.rank))
    other: Known = w.choose([y for y in [*w.values, x] if y.dims == x.dims and y.dtype == x.dtype])
    dim = x.dims[axis]
    double: int | str = 2 * dim if isinstance(dim, int) else f"(2*{dim})"
    return w.make("Concat", [x, other], (*x.dims[:axis], double, *x.dims[axis + 1 :]), axis=axis)


def pad(w: Writer, x: Known) -> Known | None:
    """By nothing, or by something where the size is known."""
    if x.dtype != FLOAT or not x.dims:
        return None
    before, after = [0] * x.rank, [0] * x.rank
    axis = int(w.rng.integers(x.rank))
    dim = x.dims[axis]
    if isinstance(dim, int) and w.chance(0.6):
        after[axis], dim = 1, dim + 1
    return w.make("Pad", [x, w.ints(*before, *after)], (*x.dims[:axis], dim, *x.dims[axis + 1 :]))


def tile(w: Writer, x: Known) -> Known | None:
    """Once, or twice along an axis whose size is known."""
    repeats, dims = [1] * x.rank, list(x.dims)
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int)]
    if not x.dims or x.dtype == BOOL:
        return None
    if axes and w.chance(0.5):
        axis = int(w.choose(axes))
        repeats[axis], dims[axis] = 2, 2 * int(x.dims[axis])
    return w.make("Tile", [x, w.ints(*repeats)], tuple(dims))


def fill(w: Writer, x: Known) -> Known | None:
    """A constant of the shape of a value."""
    shape = w.make("Shape", [x], (x.rank,), INT64)
    return w.make("ConstantOfShape", [shape], x.dims, FLOAT)


def dropout(w: Writer, x: Known) -> Known | None:
    """A Dropout that does nothing, as it is not training."""
    return w.unary("Dropout", x) if x.dtype == FLOAT else None


def widen(w: Writer, x: Known) -> Known | None:
    """Expanded, then joined with what it was expanded to; mostly needless."""
    wider = [y for y in w.values if y.dtype == x.dtype and broadcast(x.dims, y.dims) == y.dims and y.dims]
    if x.dtype == BOOL or not wider:
        return None
    other: Known = w.choose(wider)
    target = w.make("Concat", w.sizes(other), (other.rank,), axis=0)
    wide = w.make("Expand", [x, target], other.dims)
    between = w.unary("Neg", wide) if w.chance(0.4) else wide
    return w.binary(w.choose(("Add", "Mul", "Max")), between, other)


def sequence(w: Writer, x: Known) -> Known | None:
    """One part of a split that goes through a sequence."""
    axes = [axis for axis, dim in enumerate(x.dims) if isinstance(dim, int) and dim > 1]
    if not axes or x.dtype != FLOAT:
        return None
    axis = int(w.choose(axes))
    sizes = (1, int(x.dims[axis]) - 1)
    parts, place = w.fresh("parts"), int(w.rng.integers(2))
    w.nodes.append(helper.make_node("SplitToSequence", [x.name, w.ints(*sizes).name], [parts], axis=axis))
    dims = (*x.dims[:axis], sizes[place], *x.dims[axis + 1 :])
    made = Known(w.fresh("at"), x.dtype, dims, x.rough)
    w.add("SequenceAt", [parts, w.constant(place - 2 * w.chance(0.3), np.int64)], [made])
    return made


def with_itself(w: Writer, x: Known) -> Known | None:
    """One op of the same value twice."""
    return None if x.dtype == BOOL else w.binary(w.choose(("Add", "Mul", "Max", "Sub")), x, x)


def divide_whole(w: Writer, x: Known) -> Known | None:
    """An integer divided by a constant, either of them negative at times; or what is left over."""
    by = w.constant(w.choose((1, 2, -3, 7, -1)), np.int64)
    return w.binary(w.choose(("Div", "Mod")), x, by) if x.dtype == INT64 else None


def halve(w: Writer, x: Known) -> Known | None:
    """Moved in half precision, as whole numbers: onnxruntime's CPU leaves out roundings between Casts."""
    if x.dtype != FLOAT or x.rough:
        return None
    bounded = w.make("Clip", [x, w.constant(-8.0), w.constant(8.0)], x.dims)
    half = w.cast(w.unary("Floor", bounded), HALF)
    for _ in range(int(w.rng.integers(1, 3))):
        moved = w.choose((transpose, unsqueeze, cut, reshape, concat))(w, half)
        half = half if moved is None else moved
        half = w.unary(w.choose(("Neg", "Abs", "Relu", "Identity")), half)
    return w.cast(half, FLOAT)


def gemm(w: Writer, x: Known) -> Known | None:
    """A Gemm of a matrix with a weight; alpha, beta and the third input as they come."""
    if x.dtype != FLOAT or x.rank != 2 or not isinstance(x.dims[1], int):
        return None
    rows, columns, flipped = int(x.dims[1]), int(w.choose((4, 8))), w.chance(0.5)
    weight = w.weight(columns, rows) if flipped else w.weight(rows, columns)
    shapes = ((), (1,), (columns,), (1, columns))
    third = [w.weight(*w.choose(shapes))] if w.chance(0.6) else []
    alpha, beta = (0.5, 2.0) if w.chance(0.5) else (1.0, 1.0)
    inputs, dims = [x, weight, *third], (x.dims[0], columns)
    return w.make("Gemm", inputs, dims, transB=int(flipped), alpha=alpha, beta=beta)


STEPS: Final[tuple[Step, ...]] = (
    unary, unary, arithmetic, arithmetic, arithmetic, divide, logic, compare, where, where, cast, cast, clip,
    reduce, linear, softmax, transpose, transpose, unsqueeze, unsqueeze, reshape, merge, part, cut, cut,
    reverse, gather, gather, expand, join, concat, pad, tile, fill, dropout, widen, sequence, with_itself,
    divide_whole, halve, gemm, gemm,
)  # fmt: skip
