"""What fusions look for, planted in a random graph: as it should be, or nearly.

A near miss has another number, another axis, operands of another shape, or an inner value that is used
elsewhere too. It is as valid a graph as the other: an optimiser may fuse it only if that is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from burnish.benchmarks.random_graphs.linear_patterns import flattened, stacked, turned
from burnish.benchmarks.random_graphs.plan import HEADS, NEAR, WIDTH, Plan
from burnish.benchmarks.random_graphs.writer import BOOL, FLOAT, Known, MisfitError, Writer

_LAYER_NORM: Final = 17  # is an op from here on
_MOST: Final = 2**63 - 1
_LOWEST: Final = float(np.finfo(np.float32).min)


def _suits(x: Known) -> bool:
    return x.dtype == FLOAT and x.rank >= 2 and x.dims[-1] == WIDTH


def gelu(p: Plan, x: Known) -> Known:
    """By erf, in one of the orders that exporters write, often behind a bias."""
    w = p.w
    if w.chance(0.4) and x.dims and isinstance(x.dims[-1], int):
        x = p.either("Add", x, p.vector(x.dims[-1]))
    inside = (
        w.on("Div", x, p.number(math.sqrt(2)))
        if w.chance(0.5)
        else p.either("Mul", x, p.number(math.sqrt(0.5)))
    )
    more = p.either("Add", w.unary("Erf", inside), p.number(1.0))
    if w.chance(0.5):
        return p.either("Mul", p.either("Mul", x, more), p.number(0.5))
    return p.either("Mul", p.either("Mul", x, p.number(0.5)), more)


def tanh_gelu(p: Plan, x: Known) -> Known:
    """By tanh."""
    w = p.w
    cube = w.on("Pow", x, p.number(3.0)) if w.chance(0.5) else w.on("Mul", w.on("Mul", x, x), x)
    inside = p.either(
        "Mul", p.either("Add", x, p.either("Mul", cube, p.number(0.044715))), p.number(math.sqrt(2 / math.pi))
    )
    more = p.either("Add", w.unary("Tanh", inside), p.number(1.0))
    return p.either("Mul", p.either("Mul", x, p.number(0.5)), more)


def quick_gelu(p: Plan, x: Known) -> Known:
    """By a sigmoid, of x or of x times a number."""
    inside = p.either("Mul", x, p.number(1.702)) if p.w.chance(0.5) else x
    return p.either("Mul", x, p.w.unary("Sigmoid", inside))


def _inverse(p: Plan, x: Known, variance: Known, epsilon: float) -> Known:
    w = p.w
    root = w.unary("Sqrt", p.either("Add", variance, p.number(epsilon)))
    return w.on("Div", x, root) if w.chance(0.5) else p.either("Mul", x, w.unary("Reciprocal", root))


def _square(p: Plan, x: Known) -> Known:
    return p.w.on("Pow", x, p.number(2.0)) if p.w.chance(0.5) else p.w.on("Mul", x, x)


def layer_norm(p: Plan, x: Known) -> Known:
    """Written out, with or without scale and shift, often of a sum."""
    w = p.w
    x = _sum(p, x)
    axis = p.axis(x)
    apart = w.on("Sub", x, w.reduce("ReduceMean", x, [axis], keepdims=True))
    variance = w.reduce("ReduceMean", _square(p, apart), [axis], keepdims=True)
    made = _inverse(p, apart, variance, 1e-5)
    if w.chance(0.8):
        made = p.either("Mul", made, p.vector(WIDTH))
        made = p.either("Add", made, p.vector(WIDTH)) if w.chance(0.8) else made
    return made


def rms_norm(p: Plan, x: Known) -> Known:
    """Root mean square, often of a sum."""
    x = _sum(p, x)
    mean = p.w.reduce("ReduceMean", _square(p, x), [p.axis(x)], keepdims=True)
    made = _inverse(p, x, mean, 1e-6)
    return p.either("Mul", made, p.vector(WIDTH)) if p.w.chance(0.8) else made


def skip_norm(p: Plan, x: Known) -> Known:
    """LayerNormalization of a sum, with the bias of a Linear before it."""
    w = p.w
    if w.opset < _LAYER_NORM:
        return layer_norm(p, x)
    if w.chance(0.4):
        x = p.either("Add", x, p.vector(WIDTH))
    total = _sum(p, x)
    inputs = [total, w.weight(WIDTH), *([w.weight(WIDTH)] if w.chance(0.7) else [])]
    return w.make("LayerNormalization", inputs, total.dims, axis=-1, epsilon=1e-3)


def _sum(p: Plan, x: Known) -> Known:
    """With another value of the same dims; broadcast, in a near miss."""
    w = p.w
    if w.chance(0.4):
        return x
    others = [y for y in w.values if y.dtype == FLOAT and y.dims == x.dims]
    if p.near == "broadcast":
        others = [y for y in w.values if y.dtype == FLOAT and y.dims and fits(y, x)] or others
    return p.either("Add", x, w.choose(others)) if others else x


def fits(narrow: Known, wide: Known) -> bool:
    """True where one broadcasts to the other without changing it."""
    pairs = zip(narrow.dims[::-1], wide.dims[::-1], strict=False)
    return narrow.rank <= wide.rank and all(a in (1, b) for a, b in pairs)


def batch_norm(p: Plan, image: Known) -> Known:
    """A convolution and its normalisation."""
    w, channels = p.w, int(image.dims[1])
    group = int(w.choose((1, channels)))
    weight = w.weight(channels, channels // group, 3, 3)
    biased = [w.weight(channels)] if w.chance(0.5) else []
    made = w.make("Conv", [image, weight, *biased], image.dims, pads=[1, 1, 1, 1], group=group)
    if p.near == "number":
        made = p.either("Add", made, w.weight(1, channels, 1, 1))
    if p.near == "axis":
        made = w.transpose(made, (0, 1, 3, 2))
    variance = w.constant(np.linspace(0.5, 1.5, channels))
    inputs = [made, w.weight(channels), w.weight(channels), w.weight(channels), variance]
    return w.make("BatchNormalization", inputs, made.dims, epsilon=1e-3)


def hard_swish(p: Plan, x: Known) -> Known:
    """x * Clip(x + 3, 0, 6) / 6, the gate divided first or last, or the gate alone."""
    w = p.w
    shifted = p.either("Add", x, p.number(3.0))
    gate = w.make("Clip", [shifted, w.constant(0.0), w.constant(6.0)], shifted.dims)
    if w.chance(0.5):
        return w.on("Div", p.either("Mul", x, gate), p.number(6.0))
    gate = w.on("Div", gate, p.number(6.0))
    return p.either("Mul", x, gate) if w.chance(0.7) else gate


def scaled(p: Plan, x: Known) -> Known:
    """A Linear between scales: of its input, and of its result with the bias."""
    w = p.w
    if w.chance(0.6):
        x = p.either("Mul", x, p.vector(WIDTH))
    made = p.either("Add", w.matmul(x, w.weight(WIDTH, WIDTH)), p.vector(WIDTH))
    return p.either("Mul", made, p.vector(WIDTH))


def residual(p: Plan, image: Known) -> Known:
    """A convolution of what is scaled and shifted for each channel, and what is added to it, activated."""
    w, channels = p.w, int(image.dims[1])
    row = (1, 1, channels, 1) if p.near == "axis" and image.dims[2] == channels else (1, channels, 1, 1)
    given = p.either("Mul", image, w.weight(*row)) if w.chance(0.5) else image
    given = p.either("Add", given, w.weight(*row)) if w.chance(0.5) else given
    size = int(w.choose((1, 3)))
    weights = [w.weight(channels, channels, size, size), *([w.weight(channels)] if w.chance(0.5) else [])]
    pads = [size // 2] * 4
    made = w.make("Conv", [given, *weights], image.dims, pads=pads)
    if w.chance(0.8):
        other = w.weight(1, channels, 1, 1) if p.near == "broadcast" else image
        made = p.either("Add", made, other)
    return w.unary(w.choose(("Relu", "Sigmoid", "Tanh")), made) if w.chance(0.7) else made


def rotary(p: Plan, x: Known, angles: Known) -> Known:
    """Rotary embedding of heads [batch, heads, sequence, size], by angles [batch, sequence, size / 2]."""
    w, size = p.w, int(x.dims[-1])
    both = w.make("Concat", [angles, angles], (*angles.dims[:-1], size), axis=-1)
    cos, sin = (
        w.make("Unsqueeze", [w.unary(op, both), w.ints(1)], (both.dims[0], 1, *both.dims[1:]))
        for op in ("Cos", "Sin")
    )
    middle = size // 2 - (p.near == "number")
    dims = x.dims[:-1]
    ends = ((0, middle), (middle, 2**62))
    lower, upper = (
        w.make("Slice", [x, w.ints(first), w.ints(last), w.ints(-1), w.ints(1)], (*dims, length))
        for (first, last), length in zip(ends, (middle, size - middle), strict=True)
    )
    turned = w.make("Concat", [w.unary("Neg", upper), lower], x.dims, axis=-1)
    if p.near == "axis":
        turned = w.make("Concat", [w.unary("Neg", lower), upper], x.dims, axis=-1)
    return p.either("Add", p.either("Mul", x, cos), p.either("Mul", turned, sin))


def attention(p: Plan, x: Known) -> Known:
    """Self-attention of [batch, sequence, WIDTH], with or without a mask."""
    w, size = p.w, WIDTH // HEADS
    order = (0, 2, 1, 3)

    def heads(perm: tuple[int, ...]) -> Known:
        bias = p.vector(WIDTH) if w.chance(0.3) else w.weight(WIDTH)
        projected = p.either("Add", w.matmul(x, w.weight(WIDTH, WIDTH)), bias)
        if projected.dims != x.dims:
            raise MisfitError("the bias has another shape than what it is added to")
        target = w.constant((0, 0, HEADS, size), np.int64)
        split = w.make("Reshape", [projected, target], (*x.dims[:2], HEADS, size))
        return w.transpose(split, perm)

    query, key = heads(order), heads((0, 2, 3, 1))
    scores = p.either("Mul", w.matmul(query, key), p.number(size**-0.5))
    scores = _masked(p, scores)
    shares = w.unary("Softmax", scores, axis=p.axis(scores))
    mixed = w.transpose(w.matmul(shares, heads(order)), order)
    return w.make("Reshape", [mixed, w.constant((0, 0, WIDTH), np.int64)], x.dims)


def _masked(p: Plan, scores: Known) -> Known:
    w = p.w
    masks = [value for value in w.values if value.name == "attention_mask"]
    if not masks or masks[0].dims != (scores.dims[0], scores.dims[2]) or w.chance(0.4):
        return scores
    axes = (1, 2) if p.near != "broadcast" else (1, 3)
    dims = (
        (scores.dims[0], 1, 1, scores.dims[3]) if axes == (1, 2) else (scores.dims[0], 1, scores.dims[2], 1)
    )
    wide = w.make("Unsqueeze", [masks[0], w.ints(*axes)], dims)
    if w.chance(0.5):
        hidden = w.make("Equal", [wide, w.constant(0, np.int64)], dims, BOOL)
        return w.make("Where", [hidden, w.constant(w.choose((_LOWEST, -1e4))), scores], scores.dims, FLOAT)
    off = w.on("Sub", p.number(1.0), w.cast(wide, FLOAT))
    return p.either("Add", scores, p.either("Mul", off, w.constant(w.choose((_LOWEST, -1e4)))))


def pooled(p: Plan, x: Known) -> Known:
    """The first row of a residual block, or of some columns of it: all that is read of it."""
    w = p.w
    rows = attention(p, x) if w.chance(0.5) else w.matmul(x, w.weight(WIDTH, WIDTH))
    block = w.unary("Relu", p.either("Add", rows, x))
    if p.near == "axis":
        block = w.unary("Softmax", block, axis=1)
    width = WIDTH
    if w.chance(0.3):
        width = WIDTH // 2
        block = w.make("Slice", [block, w.ints(0), w.ints(width), w.ints(2)], (*x.dims[:2], width))
    if isinstance(x.dims[1], int) and x.dims[1] and w.chance(0.4):
        return w.make("Gather", [block, w.constant(0, np.int64)], (x.dims[0], width), axis=1)
    start, end = w.choose(((0, 1), (-1, _MOST)))
    first = x.dims[1] if isinstance(x.dims[1], str) else min(1, x.dims[1])
    dims = (x.dims[0], f"first({first})" if isinstance(first, str) else first, width)
    return w.make("Slice", [block, w.ints(start), w.ints(end), w.ints(1)], dims)


_Pattern = Callable[[Plan, Known], Known]


def _of_row(pattern: _Pattern, rank: int | None = None) -> Callable[[Plan], Known | None]:
    def planted(p: Plan) -> Known | None:
        fitting = [x for x in p.w.values if _suits(x) and rank in (None, x.rank)]
        return pattern(p, p.w.choose(fitting[-4:])) if fitting else None

    return planted


def _anywhere(pattern: _Pattern) -> Callable[[Plan], Known | None]:
    def planted(p: Plan) -> Known | None:
        fitting = [x for x in p.w.values if x.dtype == FLOAT]
        return pattern(p, p.w.choose(fitting[-4:])) if fitting else None

    return planted


def _image(p: Plan, pattern: _Pattern) -> Known | None:
    fitting = [x for x in p.w.values if x.dtype == FLOAT and x.rank == 4 and x.name.startswith("image")]
    return pattern(p, fitting[0]) if fitting else None


def _heads(p: Plan) -> Known | None:
    values = {x.name: x for x in p.w.values}
    angles = values["one_angle" if p.near == "broadcast" else "angles"]
    return rotary(p, values["heads"], angles)


PATTERNS: Final[tuple[Callable[[Plan], Known | None], ...]] = (
    _anywhere(gelu), _anywhere(tanh_gelu), _anywhere(quick_gelu), _of_row(layer_norm), _of_row(layer_norm),
    _of_row(rms_norm), _of_row(skip_norm), partial(_image, pattern=batch_norm), _heads,
    _of_row(attention, 3), _of_row(attention, 3), _anywhere(hard_swish),
    _of_row(scaled), partial(_image, pattern=residual),
    _of_row(flattened, 3), _of_row(turned, 3), _of_row(stacked, 3),
    _of_row(pooled, 3), _of_row(pooled, 3),
)  # fmt: skip
INSIDE: Final = (gelu, quick_gelu)
"""Patterns that keep the dims, for bodies."""


def plant(w: Writer) -> Known | None:
    """One pattern at random, right or nearly."""
    plan = Plan(w, w.choose(NEAR))
    try:
        made = w.choose(PATTERNS)(plan)
    except MisfitError:
        return None
    return None if made is None else plan.end(made)


def plant_inside(w: Writer, x: Known) -> Known:
    """A pattern that keeps dims, in a body; the value itself where it did not."""
    plan = Plan(w, w.choose((None, None, "number")))
    made: Known = w.choose(INSIDE)(plan, x)
    return made if made.dims == x.dims else x
