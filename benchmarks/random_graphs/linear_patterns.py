"""More of what fusions look for: products of matrices, and what exporters write around them."""

from __future__ import annotations

import numpy as np

from burnish.benchmarks.random_graphs.plan import HEADS, WIDTH, Plan
from burnish.benchmarks.random_graphs.writer import Known, MisfitError


def flattened(p: Plan, x: Known) -> Known:
    """A Gemm on rows [batch * sequence, WIDTH], brought back to [batch, sequence, WIDTH]."""
    w = p.w
    first = w.make("Reshape", [x, w.ints(-1, WIDTH)], (f"({x.dims[0]})*({x.dims[1]})", WIDTH))
    bias = w.weight(WIDTH) if p.near != "broadcast" else w.weight(1, WIDTH)
    rows = w.make(
        "Gemm", [first, w.weight(WIDTH, WIDTH), bias], first.dims, alpha=0.5 if p.near == "number" else 1.0
    )
    if p.near == "axis":
        rows = w.unary("Softmax", rows, axis=0)
    if w.chance(0.5):
        rows = p.either("Add", first, w.unary("Relu", rows))
    return w.reshape(rows, [w.size(x, 0), w.size(x, 1), w.ints(WIDTH)], x.dims)


def turned(p: Plan, x: Known) -> Known:
    """x @ x^T * number @ x, the numbers before or behind."""
    w = p.w
    order = (1, 0, 2) if p.near == "axis" else (0, 2, 1)
    other = w.transpose(x if w.chance(0.5) else p.either("Mul", x, p.number(0.5)), order)
    if other.dims[0] != x.dims[0] or other.dims[1] != WIDTH:
        raise MisfitError("another order of axes does not fit")
    product = w.matmul(x, other)
    number = p.number(0.25)
    return w.matmul(w.on("Div", product, number) if w.chance(0.5) else p.either("Mul", product, number), x)


def stacked(p: Plan, x: Known) -> Known:
    """Two parts of one Linear, stacked along an axis of their own, and taken from there."""
    w, size = p.w, WIDTH // HEADS
    rows = w.matmul(x, w.weight(WIDTH, 2 * WIDTH))
    lead, heads = x.dims[:2], (HEADS, size)
    stack = w.make("Reshape", [rows, w.ints(0, 0, 2, *heads)], (*lead, 2, *heads))
    places = (0, 0) if p.near == "number" else (0, 1)
    first, second = (_taken(p, stack, place, (*lead, *heads)) for place in places)
    return w.make("Reshape", [w.on("Sub", first, second), w.ints(0, 0, WIDTH)], x.dims)


def _taken(p: Plan, stack: Known, place: int, dims: tuple[int | str, ...]) -> Known:
    w = p.w
    if w.opset < 13 or w.chance(0.5):
        return w.make("Gather", [stack, w.constant(place, np.int64)], dims, axis=2)
    bounds = [w.ints(number) for number in (place, place + 1, 2, 1)]
    part = w.make("Slice", [stack, *bounds], (*dims[:2], 1, *dims[2:]))
    return w.make("Squeeze", [part, w.ints(2)], dims)
