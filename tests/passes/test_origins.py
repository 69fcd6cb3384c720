"""Origins through any pass: what replaces nodes has the origins of all of them, without the pass's help."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir
import pytest

from burnish.difference import Difference
from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.origins import remember
from burnish.passes.recipe import Recipe
from burnish.passes.runner import Outcome, Verdict, run_recipe
from burnish.provenance import Origin, origins, write_origins
from burnish.testing import parse

CHAIN = """g (float[4, 4] x) => (float[4, 4] y) {
    a = MatMul (x, w)
    b = Add (a, c)
    d = Relu (b)
    y = Neg (d)
}"""


@final
@dataclasses.dataclass(frozen=True)
class Apply(Pass):
    """A user's pass that knows nothing of metadata."""

    name: ClassVar[str] = "apply"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    change: Callable[[ir.Model], None]

    def rewrite(self, model: ir.Model, context: Context) -> int:
        context.permit("it")
        self.change(model)
        return 1


def marked(text: str, **weights: np.ndarray) -> ir.Model:
    """The model, each node coming from a module with the name of its first output."""
    model = parse(text, weights=weights)
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            write_origins(node.metadata_props, [Origin(f"net.{node.outputs[0].name}", node.op_type)])
    return model


def run(model: ir.Model, *passes: Pass) -> Outcome:
    return run_recipe(Recipe(passes), model, Context(), lambda a, b, n: Verdict(Difference()))


def modules(model: ir.Model) -> dict[str, list[str]]:
    """The names of the modules that each node comes from, by its first output."""
    nodes = [n for graph in (model.graph, *model.functions.values()) for n in graph.all_nodes()]
    return {
        node.outputs[0].name or "": [o.module.removeprefix("net.") for o in origins(node.metadata_props)]
        for node in nodes
    }


def replace(model: ir.Model, removed: list[str], new: list[ir.Node], old: str, by: ir.Value) -> None:
    """As a careless pass does it: rewire, remove, insert at the end of the graph."""
    nodes = {node.outputs[0].name: node for node in model.graph}
    last = nodes[old].outputs[0]
    model.graph.extend(new)
    last.replace_all_uses_with(by, replace_graph_outputs=True)
    model.graph.remove([nodes[name] for name in removed], safe=True)
    model.graph.sort()


def fuse_add_and_relu(model: ir.Model) -> None:
    add = next(node for node in model.graph if node.op_type == "Add")
    fused = ir.node("Fused", list(add.inputs), domain="own", name="fused")
    fused.outputs[0].name = "f"
    replace(model, ["b", "d"], [fused], "d", fused.outputs[0])


def test_a_new_node_lists_all_that_it_replaces_and_nothing_else() -> None:
    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    assert modules(run(model, Apply(fuse_add_and_relu)).model) == {"a": ["a"], "f": ["b", "d"], "y": ["y"]}


def test_class_and_source_come_along() -> None:
    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    relu = Origin("net.d", "ReLU", "net.py:7 in forward")
    write_origins(model.graph.node(2).metadata_props, [relu])
    out = run(model, Apply(fuse_add_and_relu)).model
    fused = next(node for node in out.graph if node.op_type == "Fused")
    assert origins(fused.metadata_props) == (Origin("net.b", "Add"), relu)


def test_what_the_new_node_already_says_is_kept() -> None:
    def change(model: ir.Model) -> None:
        fuse_add_and_relu(model)
        fused = next(node for node in model.graph if node.op_type == "Fused")
        write_origins(fused.metadata_props, [Origin("net.d", "Relu"), Origin("mine")])

    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    assert modules(run(model, Apply(change)).model)["f"] == ["b", "d", "mine"]


def test_two_new_nodes_share_what_they_replace_where_the_value_between_them_lives_on() -> None:
    def change(model: ir.Model) -> None:
        a, _, relu, neg = model.graph
        first = ir.node("First", [model.graph.inputs[0], *a.inputs[1:]], domain="own")
        second = ir.node("Second", [first.outputs[0]], domain="own")
        first.outputs[0].name, second.outputs[0].name = "b", "y"  # it makes what Add made
        model.graph.extend([first, second])
        neg.outputs[0].replace_all_uses_with(second.outputs[0], replace_graph_outputs=True)
        model.graph.remove([neg, relu, model.graph.node(1), a], safe=True)

    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    assert modules(run(model, Apply(change)).model) == {"b": ["a", "b"], "y": ["d", "y"]}


def test_a_node_that_swallows_the_next_one_gains_its_origin() -> None:
    def fold_into_weight(model: ir.Model) -> None:
        product, scaled, *_ = model.graph
        weight = ir.Value(name="w2", const_value=ir.tensor(np.eye(4, dtype=np.float32) * 2, name="w2"))
        model.graph.register_initializer(weight)
        product.replace_input_with(1, weight)
        scaled.outputs[0].replace_all_uses_with(product.outputs[0])
        model.graph.remove(scaled, safe=True)

    text = "g (float[4, 4] x) => (float[4, 4] y) { a = MatMul (x, w)  s = Mul (a, two)  y = Relu (s) }"
    model = marked(text, w=np.eye(4, dtype=np.float32), two=np.float32(2))
    assert modules(run(model, Apply(fold_into_weight)).model) == {"a": ["a", "s"], "y": ["y"]}


@pytest.mark.parametrize("tail", ["y = Relu (i)", "y = Identity (i)"])
def test_a_node_behind_which_a_no_op_is_removed_gains_nothing(tail: str) -> None:
    text = f"g (float[4, 4] x) => (float[4, 4] y) {{ a = Neg (x)  i = Identity (a)  {tail} }}"
    out = run(marked(text), *Recipe.parse("remove-identity").passes).model
    assert next(iter(modules(out).values())) == ["a"]


