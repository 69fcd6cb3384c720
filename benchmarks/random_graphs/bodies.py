"""If, Loop and Scan around a few steps that keep type and dims."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from burnish.benchmarks.random_graphs.writer import BOOL, INT64, Known, Writer

Steps = Callable[[Writer, Known], Known]
"""Some nodes from a value to another of the same type and dims."""


def condition(w: Writer) -> Known:
    """A bool: constant, of a size, or of what the data are."""
    way = w.rng.integers(3)
    if way == 0:
        return w.constant(bool(w.rng.integers(2)), np.bool_)
    value: Known = w.choose([each for each in w.values if each.dims])
    if way == 1:
        size = w.make("Squeeze", [w.size(value, 0), w.ints(0)], ())
        return w.make("Greater", [size, w.constant(1, np.int64)], (), BOOL)
    size = w.make("Size", [value], (), INT64)
    return w.make("Less", [size, w.constant(int(w.rng.integers(40)), np.int64)], (), BOOL)


def _body(w: Writer, value: Known, steps: Steps) -> tuple[Writer, Known]:
    inside = Writer(w.rng, w.opset, w)
    result = steps(inside, value)
    if not any(result.name in node.output for node in inside.nodes) or w.chance(0.3):
        result = inside.unary("Identity", result)
    return inside, result


def _graph(
    name: str, inside: Writer, inputs: list[onnx.ValueInfoProto], results: list[Known]
) -> onnx.GraphProto:
    graph: onnx.GraphProto = helper.make_graph(
        inside.nodes, name, inputs, [inside.info(result) for result in results]
    )
    return graph


def branch(w: Writer, value: Known, steps: Steps) -> Known:
    """An If between two ways to go on from a value that both capture."""
    chosen, graphs, rough = condition(w), {}, value.rough
    for name in ("then_branch", "else_branch"):
        inside, result = _body(w, value, steps)
        graphs[name] = _graph(name, inside, [], [result])
        rough |= result.rough
    made = Known(w.fresh("if"), value.dtype, value.dims, rough)
    w.add("If", [chosen], [made], **graphs)
    return made


def loop(w: Writer, value: Known, steps: Steps) -> Known:
    """A Loop that carries a value, some constant number of times or as often as a size says."""
    count = w.constant(int(w.rng.integers(4)), np.int64)
    if w.chance(0.3):
        source: Known = w.choose([each for each in w.values if each.dims])
        count = w.make("Squeeze", [w.size(source, 0), w.ints(0)], ())
    step, on = Known(w.fresh("step"), INT64, ()), Known(w.fresh("on"), BOOL, ())
    carried = Known(w.fresh("carried"), value.dtype, value.dims, rough=True)
    inside, result = _body(w, carried, steps)
    going = inside.unary("Identity", on)
    graph = _graph("body", inside, [inside.info(each) for each in (step, on, carried)], [going, result])
    made = Known(w.fresh("loop"), value.dtype, value.dims, rough=True)
    w.add("Loop", [count, w.constant(True, np.bool_), value], [made], body=graph)
    return made


def scan(w: Writer, value: Known, steps: Steps) -> Known:
    """A Scan along an axis: a part for each step, and a sum that is carried, which begins with all of it."""
    axis = 0 if w.chance(0.6) else int(w.rng.integers(value.rank))
    rest = (*value.dims[:axis], *value.dims[axis + 1 :])
    start = w.reduce("ReduceSum", value, [axis], keepdims=False)
    carried = Known(w.fresh("carried"), value.dtype, rest, rough=True)
    piece = Known(w.fresh("piece"), value.dtype, rest, rough=True)
    inside, result = _body(w, piece, steps)
    graph = _graph(
        "body",
        inside,
        [inside.info(carried), inside.info(piece)],
        [inside.on("Add", carried, result), result],
    )
    last = Known(w.fresh("last"), value.dtype, rest, rough=True)
    made = Known(w.fresh("scan"), value.dtype, value.dims, rough=True)
    backwards = [int(w.chance(0.2))]
    w.add(
        "Scan", [start, value], [last, made], body=graph, num_scan_inputs=1, scan_input_axes=[axis],
        scan_output_axes=[axis], scan_input_directions=backwards, scan_output_directions=backwards,
    )  # fmt: skip
    w.values.append(last)
    return made
