"""`burnish.diff` and `burnish diff`: what differs between two models, and what does not."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

import burnish
from burnish.cli import main
from burnish.errors import ArtifactError, ModelError
from burnish.manifest import DimRange
from burnish.model import copy_model, save_model, signature
from burnish.provenance import Origin, origins, write_origins
from burnish.structure import Change, ModelDiff, WeightChanges
from burnish.testing import parse

Edit = Callable[[ir.Model], object]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def marked(model: ir.Model) -> ir.Model:
    for node in model.graph.all_nodes():
        write_origins(node.metadata_props, [Origin(f"net.{node.op_type.lower()}", node.op_type)])
    return model


def edited(model: ir.Model, edit: Edit) -> ModelDiff:
    other = copy_model(model)
    edit(other)
    return burnish.diff(model, other)


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph.all_nodes() if node.op_type == op_type)


def test_a_model_is_identical_to_itself(encoder: ir.Model) -> None:
    found = burnish.diff(encoder, encoder)
    assert found.same
    nothing = ModelDiff(
        same=True, nodes=found.nodes, rewired=False, annotations=0, ops={}, interface=(),
        weights=WeightChanges(), opsets=(), metadata=(), modules=None, notes=found.notes,
    )  # fmt: skip
    assert found == nothing


def test_order_of_nodes_and_names_of_inner_values_do_not_count(encoder: ir.Model) -> None:
    def shuffle(model: ir.Model) -> None:
        nodes = list(model.graph)
        model.graph.remove(nodes)
        model.graph.extend([nodes[1], nodes[0], *nodes[2:]])
        model.graph.sort()
        node_of(model, "Erf").outputs[0].name = "other"

    assert edited(encoder, shuffle).same


def test_names_and_metadata_of_nodes_are_counted_apart(encoder: ir.Model) -> None:
    def rename(model: ir.Model) -> None:
        node_of(model, "Erf").name = "another"
        node_of(model, "Div").metadata_props["seen"] = "yes"

    found = edited(encoder, rename)
    assert (found.same, found.rewired, found.annotations, found.ops) == (False, False, 2, {})


def test_ops_that_came_and_went(encoder: ir.Model) -> None:
    found = burnish.diff(encoder, burnish.optimize(encoder, measured=False))
    assert found.rewired
    assert found.ops["Erf"] == (1, 0)
    assert found.ops["com.microsoft::BiasGelu"] == (0, 1)
    assert "Gather" not in found.ops
    assert found.nodes[0] > found.nodes[1]


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: node_of(m, "LayerNormalization").attributes.add(ir.AttrFloat32("epsilon", 0.1)),
        lambda m: swap(node_of(m, "Div")),
        lambda m: m.graph.outputs.reverse(),
    ],
)  # fmt: skip
def test_the_same_ops_that_compute_something_else(encoder: ir.Model, edit: Edit) -> None:
    found = edited(encoder, edit)
    assert found.rewired
    assert not found.same
    assert not found.ops


def swap(node: ir.Node) -> None:
    first, second = node.inputs
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)


def test_bodies_and_functions_are_compared() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
    g (bool c, float[4] x) => (float[4] y) {
        z = own.F (x)
        y = If (c) <then_branch = t () => (float[4] p) { p = Neg (z) },
                    else_branch = e () => (float[4] q) { k = Constant <value_float = 1.0> () q = Add (z, k) }>
    }
    <domain: "own", opset_import: ["": 20]> F (v) => (o) { w = Neg (v)  o = Sub (w, v) }"""
    model = parse(text)
    assert burnish.diff(model, parse(text)).same
    for old, new in (
        ("Neg (z)", "Neg (x)"),
        ("1.0", "2.0"),
        ("Sub (w, v)", "Sub (v, w)"),
        ("(w, v)", "(w, w)"),
    ):
        found = burnish.diff(model, parse(text.replace(old, new)))
        assert found.rewired, (old, new)


