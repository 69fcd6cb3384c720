"""Models as trees of torch modules: `burnish inspect --by-module` and what is behind it."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from burnish.cli import main
from burnish.inspection import describe, describe_modules, macs_by_node, times_by_module
from burnish.manifest import DimRange
from burnish.model import node_count, save_model, signature
from burnish.modules import ModuleRow, ModuleTree
from burnish.provenance import Origin, write_origins
from burnish.testing import parse

NET = """g (float[batch, 4] x) => (float[batch, 4] y) {
    a = MatMul (x, "up.weight")
    b = Add (a, "up.bias")
    c = Relu (b)
    d = MatMul (c, "down.weight")
    e = Add (d, x)
    y = MatMul (e, tied)
}"""
MODULES = {
    "a": ("net.layer.0.up", "Linear"), "b": ("net.layer.0.up", "Linear"), "c": ("net.layer.0", "Block"),
    "d": ("net.layer.0.down", "Linear"), "e": ("net.layer.0", "Block"), "y": ("net.head", "Linear"),
}  # fmt: skip


def burnish(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def net(*, marked: bool = True) -> ir.Model:
    """Two layers and a head, whose weight an earlier layer uses too."""
    ones = np.ones((4, 4), np.float32)
    weights = {"w0": ones, "w1": np.ones(4, np.float32), "w2": ones * 2, "w3": ones * 3}
    names = dict(zip(weights, ("up.weight", "up.bias", "down.weight", "tied"), strict=True))
    text = NET
    for short, name in names.items():
        text = text.replace(f'"{name}"', short).replace(", tied)", ", w3)")
    model = parse(text, weights=weights)
    for short, name in names.items():
        model.graph.initializers[short].name = name if name == "tied" else f"net.layer.0.{name}"
    for node in model.graph:
        if marked:
            write_origins(node.metadata_props, [Origin(*MODULES[node.outputs[0].name or ""])])
    return model


@pytest.fixture
def net_path(tmp_path: Path) -> Path:
    model = net()
    save_model(model, tmp_path / "net.onnx", signature(model))
    return tmp_path / "net.onnx"


def rows(model: ir.Model, **given: Any) -> dict[str, ModuleRow]:
    return {row.path: row for row in ModuleTree(model).table(**given).rows}


def test_each_module_holds_what_is_inside_it() -> None:
    model = net()
    macs = {node: 16 for node in model.graph if node.op_type == "MatMul"}
    found = rows(model, macs=macs)
    assert list(found) == [
        "", "net", "net.layer", "net.layer.0", "net.layer.0.up", "net.layer.0.down", "net.head"
    ]  # fmt: skip
    assert found[""] == ModuleRow("", "", node_count(model), 16 * 3 + 4, 4 * (16 * 3 + 4), 48)
    assert found["net.layer.0"] == ModuleRow("net.layer.0", "Block", 5, 36, 144, 32)
    assert found["net.layer.0.up"] == ModuleRow("net.layer.0.up", "Linear", 2, 20, 80, 16)
    assert found["net.head"] == ModuleRow("net.head", "Linear", 1, 16, 64, 16)


def test_a_fused_node_counts_where_most_of_it_comes_from_and_a_weight_where_its_name_says() -> None:
    model = net()
    a = model.graph.node(0)
    write_origins(a.metadata_props, [Origin("net.layer.0.up"), Origin("net.layer.0.act"), Origin("net.mask")])
    found = rows(model)
    assert found["net.layer.0.up"].nodes == 1
    assert found["net.layer.0"].nodes == 5
    assert found["net.layer.0.up"].parameters == 20
    assert "net.layer.0.act" not in found


def test_shared_weights_are_counted_once_and_said() -> None:
    model = net()
    tied = model.graph.initializers["tied"]
    model.graph.node(3).replace_input_with(1, tied)
    table = ModuleTree(model).table()
    (shared,) = table.shared
    assert (shared.name, shared.parameters, shared.bytes) == ("tied", 16, 64)
    assert shared.modules == ("net.layer.0.down", "net.head")
    assert shared.counted_at == "net"
    total = {row.path: row for row in table.rows}
    assert total[""].parameters == total["net"].parameters == 16 * 3 + 4  # down.weight has no user now
    assert total["net.head"].parameters == 0


def test_without_origins_prefixes_of_node_names_stand_for_modules() -> None:
    model = net(marked=False)
    for node in model.graph:
        path, _ = MODULES[node.outputs[0].name or ""]
        node.name = (
            f"/{path.replace('net.', '').replace('.up', '/up').replace('.down', '/down')}/{node.op_type}"
        )
    table = ModuleTree(model).table()
    assert table.grouped_by == "node name"
    assert "does not say" in table.notes[0]
    assert "prefixes of node names" in table.notes[1]
    found = {row.path: row for row in table.rows}
    assert found["layer.0.up"].nodes == 2
    assert found["layer.0"].nodes == 5
    assert found["head"].parameters == 16


def test_without_either_all_is_one_module_and_that_is_said() -> None:
    table = ModuleTree(net(marked=False)).table()
    assert table.grouped_by == "nothing"
    assert "no prefixes either" in table.notes[1]
    assert [row.path for row in table.rows] == [""]


def test_nodes_that_say_nothing_count_at_the_root_and_that_is_said() -> None:
    model = net()
    write_origins(model.graph.node(0).metadata_props, [])
    table = ModuleTree(model).table()
    assert table.notes == ("1 of 6 nodes do not say their module; they count at the root.",)
    assert {row.path: row.nodes for row in table.rows}["net"] == 5


def test_bodies_and_functions_count_too() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "own": 1]>
    g (bool c, float[4] x) => (float[4] y) {
        z = own.F (x)
        y = If (c) <then_branch = t () => (float[4] p) { p = Neg (z) },
                    else_branch = e () => (float[4] q) { q = Abs (z) }>
    }
    <domain: "own", opset_import: ["": 20]> F (v) => (o) { o = Neg (v) }"""
    model = parse(text)
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            write_origins(node.metadata_props, [Origin(f"m.{node.outputs[0].name}")])
    found = rows(model)
    assert found[""].nodes == node_count(model) == 5
    assert {"m.z", "m.y", "m.p", "m.q", "m.o"} <= set(found)


