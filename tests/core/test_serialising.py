"""A model piece by piece: the very bytes of the whole, whatever its tensors are."""

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from burnish import serialising
from burnish.errors import ExternalDataError, ModelError
from burnish.model import load_model, save_model, signature, to_bytes
from burnish.reader import hashed, record_of
from burnish.serialising import pieces

LARGE = np.random.default_rng(0).standard_normal((300, 100)).astype(np.float32)  # 120 kB


def proto(*tensors: TensorProto, doc: str = "a graph") -> onnx.ModelProto:
    """A model that adds them all to its input, in turn, and one of them again in the branches of an If."""
    nodes = [
        helper.make_node("Add", ["x" if i == 0 else f"s{i - 1}", tensor.name], [f"s{i}"])
        for i, tensor in enumerate(tensors)
    ]
    inner = numpy_helper.from_array(LARGE + 1, "inner")
    branch = helper.make_graph(
        [helper.make_node("Add", [f"s{len(tensors) - 1}", "inner"], ["t"])], "branch", [],
        [helper.make_tensor_value_info("t", 1, None)], [inner],
    )  # fmt: skip
    nodes.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    inputs = [helper.make_tensor_value_info("x", 1, [300, 100]), helper.make_tensor_value_info("c", 9, [])]
    graph = helper.make_graph(
        nodes, "gräph", inputs, [helper.make_tensor_value_info("y", 1, [300, 100])], list(tensors),
        doc_string=doc, value_info=[helper.make_tensor_value_info("s0", 1, [300, 100])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="k", value="v")
    return model


def plain() -> list[TensorProto]:
    return [numpy_helper.from_array(LARGE, "w"), numpy_helper.from_array(LARGE[:1] * 2, "small")]


def described() -> list[TensorProto]:
    tensor = numpy_helper.from_array(LARGE, "wé")
    tensor.doc_string = "what it is"
    return [tensor, *plain()]


def typed() -> list[TensorProto]:
    return [helper.make_tensor("w", 1, LARGE.shape, LARGE.ravel()), numpy_helper.from_array(LARGE, "v")]


def with_metadata() -> list[TensorProto]:
    tensor = numpy_helper.from_array(LARGE, "w")
    tensor.metadata_props.add(key="a", value="b")
    return [tensor]


@pytest.mark.parametrize("tensors", [plain, described, typed, with_metadata])
@pytest.mark.parametrize("where", ["in the proto", "in memory", "in a file", "mapped"])
def test_the_pieces_are_the_whole(
    tensors: Callable[[], list[TensorProto]], where: str, tmp_path: Path
) -> None:
    model = loaded(proto(*tensors()), where, tmp_path)
    expected = to_bytes(model)
    made = list(pieces(model))
    assert b"".join(made) == expected
    assert sum(len(piece) >= LARGE.nbytes // 2 for piece in made) <= 1  # gathered to 512 kB
    onnx.checker.check_model(expected)


@pytest.mark.parametrize(
    "tensor",
    [
        ir.Tensor(LARGE.T, name="w"),
        ir.LazyTensor(lambda: ir.tensor(LARGE.T), ir.DataType.FLOAT, ir.Shape([100, 300])),
        ir.LazyTensor(lambda: ir.tensor(LARGE), ir.DataType.FLOAT, ir.Shape([300, 100]), cache=True),
        ir.Tensor(LARGE.astype(ml_dtypes.bfloat16), name="w"),
        ir.Tensor(np.arange(1 << 18).reshape(512, 512).astype(ml_dtypes.int4), name="w"),
    ],
)  # fmt: skip
def test_values_as_they_lie_in_memory(tensor: ir.TensorProtocol) -> None:
    model = ir.from_proto(proto(*plain()))
    assert isinstance(model, ir.Model)
    model.graph.initializers["w"].const_value = tensor
    tensor.name = "w"
    made = b"".join(pieces(model))
    assert made == to_bytes(model)
    assert tensor.tobytes() in made


def loaded(source: onnx.ModelProto, where: str, folder: Path) -> ir.Model:
    path = folder / "m.onnx"
    external = where in ("in a file", "mapped")
    onnx.save(source, path, save_as_external_data=external, location="m.data", size_threshold=1024)
    model = load_model(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if where == "in memory":
            value.const_value = ir.Tensor(
                tensor.numpy(), name=tensor.name, doc_string=tensor.doc_string, metadata_props={"m": "n"}
            )
        elif where == "mapped":
            tensor.numpy()
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_is(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(LARGE, "k"))
    source = proto(*plain())
    source.graph.node.insert(0, constant)
    model = loaded(source, "in a file", tmp_path)
    onnx.save(
        source, tmp_path / "c.onnx", save_as_external_data=True, location="c.data", convert_attribute=True
    )
    model.graph[0].attributes["value"] = load_model(tmp_path / "c.onnx").graph[0].attributes["value"]
    expected = to_bytes(model)

    def tensors() -> list[ir.TensorProtocol | None]:
        held = [value.const_value for value in model.graph.initializers.values()]
        inner = model.graph[-1].attributes["then_branch"].as_graph()
        held += [value.const_value for value in inner.initializers.values()]
        return [*held, model.graph[0].attributes["value"].as_tensor()]

    before = tensors()
    assert isinstance(before[-1], ir.ExternalTensor)
    if fails:
        monkeypatch.setattr(serialising.ir, "to_proto", lambda model: {}["lost"])
        with pytest.raises(ModelError):
            pieces(model)
    else:
        assert b"".join(pieces(model)) == expected
    assert all(now is then for now, then in zip(tensors(), before, strict=True))


def test_a_large_tensor_is_never_whole_in_memory(tmp_path: Path) -> None:
    with open(tmp_path / "m.data", "wb") as file:
        file.truncate(64 << 20)
    tensor = TensorProto(
        name="w", data_type=1, dims=[16 << 20], data_location=TensorProto.EXTERNAL,
        external_data=[onnx.StringStringEntryProto(key="location", value="m.data")],
    )  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, 1, ["N"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    model = load_model(tmp_path / "m.onnx")
    tracemalloc.start()
    save_model(model, tmp_path / "n.onnx", signature(model))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "n.onnx").stat().st_size > 64 << 20
    assert peak < 48 << 20


def test_a_data_file_that_is_gone(tmp_path: Path) -> None:
    model = loaded(proto(*plain()), "in a file", tmp_path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ExternalDataError) as caught:
        save_model(model, tmp_path / "n.onnx", signature(model))
    assert caught.value.code == "EXT_MISSING"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_what_does_not_fit_into_one_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(proto(*plain()))
    assert isinstance(model, ir.Model)
    whole = len(to_bytes(model))
    monkeypatch.setattr(serialising, "MOST", whole)
    assert sum(map(len, pieces(model))) == whole
    monkeypatch.setattr(serialising, "MOST", whole - 1)
    with pytest.raises(ModelError) as caught:
        pieces(model)
    assert caught.value.code == "MODEL_SIZE"


@pytest.mark.parametrize("sizes", [[], [5], [1 << 20] * 9, [3, 1 << 17, 2, 1 << 18, 1]])
def test_bytes_on_their_way_are_measured(sizes: list[int]) -> None:
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    passing = hashed(iter(chunks))
    assert list(passing) == chunks
    assert passing.record == record_of(chunks)
    assert passing.record.sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()
