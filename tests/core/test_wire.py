"""The walk over protobuf bytes: it finds what onnx finds, stops where protobuf stops."""

import random
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from burnish.errors import ModelError
from burnish.tensors import byte_size, check_tensor
from burnish.wire import Limits, Tensor, Walk

node = helper.make_node


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3))


def weights(name: str) -> TensorProto:
    return numpy_helper.from_array(np.ones((2, 3), np.float32), name)


def everywhere() -> onnx.ModelProto:
    """A model with a tensor in every place where one can be."""
    inner = helper.make_graph(
        [node("Identity", ["in_branch"], ["t"])], "b", [], [value("t")], [weights("in_branch")]
    )
    deep = helper.make_graph(
        [node("If", ["c"], ["t"], then_branch=inner, else_branch=inner)],
        "d",
        [],
        [value("t")],
        [weights("in_loop")],
    )
    nodes = [
        node("Constant", [], ["k"], value=weights("in_constant")),
        node("Custom", ["x"], ["u"], domain="my", many=[weights("in_list_1"), weights("in_list_2")]),
        node("Custom", ["x"], ["v"], domain="my", graphs=[inner, deep]),
        node("If", ["c"], ["y"], then_branch=inner, else_branch=deep),
    ]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], [weights("in_graph")])
    function = helper.make_function(
        "my", "F", ["a"], ["b"], [node("Constant", [], ["b"], value=weights("in_function"))],
        [helper.make_opsetid("", 16)], attribute_protos=[helper.make_attribute("w", weights("in_default"))],
    )  # fmt: skip
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("my", 1)], ir_version=9,
        functions=[function],
    )  # fmt: skip
    sparse = helper.make_sparse_tensor(weights("in_sparse"), weights("in_indices"), [6])
    proto.graph.sparse_initializer.append(sparse)
    proto.graph.node.add(op_type="S", domain="my").attribute.add(name="s", type=11).sparse_tensor.CopyFrom(
        sparse
    )
    training = proto.training_info.add()
    training.initialization.initializer.append(weights("in_initialization"))
    training.algorithm.initializer.append(weights("in_algorithm"))
    return proto


def all_tensors(message: object) -> Iterator[TensorProto]:
    """Every TensorProto in a message, found by protobuf's own reflection."""
    if isinstance(message, TensorProto):
        yield message
    for descriptor, content in message.ListFields():  # type: ignore[attr-defined]
        if descriptor.message_type is not None:
            for part in content if hasattr(content, "add") else [content]:
                yield from all_tensors(part)


def walked(data: bytes, **limits: int) -> tuple[list[Tensor], Walk]:
    walk = Walk(data, "m.onnx", Limits(**limits))
    return list(walk.run()), walk


def test_every_tensor_is_found() -> None:
    proto = everywhere()
    tensors, _ = walked(proto.SerializeToString())
    expected = sorted(f"tensor '{tensor.name}'" for tensor in all_tensors(proto))
    assert len(expected) > 15
    assert sorted(tensor.label for tensor in tensors) == expected
    assert all(tensor.dims == [2, 3] and tensor.raw == 24 and tensor.dtype == 1 for tensor in tensors)


def test_versions_are_found() -> None:
    _, walk = walked(everywhere().SerializeToString())
    assert walk.found.ir_version == 9
    assert walk.found.opsets == [("", 17), ("my", 1)]
    assert walk.found.function_opsets == [("", 16)]


@pytest.mark.parametrize("place", [tensor.name for tensor in all_tensors(everywhere())])
def test_external_data_is_found_wherever_it_hides(place: str) -> None:
    proto = everywhere()
    for tensor in all_tensors(proto):
        if tensor.name == place:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="/etc/passwd")
    _, walk = walked(proto.SerializeToString())
    assert {tensor.label for tensor in walk.found.external} == {f"tensor '{place}'"}
    assert {tuple(tensor.entries) for tensor in walk.found.external} == {(("location", "/etc/passwd"),)}


def test_an_unnamed_tensor_is_called_by_its_node() -> None:
    graph = helper.make_graph(
        [node("Constant", [], ["k"], name="c1", value=weights(""))], "g", [], [value("k")]
    )
    (tensor,), _ = walked(helper.make_model(graph).SerializeToString())
    assert tensor.label == "the tensor of node 'c1'"


def test_dims_packed_and_not_and_negative() -> None:
    packed = b"\x0a\x0b\x02" + b"\xff" * 9 + b"\x01"
    model = b"\x3a%c\x2a%c" % (2 + len(packed) + 2, len(packed) + 2) + b"\x08\x07" + packed
    (tensor,), _ = walked(model)
    assert tensor.dims == [7, 2, -1]


