"""Random graphs of shape arithmetic, before and after the clean-up, at sizes that include 0 and 1."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from burnish.difference import worst
from burnish.errors import ModelError
from burnish.feeds import make_feeds
from burnish.lending import judge
from burnish.model import copy_model, signature, to_bytes
from burnish.passes.base import Context, Numerics
from burnish.passes.recipe import Recipe
from burnish.passes.recipes import CLEAN_UP
from burnish.region_check import compare_regions
from burnish.runtime.reference import Reference

Dims = tuple[str | int, ...]
SIZES = (
    {"b": 2, "s": 3},
    {"b": 1, "s": 1},
    {"b": 3, "s": 1},
    {"b": 0, "s": 2},
    {"b": 2, "s": 0},
    {"b": 4, "s": 4},
)


class Writer:
    """Grows a valid graph; knows the dims of every float value, each a name, a number or a product."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values: list[tuple[str, Dims]] = [("x", ("b", "s", 4)), ("z", ("b", 1, 4)), ("v", ("s", 4))]

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def ints(self, *numbers: int, rank: int = 1) -> str:
        name = f"k{len(self.constants)}"
        array = np.array(numbers if rank else numbers[0], np.int64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def pick(self) -> tuple[str, Dims]:
        return self.values[self.rng.integers(max(0, len(self.values) - 5), len(self.values))]

    def size(self, value: str, axis: int) -> str:
        """A vector with one size, written in one of the ways that exporters have."""
        way = self.rng.integers(4)
        if way == 0:
            return self.node("Shape", [value], start=axis, end=axis + 1)
        shape = self.node("Shape", [value])
        if way == 1:
            return self.node("Slice", [shape, self.ints(axis), self.ints(axis + 1)])
        scalar = self.node("Gather", [shape, self.ints(axis, rank=0)], axis=0)
        if way == 2:
            return self.node("Unsqueeze", [scalar, self.ints(0)])
        return self.node("Reshape", [scalar, self.ints(-1)])

    def target(self, value: str, dims: Dims) -> list[str]:
        """The sizes of a value, known ones sometimes as numbers."""
        return [
            self.ints(d) if isinstance(d, int) and self.rng.random() < 0.6 else self.size(value, axis)
            for axis, d in enumerate(dims)
        ]

    def grow(self) -> None:
        steps = [self.plain, self.transpose, self.unsqueeze, self.reshape, self.merge, self.split, self.add]
        steps += [self.expand, self.cut, self.gather, self.cast, self.join]
        made = steps[self.rng.integers(len(steps))](*self.pick())
        if made is not None and len(made[1]) <= 5:
            self.values.append(made)

    def plain(self, value: str, dims: Dims) -> tuple[str, Dims]:
        return self.node(str(self.rng.choice(["Relu", "Neg", "Identity"])), [value]), dims

    def transpose(self, value: str, dims: Dims) -> tuple[str, Dims]:
        perm = [int(axis) for axis in self.rng.permutation(len(dims))]
        return self.node("Transpose", [value], perm=perm), tuple(dims[axis] for axis in perm)

    def unsqueeze(self, value: str, dims: Dims) -> tuple[str, Dims]:
        if 1 in dims and self.rng.random() < 0.5:
            axis = dims.index(1)
            return self.node("Squeeze", [value, self.ints(axis)]), dims[:axis] + dims[axis + 1 :]
        axis = int(self.rng.integers(len(dims) + 1))
        return self.node("Unsqueeze", [value, self.ints(axis)]), (*dims[:axis], 1, *dims[axis:])

    def reshape(self, value: str, dims: Dims) -> tuple[str, Dims]:
        joined = self.node("Concat", self.target(value, dims), axis=0)
        return self.node("Reshape", [value, joined], allowzero=1), dims

    def merge(self, value: str, dims: Dims) -> tuple[str, Dims] | None:
        if len(dims) < 2:
            return None
        axis = int(self.rng.integers(len(dims) - 1))
        parts, pair = self.target(value, dims), dims[axis : axis + 2]
        parts[axis : axis + 2] = [self.node("Mul", parts[axis : axis + 2])]
        joined = parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)
        known = (
            pair[0] * pair[1]
            if isinstance(pair[0], int) and isinstance(pair[1], int)
            else f"({pair[0]}*{pair[1]})"
        )
        merged: Dims = (*dims[:axis], known, *dims[axis + 2 :])
        return self.node("Reshape", [value, joined], allowzero=1), merged

    def split(self, value: str, dims: Dims) -> tuple[str, Dims] | None:
        if 4 not in dims:
            return None
        axis = dims.index(4)
        parts = self.target(value, dims)
        parts[axis : axis + 1] = [self.ints(2, 2)]
        joined = self.node("Concat", parts, axis=0)
        return self.node("Reshape", [value, joined], allowzero=1), (*dims[:axis], 2, 2, *dims[axis + 1 :])

    def add(self, value: str, dims: Dims) -> tuple[str, Dims]:
        fitting = [v for v, d in self.values if len(d) <= len(dims) and fits(d, dims)]
        return self.node(str(self.rng.choice(["Add", "Mul"])), [value, str(self.rng.choice(fitting))]), dims

    def expand(self, value: str, dims: Dims) -> tuple[str, Dims] | None:
        wider = [(v, d) for v, d in self.values if len(d) >= len(dims) and fits(dims, d)]
        like, wanted = wider[self.rng.integers(len(wider))]
        joined = self.node("Concat", self.target(like, wanted), axis=0) if wanted else self.ints()
        return self.node("Expand", [value, joined]), wanted

    def cut(self, value: str, dims: Dims) -> tuple[str, Dims] | None:
        axis = int(self.rng.integers(len(dims))) if dims else 0
        if not dims:
            return None
        end = self.size(value, axis) if self.rng.random() < 0.5 else self.ints(2**62)
        return self.node("Slice", [value, self.ints(0), end, self.ints(axis)]), dims

    def gather(self, value: str, dims: Dims) -> tuple[str, Dims] | None:
        if not dims:
            return None
        axis = int(self.rng.integers(len(dims)))
        end = self.node("Squeeze", [self.size(value, axis)])
        places = self.node("Range", [self.ints(0, rank=0), end, self.ints(1, rank=0)])
        return self.node("Gather", [value, places], axis=axis), dims

    def cast(self, value: str, dims: Dims) -> tuple[str, Dims]:
        return self.node("Cast", [value], to=TensorProto.FLOAT), dims

    def join(self, value: str, dims: Dims) -> tuple[str, Dims] | None:
        if 4 not in dims:
            return None
        axis = dims.index(4)
        halves = [
            self.node("Slice", [value, self.ints(start), self.ints(end), self.ints(axis)])
            for start, end in ((0, 2), (2, 2**62))
        ]
        return self.node("Concat", halves, axis=axis), dims

    def model(self, steps: int) -> onnx.ModelProto:
        for _ in range(steps):
            self.grow()
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in self.values[:3]]
        ends = self.values[-2:]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(d)) for n, d in ends]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fits(dims: Dims, wider: Dims) -> bool:
    """True when a tensor of `dims` broadcasts to `wider`."""
    return all(a in (1, b) for a, b in zip(dims[::-1], wider[::-1], strict=False))