def test_weights_added_removed_changed_renamed(encoder: ir.Model) -> None:
    def edit(model: ir.Model) -> None:
        weights = model.graph.initializers
        weights["b1"].const_value = ir.tensor(np.zeros(16, np.float32))
        weights["w1"].name = "first.weight"
        extra = ir.Value(name="extra", const_value=ir.tensor(np.ones((2, 3), np.float16), name="extra"))
        model.graph.register_initializer(extra)
        node_of(model, "ReduceMean").replace_input_with(1, None)
        del weights["axis1"]

    weights = edited(encoder, edit).weights
    (added,), (removed,), (changed,), (renamed,) = (
        weights.added, weights.removed, weights.changed, weights.renamed
    )  # fmt: skip
    assert (added.name, added.dtype, added.shape, added.bytes) == ("extra", "float16", (2, 3), 12)
    assert (removed.name, removed.dtype, removed.bytes) == ("axis1", "int64", 8)
    assert (changed.before.name, changed.after.name) == ("b1", "b1")
    assert changed.before.sha256 != changed.after.sha256
    assert changed.before.shape == changed.after.shape == (16,)
    assert (renamed.before.name, renamed.after.name) == ("w1", "first.weight")


def test_new_values_of_a_weight_do_not_make_another_graph(encoder: ir.Model) -> None:
    def edit(model: ir.Model) -> None:
        model.graph.initializers["b1"].const_value = ir.tensor(np.zeros(16, np.float32))

    found = edited(encoder, edit)
    assert not found.rewired
    assert not found.same
    assert len(found.weights.changed) == 1


def test_dtype_and_shape_of_a_weight_are_told(encoder: ir.Model) -> None:
    def edit(model: ir.Model) -> None:
        model.graph.initializers["b1"].const_value = ir.tensor(np.zeros((1, 16), np.float64))

    (pair,) = edited(encoder, edit).weights.changed
    assert (pair.before.dtype, pair.before.shape) == ("float32", (16,))
    assert (pair.after.dtype, pair.after.shape, pair.after.bytes) == ("float64", (1, 16), 128)


def test_texts_as_weights_are_compared() -> None:
    model = parse(
        "g (string[2] x) => (string[2] y) { y = StringConcat (x, w) }", weights={"w": np.array("a")}
    )
    other = parse(
        "g (string[2] x) => (string[2] y) { y = StringConcat (x, w) }", weights={"w": np.array("b")}
    )
    assert burnish.diff(model, model).same
    (pair,) = burnish.diff(model, other).weights.changed
    assert pair.before.dtype == "str"


