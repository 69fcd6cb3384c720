"""What outlives a pass: facts, which are those that a new walk of the graph finds; what it looks for."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import onnx
import onnx_ir as ir
import pytest

from burnish.benchmarks.random_graphs.generate import generate
from burnish.passes.base import Context, all_graphs, op_types
from burnish.passes.dims import Dim
from burnish.passes.recipes import optimize_recipe
from burnish.passes.registry import PASSES, load_pass
from burnish.passes.shapes import Fact, Shapes
from burnish.testing import parse


def dims_of(fact: Fact) -> Iterator[Dim | None]:
    for dims in (fact.shape, fact.content):
        yield from [None] if dims is None else dims


class Renaming:
    """Tells two walks apart by the names that they make up, which differ, and by nothing else."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def is_same(self, a: Fact, b: Fact) -> bool:
        ours, theirs = list(dims_of(a)), list(dims_of(b))
        return a.dtype == b.dtype and len(ours) == len(theirs) and all(map(self._alike, ours, theirs))

    def _alike(self, a: Dim | None, b: Dim | None) -> bool:
        if a is None or b is None or a == b:
            return a is b or a == b
        if len(a.terms) != len(b.terms) or sorted(x for _, x in a.terms) != sorted(x for _, x in b.terms):
            return False
        if a.name is None or b.name is None:  # made of others, in an order that hangs on their names
            return True
        return "?" in a.name and "?" in b.name and self._names.setdefault(a.name, b.name) == b.name


def assert_same(kept: Shapes, anew: Shapes, model: ir.Model, where: object) -> None:
    renaming = Renaming()
    for graph in all_graphs(model):
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            assert renaming.is_same(kept[value], anew[value]), (where, value, kept[value], anew[value])


def check(model: ir.Model, where: object) -> int:
    context, rewrites = Context(), 0
    context.shapes(model)
    for pass_ in optimize_recipe(measured=False).passes:
        log = dataclasses.replace(context, rewrites=[], misses=[])
        pass_.rewrite(model, log)
        rewrites += len(log.rewrites)
        assert_same(context.shapes(model), Shapes(model), model, (where, str(pass_)))
    return rewrites


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 1000), marks=pytest.mark.slow)])
def test_after_every_pass_they_are_those_of_a_new_walk(seeds: range) -> None:
    models = (ir.from_proto(onnx.ModelProto.FromString(generate(seed).model)) for seed in seeds)
    assert sum(map(check, models, seeds)) > 5 * len(seeds)


def test_what_was_changed_without_a_word_is_seen() -> None:
    text = "g (float[N, 3] x, float[N, 3] z) => (float[M, 3] y) { a = Concat <axis = 0> (x, x) y = Relu (a) }"
    model = parse(text)
    before = Shapes(model)
    concat, relu = model.graph
    concat.attributes["axis"] = ir.AttrInt64("axis", 1)
    assert_same(Shapes(model, before), Shapes(model), model, "attribute")
    concat.replace_input_with(1, model.graph.inputs[1])
    relu.op_type = "Shape"
    assert_same(Shapes(model, before), Shapes(model), model, "input and operator")
    assert Shapes(model, before)[relu.outputs[0]].dtype == ir.DataType.INT64


def test_another_shape_of_an_input_is_seen() -> None:
    model = parse("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }")
    before, result = Shapes(model), model.graph.outputs[0]
    model.graph.inputs[0].shape = ir.Shape(["M", 3])
    assert Shapes(model, before)[result].shape == (Dim.named("M"), Dim.of(3))


def test_another_tensor_in_an_initializer_is_seen() -> None:
    model = parse("g (float[N, 6] x) => (float[A, B] y) <int64[2] to = {3, -1}> { y = Reshape (x, to) }")
    before, result = Shapes(model), model.graph.outputs[0]
    assert (before[result].shape or [None])[0] == Dim.of(3)
    model.graph.initializers["to"].const_value = ir.tensor([2, -1], ir.DataType.INT64)
    assert (Shapes(model, before)[result].shape or [None])[0] == Dim.of(2)


def test_what_a_pass_stated_itself_is_looked_at_again() -> None:
    model = parse("g (float[N, 6] x) => (float[N, 6] y) { y = Relu (x) }")
    before, result = Shapes(model), model.graph.outputs[0]
    kept = before[result]
    before[result] = Fact(ir.DataType.INT8)
    assert Shapes(model, before)[result] == kept


def test_what_is_as_it_was_is_not_looked_at_again() -> None:
    model = parse(
        "g (float[N, 6] x) => (float[A, B] y) { k = NonZero (x) c = Cast <to = 1> (k) y = Abs (c) }"
    )
    before = Shapes(model)
    after = Shapes(model, before)
    made = [value for node in model.graph for value in node.outputs]
    assert all(after[value] is before[value] for value in made)


def test_a_pass_does_and_says_nothing_where_nothing_is_that_it_looks_for() -> None:
    passes = [cls() for cls in map(load_pass, PASSES) if cls.looks_for]
    assert len(passes) > 15
    seen: Counter[str] = Counter()
    for seed in range(40):
        model = ir.from_proto(onnx.ModelProto.FromString(generate(seed).model))
        present = op_types(model)
        for pass_ in passes:
            if pass_.looks_for.isdisjoint(present):
                context = Context()
                assert pass_.rewrite(model, context) == 0, (seed, pass_)
                assert not context.misses, (seed, pass_)
                seen[pass_.name] += 1
    assert all(seen[pass_.name] for pass_ in passes), seen