def check(seed: int) -> tuple[int, bool]:
    """Assert that the clean-up keeps one random graph.

    Returns how many nodes it took away, and whether a second clean-up finds nothing more.
    """
    proto = Writer(seed).model(steps=12)
    before, model = proto.SerializeToString(), ir.from_proto(proto)
    for pass_ in Recipe.parse(CLEAN_UP).passes:
        pass_.rewrite(model, Context())
    after = to_bytes(model)
    onnx.checker.check_model(after)
    reference, rewritten = Reference(before), Reference(after)
    for sizes in SIZES:
        rng = np.random.default_rng(seed)
        feeds = {
            name: rng.standard_normal([sizes.get(d, 0) if isinstance(d, str) else d for d in dims]).astype(
                "f4"
            )
            for name, dims in Writer(0).values
        }
        try:
            expected = reference(feeds)
        except ModelError:
            continue
        assert worst(expected, rewritten(feeds)).max_abs == 0, (seed, sizes)
    away = len(proto.graph.node) - len(model.graph)
    return away, not any(pass_.rewrite(model, Context()) for pass_ in Recipe.parse(CLEAN_UP).passes)


def sweep(seeds: range) -> None:
    results = [check(seed) for seed in seeds]
    assert sum(away for away, _ in results) > 20 * len(seeds)
    assert all(done for _, done in results)