def test_inputs_outputs_and_dims(encoder: ir.Model, tmp_path: Path) -> None:
    known = signature(encoder)
    save_model(encoder, tmp_path / "a.onnx", known)
    other = copy_model(encoder)
    other.graph.inputs[1].shape = ir.Shape([ir.SymbolicDim("batch"), ir.SymbolicDim("sequence"), 1])
    other.graph.inputs[1].dtype = ir.DataType.DOUBLE
    other.graph.outputs[1].name = "mean"
    changed = signature(other, known)
    changed = msgspec.structs.replace(changed, dims=changed.dims | {"sequence": DimRange(1, 64)})
    save_model(other, tmp_path / "b.onnx", changed)
    found = burnish.diff(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found.interface == (
        Change("input weight", "float32[batch, sequence, 1] values", "float64[batch, sequence, 1] values"),
        Change("output pooled", "float32[batch, 8] values", None),
        Change("output mean", None, "float32[batch, 8] values"),
        Change("dim sequence", "1 to any size", "1 to 64"),
    )


def test_order_of_inputs(encoder: ir.Model) -> None:
    found = edited(encoder, lambda model: model.graph.inputs.reverse())
    assert found.interface == (Change("order of inputs", "input_ids, weight", "weight, input_ids"),)


def test_opsets_and_metadata(encoder: ir.Model) -> None:
    def edit(model: ir.Model) -> None:
        model.opset_imports[""] = 21
        model.metadata_props["author"] = "me"
        model.producer_name = "someone"

    found = edited(encoder, edit)
    assert Change("ai.onnx", "20", "21") in found.opsets
    assert set(found.metadata) == {
        Change("producer_name", None, "someone"),
        Change("metadata author", None, "me"),
    }
    assert not found.rewired


def test_by_torch_module(encoder: ir.Model) -> None:
    before = marked(encoder)
    after = burnish.optimize(before, measured=False)
    assert all(origins(node.metadata_props) for node in after.graph)
    found = burnish.diff(before, after)
    changes = {module.path: module for module in found.modules or ()}
    assert list(changes)[:2] == ["", "net"]
    assert changes[""].before.nodes == found.nodes[0]
    assert changes[""].after.nodes == found.nodes[1]
    assert changes[""].before.macs == changes[""].after.macs == 128 * (8 * 16 + 16 * 8)
    assert (changes["net.erf"].before.nodes, changes["net.erf"].after.nodes) == (1, 0)
    assert changes["net.erf"].after.macs == 0
    assert "net.matmul" not in changes
    assert [note[:9] for note in found.notes] == ["MACs of A", "MACs of B"]


def test_macs_can_be_left_out(encoder: ir.Model) -> None:
    found = burnish.diff(marked(encoder), burnish.optimize(encoder, measured=False), macs=False)
    assert found.notes == ()
    assert all(module.before.macs is None for module in found.modules or ())


def test_without_origins_in_both_modules_are_not_compared_and_that_is_said(encoder: ir.Model) -> None:
    found = burnish.diff(marked(copy_model(encoder)), encoder)
    assert found.modules is None
    assert found.notes == ("Not compared by torch module: B does not say which module a node comes from.",)


@pytest.fixture
def paths(encoder: ir.Model, tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    save_model(marked(encoder), first, signature(encoder))
    burnish.optimize(first, measured=False, output=second)
    return first, second


def test_the_command_says_identical(paths: tuple[Path, Path]) -> None:
    result = command(paths[0], paths[0], "--exit-code")
    assert result.exit_code == 0
    assert result.stdout.startswith("Identical: 15 nodes")


def test_the_command_shows_what_differs(paths: tuple[Path, Path]) -> None:
    result = command(*paths)
    assert result.exit_code == 0
    assert result.stdout.startswith("nodes 15 → ")
    assert "  - Erf: 1 → 0 (-1)" in result.stdout
    assert "  + com.microsoft::BiasGelu: 0 → 1 (+1)" in result.stdout
    assert "  - root2: float32[], 4 bytes" in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.strip().startswith("erf"))
    assert row.split() == ["erf", "Erf", "1", "→", "0", "0", "0.00"]
    shallow = command(*paths, "--depth", 0).stdout
    assert "(model)" in shallow
    assert "  erf " not in shallow


def test_exit_code_as_in_git(paths: tuple[Path, Path]) -> None:
    assert command(*paths).exit_code == 0
    assert command(*paths, "--exit-code").exit_code == 1
    assert command(paths[1], paths[1], "--exit-code", "--json").exit_code == 0


def test_json_has_all_of_it(paths: tuple[Path, Path]) -> None:
    found = json.loads(command(*paths, "--json").stdout)
    assert found["same"] is False
    assert found["ops"]["Erf"] == [1, 0]
    assert {"interface", "weights", "opsets", "metadata", "modules", "notes"} <= found.keys()
    assert all(len(weight["sha256"]) == 64 for weight in found["weights"]["removed"])


def test_bad_input_is_a_typed_error(paths: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(paths[0].read_bytes()[:100])
    with pytest.raises(ModelError):
        burnish.diff(paths[0], broken)
    with pytest.raises(ArtifactError) as caught:
        burnish.diff(paths[0], 7)  # type: ignore[arg-type]
    assert caught.value.code == "MODEL_KIND"
    for other in (broken, tmp_path / "missing.onnx"):
        result = command(paths[0], other, "--json", "--exit-code")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error"]["code"].startswith("MODEL_")
    assert command(paths[0]).exit_code == 2


def test_a_model_that_does_not_run_is_still_compared(tmp_path: Path) -> None:
    model = marked(parse("g (float[n, 4] x, float[n, 5] z) => (float[n, 4] y) { y = Add (x, z) }"))
    found = edited(model, lambda other: node_of(other, "Add").attributes.add(ir.AttrInt64("foo", 1)))
    assert found.rewired
    assert not found.same