def test_names_of_plain_torch_exports_are_understood(tmp_path: Path) -> None:
    model = net(marked=False)
    for node in model.graph:
        path, kind = MODULES[node.outputs[0].name or ""]
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", path, "fx"])
        node.metadata_props["pkg.torch.onnx.class_hierarchy"] = repr(["a.Net", f"torch.nn.{kind}", "aten.x"])
    save_model(model, tmp_path / "m.onnx", signature(model))
    found = {row.path: row for row in describe_modules(tmp_path / "m.onnx").table.rows}
    assert found["net.layer.0.up"].kind == "Linear"
    assert found["net.layer.0.up"].nodes == 2


def test_the_total_is_what_inspect_says(net_path: Path) -> None:
    facts, (total, *_) = describe(net_path), describe_modules(net_path).table.rows
    assert (facts["nodes"], facts["parameters"]) == (total.nodes, total.parameters)
    assert (facts["weight_bytes"], facts["macs"]) == (total.bytes, total.macs)


def test_the_command_shows_a_tree(net_path: Path) -> None:
    lines = burnish("inspect", net_path, "--by-module").stdout.splitlines()
    assert lines[0].split() == ["torch", "module", "class", "parameters", "MB", "M", "MACs", "nodes"]
    assert lines[1].startswith("(model)")
    up = next(line for line in lines if "Linear" in line)
    assert up.split() == ["up", "Linear", "20", "0.00", "0.00", "2"]
    assert lines[-1].startswith("MACs at ")


def test_macs_name_the_sizes_that_they_were_counted_at() -> None:
    model = parse("g (float[batch, sequence, 8] x, float[8, 4] w) => (y) { y = MatMul (x, w) }")
    interface = msgspec.structs.replace(signature(model), dims={"sequence": DimRange(1, 24)})
    found, where = macs_by_node(model, interface)
    assert found is not None
    assert [*found.values()] == [24 * 8 * 4]
    assert where == "at batch 1, sequence 24"


