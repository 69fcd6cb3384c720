"""Unsound graphs: each ends in its own error, with a stable code, the culprit's name and two lines.

With test_bad_files and test_external_data this is the fault corpus of reference/reliability.md, section 2.1.
The last part is what must be handled, not refused.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from burnish.errors import ModelError
from burnish.graph_check import validate
from burnish.model import load_model, to_bytes
from burnish.runtime.reference import Reference

node = helper.make_node
ONES = np.ones((2, 3), np.float32)


def value(name: str, shape: Sequence[int] = (2, 3), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(*nodes: onnx.NodeProto, **parts: object) -> onnx.ModelProto:
    """x -> nodes -> y; `parts`: tensors, inputs, outputs, opset, imports, functions."""
    graph = helper.make_graph(
        nodes,
        "g",
        parts.get("inputs", [value("x")]),
        parts.get("outputs", [value("y")]),
        parts.get("tensors", []),
    )
    imports = [helper.make_opsetid("", parts.get("opset", 17)), *parts.get("imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=parts.get("functions", []))


def ones(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(ONES, name)


def changed(proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    change(proto)
    return proto


def raw(dims: Sequence[int], data: bytes | None, dtype: int = 1, **fields: object) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=dtype, dims=dims, **fields)
    if data is not None:
        tensor.raw_data = data
    return model(node("Add", ["x", "w"], ["y"]), tensors=[tensor])


def body(*nodes: onnx.NodeProto, output: str = "t", inputs: Sequence[str] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "b", [value(name) for name in inputs], [value(output)])


def branches(then: onnx.GraphProto, outer: Sequence[onnx.NodeProto] = ()) -> onnx.ModelProto:
    other = body(node("Neg", ["x"], ["e"]), output="e")
    chosen = node("If", ["c"], ["y"], name="choose", then_branch=then, else_branch=other)
    return model(*outer, chosen, inputs=[value("x"), value("c", (), TensorProto.BOOL)])


def function(*nodes: onnx.NodeProto, outputs: Sequence[str] = ("b",), opset: int = 17) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_function("my", "F", ["a"], outputs, nodes, imports)


def calls(*functions: onnx.FunctionProto, inputs: Sequence[str] = ("x",)) -> onnx.ModelProto:
    return model(
        node("F", inputs, ["y"], domain="my", name="call"),
        imports=[helper.make_opsetid("my", 1)], functions=functions,
    )  # fmt: skip


REFERS = model(node("Softmax", ["x"], ["y"], axis=1))
REFERS.graph.node[0].attribute[0].ref_attr_name = "q"
NO_DEFAULT = model(node("Relu", ["x"], ["y"]))
NO_DEFAULT.opset_import[0].domain = "my"
TWICE = calls(function(node("Relu", ["a"], ["b"])))
TWICE.functions[0].attribute_proto.extend([helper.make_attribute("k", 1)] * 2)
LISTED = node("Custom", ["x"], ["y"], domain="my", graphs=[body(node("Relu", ["nope"], ["t"]))])
LATER = function(node("Gelu", ["a"], ["b"]))
SPARSE_ATTRIBUTE = model(node("Constant", [], ["y"]))
SPARSE_ATTRIBUTE.graph.node[0].attribute.add(name="s", type=onnx.AttributeProto.SPARSE_TENSOR)
LOOP = helper.make_graph([node("Identity", ["k"], ["k2"])], "b", [value("k")], [value("k2")])
SELF_CALL = function(node("F", ["a"], ["b"], domain="my"))
SPARSE = model(node("Add", ["x", "w"], ["y"]))
SPARSE.graph.sparse_initializer.add(
    dims=[2, 3],
    values=numpy_helper.from_array(np.ones(2, np.float32), "w"),
    indices=numpy_helper.from_array(np.array([0, 5]), "i"),
)
DOUBLE_SOFTMAX = changed(
    model(node("Softmax", ["x"], ["y"], axis=1)),
    lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]),
)
MAP_INPUT = changed(
    model(node("Relu", ["x"], ["y"])),
    lambda m: m.graph.input.add(name="m").type.map_type.value_type.tensor_type.__setattr__("elem_type", 1),
)

GRAPHS: list[tuple[str, onnx.ModelProto, str, str]] = [
    ("cycle", model(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"], name="r"),
                    node("Neg", ["b"], ["y"])),
     "GRAPH_CYCLE", "Add node 'a' → Relu node 'r' → Add node 'a'"),
    ("uses itself", model(node("Add", ["x", "y"], ["y"])), "GRAPH_CYCLE", "Add node 'y' → Add node 'y'"),
    ("cycle through a branch", branches(body(node("Relu", ["y"], ["t"]))), "GRAPH_CYCLE", "If node 'choose'"),
    ("recursive function", calls(SELF_CALL), "GRAPH_CYCLE", "function 'F'"),
    ("output twice", model(node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])), "GRAPH_DUP_NAME", "'y'"),
    ("output twice in one node", model(node("Dropout", ["x"], ["y", "y"])), "GRAPH_DUP_NAME", "'y'"),
    ("initializer twice", model(node("Add", ["x", "w"], ["y"]), tensors=[ones(), ones()]),
     "GRAPH_DUP_NAME", "'w'"),
    ("input twice", model(node("Relu", ["x"], ["y"]), inputs=[value("x"), value("x")]),
     "GRAPH_DUP_NAME", "'x'"),
    ("input produced", model(node("Relu", ["x"], ["x"]), node("Neg", ["x"], ["y"])), "GRAPH_DUP_NAME", "'x'"),
    ("node name twice", model(node("Relu", ["x"], ["a"], name="n"), node("Neg", ["a"], ["y"], name="n")),
     "GRAPH_DUP_NAME", "'n'"),
    ("name of the outer graph", branches(body(node("Relu", ["x"], ["q"]), node("Neg", ["q"], ["t"])),
                                         [node("Abs", ["x"], ["q"])]), "GRAPH_DUP_NAME", "'q'"),
    ("function twice", calls(function(node("Relu", ["a"], ["b"])), function(node("Neg", ["a"], ["b"]))),
     "GRAPH_DUP_NAME", "my::F"),
    ("undefined input", model(node("Add", ["x", "nope"], ["y"], name="sum")),
     "GRAPH_DANGLING", "'nope' of Add node 'sum'"),
    ("undefined output", model(node("Relu", ["x"], ["z"])), "GRAPH_DANGLING", "Output 'y'"),
    ("undefined in a branch", branches(body(node("Relu", ["nope"], ["t"]))), "GRAPH_DANGLING", "then_branch"),
    ("outer value as a branch's output", branches(body(node("Relu", ["x"], ["t"]), output="x")),
     "GRAPH_DANGLING", "'x'"),
    ("undefined in a function", calls(function(node("Relu", ["x"], ["b"]))),
     "GRAPH_DANGLING", "function 'F'"),
    ("undefined output of a function", calls(function(node("Relu", ["a"], ["k"]))),
     "GRAPH_DANGLING", "Output 'b'"),
    ("inner value used outside", branches(body(node("Relu", ["x"], ["t"])), [node("Neg", ["t"], ["k"])]),
     "GRAPH_DANGLING", "'t' of Neg node 'k'"),
    ("initializer without a name", model(node("Relu", ["x"], ["y"]), tensors=[ones("")]),
     "GRAPH_UNNAMED", "initializer"),
    ("opset 999", model(node("Relu", ["x"], ["y"]), opset=999),
     "OPSET_UNSUPPORTED", "opset 999; supported are opsets 1 to 26"),
    ("opset -1", model(node("Relu", ["x"], ["y"]), opset=-1), "OPSET_UNSUPPORTED", "opset"),
    ("no opset", changed(model(node("Relu", ["x"], ["y"])), lambda m: m.ClearField("opset_import")),
     "OPSET_UNSUPPORTED", "no opset"),
    ("no default opset", NO_DEFAULT,
     "OPSET_UNSUPPORTED", "Relu node 'y'"),
    ("two opsets", model(node("Relu", ["x"], ["y"]), imports=[helper.make_opsetid("ai.onnx", 16)]),
     "OPSET_UNSUPPORTED", "17 and 16"),
    ("opset of a function", calls(function(node("Relu", ["a"], ["b"]), opset=99)),
     "OPSET_UNSUPPORTED", "opset 99"),
    ("IR 999", changed(model(node("Relu", ["x"], ["y"])), lambda m: m.__setattr__("ir_version", 999)),
     "OPSET_UNSUPPORTED", "IR version 999; supported are IR versions 3 to 13"),
    ("huge dims", raw([1 << 20, 1 << 20], bytes(48)), "TENSOR_SIZE", "'w'"),
    ("dims overflow", raw([1 << 62, 8], b""), "TENSOR_SIZE", "'w'"),
    ("negative dim", raw([3, -4], bytes(48)), "TENSOR_SIZE", "[3x-4]"),
    ("raw data too short", raw([2, 3], bytes(20)), "TENSOR_SIZE", "20 bytes instead of 24"),
    ("raw data too long", raw([2, 3], bytes(28)), "TENSOR_SIZE", "28 bytes instead of 24"),
    ("no data", raw([2, 3], None), "TENSOR_SIZE", "it has no data"),
    ("too few values", raw([2, 3], None, float_data=[1.0] * 5), "TENSOR_SIZE", "5 in field 4 instead of 6"),
    ("values of another dtype", raw([2, 3], None, int64_data=[1] * 6), "TENSOR_SIZE", "field 7"),
    ("raw and typed data", raw([2, 3], bytes(24), float_data=[1.0]), "TENSOR_SIZE", "at once"),
    ("dtype 77", raw([2, 3], bytes(24), dtype=77), "TENSOR_DTYPE", "'w'"),
    ("dtype 0", raw([2, 3], bytes(24), dtype=0), "TENSOR_DTYPE", "'w'"),
    ("raw strings", raw([2, 3], bytes(24), dtype=TensorProto.STRING), "TENSOR_DTYPE", "strings"),
    ("input of dtype 77", model(node("Relu", ["x"], ["y"]), inputs=[value("x", dtype=77)]),
     "TENSOR_DTYPE", "Value 'x'"),
    ("missing attribute", model(node("Cast", ["x"], ["y"])),
     "NODE_SCHEMA", "Cast node 'y' misses its required attribute 'to'"),
    ("unknown attribute", model(node("Relu", ["x"], ["y"], slope=1)), "NODE_SCHEMA", "'slope'"),
    ("attribute of another type", model(node("Softmax", ["x"], ["y"], axis=1.0)),
     "NODE_SCHEMA", "FLOAT instead of INT"),
    ("attribute twice", DOUBLE_SOFTMAX, "NODE_SCHEMA", "'axis' twice"),
    ("attribute without a value", changed(model(node("Constant", [], ["y"], value=ones())),
                                          lambda m: m.graph.node[0].attribute[0].ClearField("t")),
     "NODE_SCHEMA", "no value"),
    ("function's attribute outside of one", REFERS,
     "NODE_SCHEMA", "'axis' from a function"),
    ("too few inputs", model(node("Add", ["x"], ["y"])), "NODE_SCHEMA", "1 inputs instead of 2"),
    ("too many inputs", model(node("Relu", ["x", "x"], ["y"])), "NODE_SCHEMA", "2 inputs instead of 1"),
    ("required input empty", model(node("Add", ["x", ""], ["y"])), "NODE_SCHEMA", "input 'B'"),
    ("too many outputs", model(node("Relu", ["x"], ["y", "z"])), "NODE_SCHEMA", "2 outputs"),
    ("unknown op", model(node("Rellu", ["x"], ["y"])), "NODE_SCHEMA", "Rellu node 'y'"),
    ("op of a later opset", model(node("Gelu", ["x"], ["y"])), "NODE_SCHEMA", "opset 17"),
    ("deprecated op", model(node("Upsample", ["x", "x"], ["y"])), "NODE_SCHEMA", "Upsample"),
    ("branch with an input", branches(body(node("Relu", ["k"], ["t"]), inputs=["k"])),
     "NODE_SCHEMA", "then_branch"),
    ("loop with too few inputs", model(node("Loop", ["", "", "x"], ["y"], body=LOOP)),
     "NODE_SCHEMA", "'body'"),
    ("call with too many inputs", calls(function(node("Relu", ["a"], ["b"])), inputs=("x", "x")),
     "NODE_SCHEMA", "'call'"),
    ("function's attribute twice", TWICE, "GRAPH_DUP_NAME", "'F'"),
    ("undefined in one of several graphs", model(LISTED, imports=[helper.make_opsetid("my", 1)]),
     "GRAPH_DANGLING", "'nope' of Relu node 't'"),
    ("default of a later opset in a function", calls(LATER), "NODE_SCHEMA", "Gelu node 'b'"),
    ("sparse attribute", SPARSE_ATTRIBUTE, "MODEL_UNSUPPORTED", "'s'"),
    ("sparse initializer", SPARSE, "MODEL_UNSUPPORTED", "'w'"),
    ("map type", MAP_INPUT, "MODEL_UNSUPPORTED", "Map types"),
]  # fmt: skip


def write(folder: Path, proto: onnx.ModelProto) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def assert_refused(path: Path, code: str, culprit: str) -> None:
    before = {file: file.lstat().st_mtime_ns for file in path.parent.rglob("*")}
    with pytest.raises(ModelError) as caught:
        load_model(path)
    error = caught.value
    assert (type(error), error.code) == (ModelError, code)
    assert culprit in error.what
    lines = str(error).split("\n")
    assert lines == [error.what, error.hint]
    assert all(line.isprintable() and 10 < len(line) < 700 for line in lines)
    assert {file: file.lstat().st_mtime_ns for file in path.parent.rglob("*")} == before


@pytest.mark.parametrize(("proto", "code", "culprit"), [c[1:] for c in GRAPHS], ids=[c[0] for c in GRAPHS])
def test_a_graph_that_is_unsound(tmp_path: Path, proto: onnx.ModelProto, code: str, culprit: str) -> None:
    assert_refused(write(tmp_path / "d", proto), code, culprit)


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\nError: all is well" + "!" * 9999
    path = write(tmp_path / "d", model(node("Add", ["x", evil], ["y"])))
    assert_refused(path, "GRAPH_DANGLING", "\\x1b[2J")


def test_a_tensor_deeper_than_protobuf_reads(tmp_path: Path) -> None:
    """The walk looks at tensors without counting them as a level; protobuf has the last word."""
    graph = body(node("Relu", ["x"], ["t"]))
    constant = node("Constant", [], ["t"], value=ones())
    constant.attribute[0].t.metadata_props.add(key="k", value="v")
    for level in range(33):
        graph = helper.make_graph(
            [node("If", ["c"], ["t"], then_branch=graph)] if level else [constant], "g", [], []
        )
    with pytest.raises(ModelError) as caught:
        load_model(
            write(
                tmp_path / "d",
                helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
            )
        )
    assert caught.value.code == "MODEL_DEPTH"


def test_the_hint_names_the_nearest_op(tmp_path: Path) -> None:
    path = write(tmp_path / "d", model(node("LayerNorm", ["x", "x"], ["y"])))
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.hint == "Did you mean 'LayerNormalization'?"


# What must be handled, not refused.
DEEP = body(node("Relu", ["x"], ["t"]))
for _ in range(20):
    DEEP = body(node("If", ["c"], ["t"], then_branch=DEEP, else_branch=body(node("Neg", ["x"], ["t"]))))
NAN = numpy_helper.from_array(np.array([[np.nan, np.inf, -np.inf]] * 2, np.float32), "w")
EMPTY = numpy_helper.from_array(np.zeros((0, 3), np.float32), "w")
SHADOWED = helper.make_graph([node("Add", ["x", "w"], ["t"])], "b", [], [value("t")], [ones()])
HANDLED: list[tuple[str, onnx.ModelProto]] = [
    ("nan and inf weights", model(node("Add", ["x", "w"], ["y"]), tensors=[NAN])),
    ("zero-size weights", model(node("Concat", ["x", "w"], ["y"], axis=0), tensors=[EMPTY])),
    ("20 levels of If", branches(DEEP)),
    ("not sorted", model(node("Relu", ["a"], ["y"]), node("Abs", ["x"], ["a"]))),
    ("a fold bomb", model(node("ConstantOfShape", ["s"], ["k"]), node("ReduceSum", ["k"], ["r"], keepdims=0),
                          node("Add", ["x", "r"], ["y"]),
                          tensors=[numpy_helper.from_array(np.array([1 << 16, 1 << 16]), "s")])),
    ("shadowed by a subgraph's weight", branches(SHADOWED, [node("Abs", ["x"], ["w"])])),
    ("com.microsoft not imported", model(node("BiasGelu", ["x", "b"], ["y"], domain="com.microsoft"),
                                         tensors=[numpy_helper.from_array(ONES[0], "b")])),
    ("opset 6", model(node("Relu", ["x"], ["y"]), opset=6)),
]  # fmt: skip


@pytest.mark.parametrize("proto", [c[1] for c in HANDLED], ids=[c[0] for c in HANDLED])
def test_what_onnxruntime_runs_is_accepted(tmp_path: Path, proto: onnx.ModelProto) -> None:
    path = write(tmp_path / "d", proto)
    loaded = load_model(path)
    Reference(to_bytes(loaded))


def test_custom_ops_are_left_alone(tmp_path: Path) -> None:
    custom = node("Foo", ["x", "x", "x"], ["y", "z"], domain="my.ops", anything=1)
    path = write(tmp_path / "d", model(custom, imports=[helper.make_opsetid("my.ops", 1)]))
    assert [n.op_type for n in load_model(path).graph] == ["Foo"]


def test_validate_says_whether_nodes_are_sorted() -> None:
    assert validate(model(node("Abs", ["x"], ["a"]), node("Relu", ["a"], ["y"])))
    assert not validate(model(node("Relu", ["a"], ["y"]), node("Abs", ["x"], ["a"])))
    late = branches(body(node("Relu", ["late"], ["t"])))
    late.graph.node.append(node("Abs", ["x"], ["late"]))
    assert not validate(late)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_node_test_of_onnx_is_refused_by_mistake(tmp_path: Path) -> None:
    """Of the 1,884 node tests, all that exist at opset 26 are accepted."""
    from onnx.backend.test.loader import load_model_tests

    accepted = 0
    for case in load_model_tests(kind="node"):
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        if needs_newer(proto):
            continue
        proto.ir_version = min(proto.ir_version, 13)
        for opset in (*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)):
            opset.version = min(opset.version, 26) if opset.domain in ("", "ai.onnx") else opset.version
        load_model(write(tmp_path / "d", proto))
        accepted += 1
    assert accepted >= 1600


def needs_newer(proto: onnx.ModelProto) -> bool:
    versions = {opset.domain: opset.version for opset in proto.opset_import}
    return any(
        onnx.defs.get_schema(n.op_type, versions[n.domain], n.domain).since_version > 26
        for n in proto.graph.node
        if n.domain == ""
    )