def test_a_hundred_random_graphs() -> None:
    sweep(range(100))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_thousand_random_graphs() -> None:
    sweep(range(100, 5100))


def mutate(model: ir.Model, rng: np.random.Generator) -> str:
    """Make one change that is mostly wrong; say what it was."""
    nodes = [node for node in model.graph if node.op_type in CHANGES]
    if not nodes:
        return "none"
    node = nodes[rng.integers(len(nodes))]
    CHANGES[node.op_type](node)
    return f"{node.op_type} of {node.outputs[0].name}"


def _to(op_type: str) -> Callable[[ir.Node], None]:
    def change(node: ir.Node) -> None:
        node.op_type = op_type

    return change


CHANGES = {
    "Relu": _to("Abs"), "Neg": _to("Identity"), "Add": _to("Mul"), "Mul": _to("Add"), "Identity": _to("Relu"),
}  # fmt: skip


def agree(seed: int) -> str:
    """Whether place by place says no more than the whole does, on a random graph with a random change."""
    proto = Writer(seed).model(steps=12)
    model, specs = ir.from_proto(proto), signature(ir.from_proto(proto)).inputs
    after = copy_model(model)
    change = mutate(after, np.random.default_rng(seed))
    whole, fitting = [], []
    reference, tolerance = judge(model), Numerics.ROUNDING.tolerance
    for sizes in SIZES:
        feeds = make_feeds(specs, sizes, seed=seed)
        try:
            expected = reference(feeds)
        except ModelError:
            continue
        fitting.append((sizes, feeds))
        try:
            whole.append(worst(expected, judge(after)(feeds)).within(tolerance))
        except ModelError:
            whole.append(False)
    if not fitting:
        return "nowhere"
    verdict = compare_regions(model, after, fitting, tolerance)
    assert verdict is None or all(whole), (seed, change)
    return "equal" if verdict is not None else ("different" if not all(whole) else "unsure")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeds", [range(150), pytest.param(range(150, 3000), marks=pytest.mark.slow)])
def test_comparing_at_changes_finds_what_comparing_the_whole_finds(seeds: range) -> None:
    found = Counter(map(agree, seeds))
    assert found["equal"] > 0.01 * len(seeds), found
    assert found["different"] > 0.3 * len(seeds), found  # the rest changed what no output needs


def test_the_clean_up_is_compared_at_its_changes() -> None:
    compared = []
    for seed in range(60):
        proto = Writer(seed).model(steps=12)
        model, specs = ir.from_proto(proto), signature(ir.from_proto(proto)).inputs
        fitting = [(sizes, make_feeds(specs, sizes, seed=seed)) for sizes in SIZES if 0 not in sizes.values()]
        for pass_ in Recipe.parse(CLEAN_UP).passes:
            before = copy_model(model)
            if pass_.rewrite(model, Context()):
                verdict = compare_regions(before, model, fitting, pass_.numerics.tolerance)
                compared.append(verdict is not None)
    assert len(compared) > 300
    assert sum(compared) >= 0.9 * len(compared), f"{sum(compared)} of {len(compared)}"
