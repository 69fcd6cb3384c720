"""A random graph by its number: the same number gives the same graph on every machine."""

from __future__ import annotations

import dataclasses
from typing import Any, Final, final

import numpy as np
import onnx
from onnx import helper

from burnish.benchmarks.random_graphs.aging import age
from burnish.benchmarks.random_graphs.bodies import branch, loop, scan
from burnish.benchmarks.random_graphs.patterns import plant, plant_inside
from burnish.benchmarks.random_graphs.plan import HEADS, WIDTH
from burnish.benchmarks.random_graphs.shrink import read_by
from burnish.benchmarks.random_graphs.steps import STEPS, keep
from burnish.benchmarks.random_graphs.twists import twist
from burnish.benchmarks.random_graphs.writer import BOOL, DOUBLE, FLOAT, INT64, Dims, Known, Writer

SIZES: Final = (
    {"b": 2, "s": 3},
    {"b": 1, "s": 1},
    {"b": 3, "s": 1},
    {"b": 0, "s": 2},
    {"b": 2, "s": 0},
    {"b": 3, "s": 5},
)
"""Of the dynamic dims, as far as a graph has them."""
OPSETS: Final = (13, 14, 15, 16, 17, 18, 19, 20, 20, 21, 22, 23, 24)
_AGED: Final = 0.15
"""Of the graphs are of opset 13, and then made older, as far as that can be."""
_MOST_NODES: Final = 26
"""After which no more is written; what was begun is ended."""
_MOST_RANK: Final = 5


@final
@dataclasses.dataclass(frozen=True)
class Graph:
    """A generated model."""

    seed: int
    model: bytes

    def proto(self) -> onnx.ModelProto:
        """The model, parsed."""
        model = onnx.ModelProto()
        model.ParseFromString(self.model)
        return model


def generate(seed: int) -> Graph:
    """The graph of that number: 3 to about 30 nodes, up to two planted patterns, an If, Loop or Scan."""
    rng, aging = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 6])
    opset, is_aged = int(rng.choice(OPSETS)), aging.random() < _AGED
    w = Writer(rng, 13 if is_aged else opset)
    inputs = _inputs(w)
    w.values.extend(inputs)
    patterns, bodies = int(rng.integers(3)), int(rng.integers(2))
    steps = int(rng.integers(3, _MOST_NODES + 1))
    while len(w.nodes) < steps or len(w.values) == len(inputs):
        if patterns and w.chance(0.3):
            patterns, made = patterns - 1, plant(w)
        elif bodies and w.chance(0.2):
            bodies, made = bodies - 1, _nest(w, len(inputs))
        else:
            made = w.choose(STEPS)(w, _recent(w, len(inputs)))
        if made is not None and made.rank <= _MOST_RANK:
            w.values.append(made)
    model = _model(w, inputs)
    if is_aged:
        age(model, aging)
    twist(model, np.random.default_rng([seed, 5]))
    return Graph(seed, model.SerializeToString(deterministic=True))


def _inputs(w: Writer) -> list[Known]:
    """All that a graph may read; a quarter of them has one dynamic dim fixed, or both; some have one name."""
    b: Any = 2 if w.chance(0.25) else "b"
    s: Any = 3 if w.chance(0.25) else b if w.chance(0.1) else "s"
    table: tuple[tuple[str, int, Dims], ...] = (
        ("x", FLOAT, (b, s, WIDTH)), ("y", FLOAT, (b, s, WIDTH)), ("row", FLOAT, (b, 1, WIDTH)),
        ("matrix", FLOAT, (s, WIDTH)), ("vector", FLOAT, (WIDTH,)), ("scalar", FLOAT, ()),
        ("image", FLOAT, (b, 4, 5, 5)), ("heads", FLOAT, (b, HEADS, s, 4)), ("angles", FLOAT, (b, s, 2)),
        ("one_angle", FLOAT, (1, s, 2)), ("wide", DOUBLE, (b, s)), ("whole", INT64, (b, s)),
        ("attention_mask", INT64, (b, s)), ("flags", BOOL, (b, s, 1)), ("empty", FLOAT, (b, 0, WIDTH)),
    )  # fmt: skip
    return [Known(name, dtype, dims) for name, dtype, dims in table]


def _recent(w: Writer, count: int) -> Known:
    """What was made last, mostly, behind the `count` inputs: chains are what passes rewrite."""
    made = w.values[count:]
    if made and w.chance(0.7):
        return w.values[-1 - int(w.rng.integers(min(4, len(made))))]
    anyone: Known = w.choose(w.values)
    return anyone


def _nest(w: Writer, count: int) -> Known | None:
    value = _recent(w, count)
    if value.dtype != FLOAT:
        return None

    def steps(inside: Writer, at: Known) -> Known:
        for _ in range(int(inside.rng.integers(1, 4))):
            if inside.depth < 2 and inside.chance(0.15):
                at = branch(inside, at, steps)
            else:
                at = (plant_inside if inside.chance(0.3) else keep)(inside, at)
        return at

    again = scan if value.dims and 0 not in value.dims and w.chance(0.5) else loop
    return (branch if w.chance(0.6) else again)(w, value, steps)


def _model(w: Writer, inputs: list[Known]) -> onnx.ModelProto:
    made = {name for node in w.nodes for name in node.output}
    ends = [value for value in w.values if value.name in made]
    used = read_by(w.nodes)
    unread = [value for value in ends[:-1] if value.name not in used]
    last = [*ends[-1:], *w.wanted, *(value for value in unread[-3:] if w.chance(0.7))]
    last += [value for value in ends[:-1] if w.chance(0.05)]
    graph = helper.make_graph(
        w.nodes, "random", [w.info(value) for value in inputs if value.name in used],
        [w.info(value) for value in dict.fromkeys(last)],
        [tensor for tensor in w.tensors if tensor.name in used],
    )  # fmt: skip
    imports = [helper.make_opsetid("", w.opset)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model