def test_a_node_that_does_the_work_of_its_twin_lists_both() -> None:
    text = """g (float[4, 4] x) => (float[4, 4] y) {
        a = Neg (x)  b = Neg (x)  c = Relu (a)  d = Abs (b)  y = Add (c, d)
    }"""
    out = run(marked(text), *Recipe.parse("eliminate-common-subexpressions").passes).model
    assert modules(out) == {"a": ["a", "b"], "c": ["c"], "d": ["d"], "y": ["y"]}


def test_an_inserted_node_belongs_where_it_is_used_else_where_it_comes_from() -> None:
    def insert(model: ir.Model) -> None:
        relu = next(node for node in model.graph if node.op_type == "Relu")
        first = ir.node("Cast", [relu.inputs[0]], {"to": 1})
        second = ir.node("Cast", [first.outputs[0]], {"to": 1})
        model.graph.insert_before(relu, [first, second])
        relu.replace_input_with(0, second.outputs[0])
        probe = ir.node("Abs", [relu.outputs[0]])
        model.graph.append(probe)
        model.graph.outputs.append(probe.outputs[0])

    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    out = run(model, Apply(insert)).model
    assert [modules_of(node) for node in out.graph if node.op_type == "Cast"] == [["d"], ["d"]]
    assert [modules_of(node) for node in out.graph if node.op_type == "Abs"] == [["d"]]


def modules_of(node: ir.Node) -> list[str]:
    return [origin.module.removeprefix("net.") for origin in origins(node.metadata_props)]


def test_branches_and_functions_are_kept_too() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
    g (bool c, float[4] x) => (float[4] y, float[4] z) {
        y = If (c) <
            then_branch = t () => (float[4] r) { p = Neg (x)  q = Relu (p)  r = Abs (q) },
            else_branch = e () => (float[4] s) { s = Identity (x) }
        >
        z = own.F (x)
    }
    <domain: "own", opset_import: ["": 20]>
    F (v) => (o) { m = Neg (v)  n = Relu (m)  o = Abs (n) }
    """

    def fuse(model: ir.Model) -> None:
        for graph in (
            next(iter(model.graph)).attributes["then_branch"].as_graph(),
            *model.functions.values(),
        ):
            first, second, last = graph
            fused = ir.node("Twice", list(first.inputs), domain="own")
            graph.insert_before(last, [fused])
            last.replace_input_with(0, fused.outputs[0])
            graph.remove([second, first], safe=True)

    out = run(marked(text), Apply(fuse)).model
    fused = [
        n for graph in (out.graph, *out.functions.values()) for n in graph.all_nodes() if n.op_type == "Twice"
    ]
    assert [modules_of(node) for node in fused] == [["p", "q"], ["m", "n"]]


def test_a_model_without_origins_gets_none() -> None:
    model = parse(CHAIN, weights={"w": np.eye(4, dtype=np.float32), "c": np.ones(4, np.float32)})
    out = run(model, Apply(fuse_add_and_relu)).model
    assert all(not node.metadata_props for node in out.graph)


def test_it_changes_neither_the_count_nor_a_model_that_is_not_rewritten() -> None:
    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    outcome = run(model, Apply(lambda _: None), *Recipe.parse("remove-identity").passes)
    assert [receipt.rewrites for receipt in outcome.receipts] == [1, 0]
    assert to_bytes(outcome.model) == to_bytes(model)


def test_the_same_run_gives_the_same_bytes() -> None:
    model = marked(CHAIN, w=np.eye(4, dtype=np.float32), c=np.ones(4, np.float32))
    first, second = (run(model, Apply(fuse_add_and_relu)).model for _ in range(2))
    assert to_bytes(first) == to_bytes(second)


def test_a_long_chain_is_no_matter_of_recursion_or_squares() -> None:
    count = 20_000
    lines = "  ".join(f"v{i + 1} = Neg (v{i})" for i in range(count))
    model = marked(f"g (float[4] v0) => (float[4] v{count}) {{ {lines} }}")
    before = remember(model)
    nodes = list(model.graph)
    whole = ir.node("All", [model.graph.inputs[0]], domain="own")
    model.graph.append(whole)
    nodes[-1].outputs[0].replace_all_uses_with(whole.outputs[0], replace_graph_outputs=True)
    model.graph.remove(nodes, safe=True)
    before.hand_on(model)
    found = origins(whole.metadata_props)
    assert len(found) == 24
    assert found[-2].module == f"net.v{count}"


def test_a_weight_that_is_only_laid_out_anew_keeps_its_name() -> None:
    text = "g (float[2, 4] x) => (float[2, 3] y) { t = Transpose <perm = [1, 0]> (w)  y = MatMul (x, t) }"
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = parse(text, weights={"w": weight})
    model.graph.initializers["w"].name = "layer.weight"
    for recipe in ("fold-constants", "fold-constants,remove-unused"):
        out = run(copy_model(model), *Recipe.parse(recipe).passes).model
        kept = out.graph.initializers["layer.weight"]
        assert np.array_equal(value_of(kept), weight.T)
        assert out.graph.node(0).inputs[1] is kept
        assert len(out.graph.initializers) == (1 if "unused" in recipe else 2)


def test_a_weight_that_is_still_used_keeps_its_name_to_itself() -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y, float[3, 3] w) {
        t = Transpose <perm = [1, 0]> (w)  y = MatMul (x, t)
    }"""
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    out = run(parse(text, weights={"w": weight}), *Recipe.parse("fold-constants").passes).model
    assert np.array_equal(value_of(out.graph.initializers["w"]), weight)
    assert np.array_equal(value_of(out.graph.initializers["t"]), weight.T)


def value_of(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