def test_depth_leaves_out_deeper_modules_not_what_they_hold(net_path: Path) -> None:
    whole = json.loads(burnish("inspect", net_path, "--by-module", "--json").stdout)["table"]["rows"]
    shallow = json.loads(burnish("inspect", net_path, "--by-module", "--depth", 1, "--json").stdout)
    assert [row["path"] for row in shallow["table"]["rows"]] == ["", "net"]
    assert shallow["table"]["rows"] == whole[:2]


def test_profile_gives_every_modules_time(net_path: Path) -> None:
    report = describe_modules(net_path, profile=True)
    assert report.timed is not None
    found = {row.path: row.ms or 0.0 for row in report.table.rows}
    assert found[""] + report.timed.unattributed_ms == pytest.approx(report.timed.nodes_ms)
    assert found["net.layer.0"] + found["net.head"] == pytest.approx(found["net"])
    assert report.timed.unattributed == ()  # onnxruntime fuses some, but their values tell whose they are
    ms, _ = times_by_module(net(), signature(net()), ModuleTree(net()))
    assert {"net.layer.0", "net.head"} <= ms.keys()  # though it runs too fast for a number above 0
    shown = burnish("inspect", net_path, "--by-module", "--profile").stdout
    assert shown.splitlines()[0].endswith("ms")
    assert "every node's time has a module" in shown


def test_a_node_that_onnxruntime_made_works_for_the_one_that_reads_it() -> None:
    text = "g (float[2, 8, 64] x) => (float[2, 8, 64] y) { m = MatMul (x, w)  a = Add (m, b)  y = Relu (a) }"
    model = parse(text, weights={"w": np.ones((64, 64), np.float32), "b": np.ones(64, np.float32)})
    for node in model.graph:
        write_origins(node.metadata_props, [Origin("act" if node.op_type == "Relu" else "dense")])
    ms, timed = times_by_module(model, signature(model), ModuleTree(model))
    assert timed.unattributed == ()  # the Gemm that it runs stands between two Reshapes of its own
    assert set(ms) == {"dense", "act"}


def test_time_of_a_branch_counts_once(tmp_path: Path) -> None:
    text = """g (float[64, 64] x) => (float[64, 64] y) {
        s = ReduceSum <keepdims = 0> (x)
        c = Less (s, s)
        y = If (c) <then_branch = t () => (float[64, 64] p) { p = Neg (x) },
                    else_branch = e () => (float[64, 64] q) { q = MatMul (x, x) }>
    }"""
    model = parse(text)
    for node in model.graph.all_nodes():
        node.name = f"n_{node.outputs[0].name}"
        write_origins(node.metadata_props, [Origin(node.outputs[0].name or "")])
    save_model(model, tmp_path / "m.onnx", signature(model))
    report = describe_modules(tmp_path / "m.onnx", profile=True)
    assert report.timed is not None
    assert {row.path: row.ms for row in report.table.rows}.get("q") == 0.0  # it is in the time of y
    assert report.timed.nodes_ms <= report.timed.run_ms


@pytest.mark.parametrize("option", [("--depth", 2), ("--profile",)])
def test_options_that_go_with_by_module_alone(net_path: Path, option: tuple[object, ...]) -> None:
    result = burnish("inspect", net_path, *option)
    assert result.exit_code == 2
    assert "go with --by-module" in result.output


def test_bad_files_are_typed_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08not a model")
    for path in (tmp_path / "bad.onnx", tmp_path / "missing.onnx"):
        result = burnish("inspect", path, "--by-module", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error"]["code"].startswith("MODEL_")


def test_a_model_that_does_not_run_is_shown_without_macs_and_not_profiled(tmp_path: Path) -> None:
    text = "g (float[n, 4] x, float[n, 5] z) => (float[n, 4] y) { y = Add (x, z) }"
    model = parse(text)
    save_model(model, tmp_path / "m.onnx", signature(model))
    shown = burnish("inspect", tmp_path / "m.onnx", "--by-module")
    assert shown.exit_code == 0
    result = burnish("inspect", tmp_path / "m.onnx", "--by-module", "--profile", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"].startswith("MODEL_")