@pytest.mark.parametrize(
    ("dtype", "field", "values"),
    [
        (TensorProto.FLOAT, "float_data", [1.0, 2.0, 3.0]),
        (TensorProto.COMPLEX64, "float_data", [1.0] * 6),
        (TensorProto.INT32, "int32_data", [1, -1, 1 << 30]),
        (TensorProto.FLOAT16, "int32_data", [1, 2, 65535]),
        (TensorProto.INT4, "int32_data", [1, 200]),
        (TensorProto.UINT2, "int32_data", [228]),
        (TensorProto.BOOL, "int32_data", [1, 0, 1]),
        (TensorProto.INT64, "int64_data", [-1, 300, 1 << 60]),
        (TensorProto.DOUBLE, "double_data", [1.0, 2.0, 3.0]),
        (TensorProto.COMPLEX128, "double_data", [1.0] * 6),
        (TensorProto.UINT64, "uint64_data", [1, 128, 1 << 63]),
        (TensorProto.UINT32, "uint64_data", [1, 128, 1 << 31]),
        (TensorProto.STRING, "string_data", [b"a", b"", b"ccc"]),
    ],
)
def test_typed_data_is_counted(dtype: int, field: str, values: list[object]) -> None:
    proto = onnx.ModelProto()
    tensor = proto.graph.initializer.add(data_type=dtype, dims=[3], name="w")
    getattr(tensor, field).extend(values)
    (found,), _ = walked(proto.SerializeToString())
    check_tensor(found, "m.onnx")
    getattr(tensor, field).append(values[0])
    (found,), _ = walked(proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        check_tensor(found, "m.onnx")
    assert caught.value.code == "TENSOR_SIZE"


@pytest.mark.parametrize(
    ("dtype", "dims", "size"),
    [
        (1, [], 4), (1, [0, 1 << 62], 0), (22, [3], 2), (25, [5], 2), (27, [4], 3), (15, [2], 32),
        (8, [5], 0), (7, [1 << 20, 1 << 30], 1 << 53),
    ],
)  # fmt: skip
def test_byte_size(dtype: int, dims: list[int], size: int) -> None:
    assert byte_size(Tensor("tensor 'w'", dtype, dims), "m.onnx") == size


def deep(levels: int) -> bytes:
    """Types within types: TypeProto.Sequence.elem_type is a TypeProto, and so on."""
    proto = onnx.ModelProto()
    kind = proto.graph.input.add(name="x").type
    for _ in range(levels):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = 1
    return proto.SerializeToString()


def test_depth_ends_where_protobuf_ends() -> None:
    accepted = 0
    for levels in range(40, 56):
        data = deep(levels)
        try:
            onnx.ModelProto.FromString(data)
        except DecodeError:
            with pytest.raises(ModelError) as caught:
                walked(data)
            assert caught.value.code == "MODEL_DEPTH"
        else:
            accepted += 1
            walked(data)
    assert 0 < accepted < 16


def test_what_was_seen_before_counts_again() -> None:
    proto = onnx.ModelProto()
    for _ in range(50):
        proto.graph.value_info.add(name="x").type.tensor_type.elem_type = 1
    fields = 1 + 50 * 5  # graph; value, name, type, tensor_type, elem_type
    walked(proto.SerializeToString(), max_fields=fields)
    with pytest.raises(ModelError) as caught:
        walked(proto.SerializeToString(), max_fields=fields - 1)
    assert caught.value.code == "MODEL_SIZE"


def test_what_was_seen_before_may_be_too_deep_elsewhere() -> None:
    shallow, deeper = onnx.GraphProto(), onnx.GraphProto()
    kind = shallow.value_info.add(name="x").type
    kind.sequence_type.elem_type.tensor_type.elem_type = 1
    deeper.node.add().attribute.add().g.value_info.add(name="x").type.CopyFrom(kind)
    for first, second in ((shallow, deeper), (deeper, shallow)):
        graph = first.SerializeToString() + second.SerializeToString()
        model = b"\x3a" + bytes([len(graph)]) + graph
        walked(model, max_depth=9)
        with pytest.raises(ModelError) as caught:
            walked(model, max_depth=8)
        assert caught.value.code == "MODEL_DEPTH"


def test_limits_of_fields() -> None:
    data = everywhere().SerializeToString()
    walked(data, max_fields=2000)
    with pytest.raises(ModelError) as caught:
        walked(data, max_fields=100)
    assert caught.value.code == "MODEL_SIZE"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x3b", "unknown wire type 3"),
        (b"\x3c", "unknown wire type 4"),
        (b"\x02\x00", "number 0"),
        (b"\x3a\x05abc", "runs 2 bytes past the end"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "past the end"),
        (b"\xff" * 11, "ends inside a number"),
        (b"\x09abc", "past the end"),
        (b"\x3a\x00\x3a\x00", "second"),
    ],
)
def test_damage_names_the_byte(data: bytes, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        walked(data)
    assert caught.value.code == "MODEL_PARSE"
    assert words in caught.value.what
    assert "at byte" in caught.value.what


def test_unknown_fields_are_stepped_over() -> None:
    data = everywhere().SerializeToString()
    unknown = b"\xd2\x0f\x03abc" + b"\xd8\x0f\x05" + b"\xdd\x0f1234" + b"\xd9\x0f12345678"
    assert len(walked(data + unknown)[0]) == len(walked(data)[0])


def test_flipped_bytes_give_typed_errors_only() -> None:
    good, rng = everywhere().SerializeToString(), random.Random(0)
    outcomes: dict[str, int] = {}
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 4))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            for tensor in Walk(bytes(data), "m.onnx", Limits()).run():
                check_tensor(tensor, "m.onnx")
            code = "accepted"
        except ModelError as error:
            code = error.code
        outcomes[code] = outcomes.get(code, 0) + 1
    assert set(outcomes) <= {"accepted", "MODEL_PARSE", "MODEL_UTF8", "TENSOR_DTYPE", "TENSOR_SIZE"}
    assert outcomes["MODEL_PARSE"] > 500


def test_what_is_refused_as_damaged_protobuf_refuses_too() -> None:
    """No false alarm: where the walk says MODEL_PARSE for flipped bytes, onnx cannot use the file either."""
    good, rng = everywhere().SerializeToString(), random.Random(1)
    alarms = 0
    for _ in range(2000):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            walked(bytes(data))
        except ModelError as error:
            if error.code != "MODEL_PARSE" or "second" in error.what or "wire type" in error.what:
                continue
            alarms += 1
            with pytest.raises(DecodeError):
                onnx.ModelProto.FromString(bytes(data))
    assert alarms > 100
