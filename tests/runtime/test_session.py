"""A session on the CPU: results, errors, placement, binding, profile, what is executed."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from burnish.artifact import Artifact
from burnish.errors import (
    ArtifactError,
    ExternalDataError,
    InputError,
    ModelError,
    SessionError,
    TargetError,
)
from burnish.manifest import DimRange, Manifest, TensorSpec, decode, encode
from burnish.runtime.session import Session

Make = Callable[[str], bytes]


def full(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


def on_disk(model: bytes, path: Path) -> Path:
    path.write_bytes(model)
    return path


def test_call_with_names_and_with_a_mapping(add: bytes) -> None:
    session = Session(add)
    assert session(x=full(1, 2, 3), z=full(2, 2, 3))["y"].tolist() == full(3, 2, 3).tolist()
    assert session({"x": full(1, 1, 3)}, z=full(4, 1, 3))["y"][0, 0] == 5


def test_what_it_says_of_itself(add: bytes) -> None:
    session = Session(add, threads=1)
    assert session.inputs == (
        TensorSpec("x", "float32", ("n", 3)),
        TensorSpec("z", "float32", ("n", 3)),
    )
    assert session.outputs[0].name == "y"
    assert session.provider == "cpu"
    assert session.choice.why == "asked for"
    assert session.threads.intra_op == 1
    assert "cpu" in repr(session)


def test_from_a_path_a_string_and_bytes(add: bytes, tmp_path: Path) -> None:
    path = on_disk(add, tmp_path / "m.onnx")
    for source in (path, str(path), add):
        assert Session(source)(x=full(1, 1, 3), z=full(1, 1, 3))["y"].sum() == 6


def test_artifact_folder_brings_ranges_and_meanings(add: bytes, tmp_path: Path) -> None:
    made = Artifact.from_onnx(on_disk(add, tmp_path / "m.onnx"))
    spec = TensorSpec("x", "float32", ("n", 3), "mask")
    manifest = Manifest((spec, made.manifest.inputs[1]), made.manifest.outputs, {"n": DimRange(1, 2)})
    folder = tmp_path / "m.burnish"
    Artifact.create(made.model, manifest).save(folder)
    session = Session(folder)
    assert session.inputs[0].meaning == "mask"
    with pytest.raises(InputError, match="1 to 2") as caught:
        session(x=full(1, 3, 3), z=full(1, 3, 3))
    assert caught.value.code == "INPUT_SHAPE"


def test_artifact_objects_on_disk_and_in_memory(add: bytes, tmp_path: Path) -> None:
    on_file = Artifact.from_onnx(on_disk(add, tmp_path / "m.onnx"))
    in_memory = Artifact.create(on_file.model, on_file.manifest)
    for artifact in (on_file, in_memory):
        assert Session(artifact)(x=full(1, 1, 3), z=full(1, 1, 3))["y"].sum() == 6


def test_artifact_for_another_target_is_refused(add: bytes, tmp_path: Path) -> None:
    made = Artifact.from_onnx(on_disk(add, tmp_path / "m.onnx"))
    manifest = Manifest(made.manifest.inputs, made.manifest.outputs, target="tensorrt")
    artifact = Artifact.create(made.model, manifest)
    with pytest.raises(TargetError) as caught:
        Session(artifact)
    assert caught.value.code == "TARGET_MISMATCH"
    assert "tensorrt" in caught.value.what


def test_changed_artifact_is_refused(add: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "m.burnish"
    Artifact.from_onnx(on_disk(add, tmp_path / "m.onnx")).save(folder)
    (folder / "model.onnx").write_bytes(add.replace(b"Add", b"Sub"))
    with pytest.raises(ArtifactError) as caught:
        Session(folder)
    assert caught.value.code == "ARTIFACT_HASH"


def test_manifest_beside_a_plain_file_is_read(add: bytes, tmp_path: Path) -> None:
    Artifact.from_onnx(on_disk(add, tmp_path / "raw.onnx")).save(tmp_path / "m.onnx")
    beside = tmp_path / "m.burnish.json"
    manifest = decode(beside.read_bytes())
    beside.write_bytes(
        encode(Manifest(manifest.inputs, manifest.outputs, {"n": DimRange(1, 1)}, files=manifest.files))
    )
    with pytest.raises(InputError, match="1 to 1"):
        Session(tmp_path / "m.onnx")(x=full(1, 2, 3), z=full(1, 2, 3))


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "MODEL_PARSE"), (b"not a model\n", "FORMAT_UNKNOWN"), (b"\x80\x04K\x01.", "PICKLE_REFUSED")],
)
def test_files_that_are_no_models(content: bytes, code: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Session(on_disk(content, tmp_path / "m.onnx"))
    assert caught.value.code == code
    assert "m.onnx" in caught.value.what


def test_truncated_file(add: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Session(on_disk(add[:-10], tmp_path / "m.onnx"))
    assert caught.value.code == "MODEL_PARSE"


@pytest.mark.parametrize(
    ("source", "code"), [(b"", "MODEL_PARSE"), (b"garbage", "MODEL_PARSE"), (7, "MODEL_KIND")]
)
def test_sources_that_are_no_models(source: bytes, code: str) -> None:
    with pytest.raises(ModelError) as caught:
        Session(source)
    assert caught.value.code == code


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        Session(tmp_path / "none.onnx")


def test_onnxruntime_refuses_the_graph(make: Make) -> None:
    with pytest.raises(ModelError) as caught:
        Session(make("g (float[n] x) => (float[n] y) { y = com.microsoft.NoSuchOp (x) }"))
    assert caught.value.code in ("MODEL_LOAD", "NODE_UNSUPPORTED")
    assert "NoSuchOp" in caught.value.what
    assert "onnxruntime_src" not in caught.value.what


def test_bytes_never_reach_for_files_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    proto = onnx.ModelProto.FromString(make("g (float[n, 3] x) => (float[n, 3] y) { y = Add (x, w) }"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(full(1, 1, 3), "w"))
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(proto, tmp_path / "m.onnx", **options)
    assert Session(tmp_path / "m.onnx")(x=full(1, 1, 3))["y"].sum() == 6
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExternalDataError) as caught:
        Session((tmp_path / "m.onnx").read_bytes())
    assert caught.value.code == "EXT_MISSING"


def test_a_node_that_fails_is_named(make: Make) -> None:
    model = make("g (float[n] x, int64[1] s) => (float[m] y) { [cut] y = Reshape (x, s) }")
    with pytest.raises(ModelError) as caught:
        Session(model)(x=full(1, 4), s=[3])
    assert caught.value.code == "MODEL_RUN"
    assert "Reshape" in caught.value.what
    assert "onnxruntime_src" not in caught.value.what


def test_a_failed_run_says_nothing_on_stderr(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    session = Session(make("g (float[n] x, int64[1] s) => (float[m] y) { y = Reshape (x, s) }"))
    with pytest.raises(ModelError):
        session(x=full(1, 4), s=[3])
    assert capfd.readouterr() == ("", "")


def test_scalar_and_unknown_rank_are_told_apart(make: Make) -> None:
    proto = onnx.ModelProto.FromString(
        make("g (float s, float[n] x) => (float[n] y, float[k] w) { y = Mul (s, x)  w = Relu (x) }")
    )
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    session = Session(proto.SerializeToString())
    assert [spec.shape for spec in session.inputs] == [(), None]
    assert session(s=2.0, x=full(3, 2))["y"].tolist() == [6, 6]
    with pytest.raises(InputError) as caught:
        session(s=[2.0], x=full(3, 2))
    assert caught.value.code == "INPUT_RANK"


def test_texts_that_mean_no_name_do_not_tie_dims(make: Make) -> None:
    proto = onnx.ModelProto.FromString(
        make("g (float[a] x, float[b] z) => (float[c] y) { y = Concat <axis = 0> (x, z) }")
    )
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "None"
    assert Session(proto.SerializeToString())(x=full(1, 1), z=full(1, 2))["y"].shape == (3,)


def test_initializer_that_is_an_input_may_be_overridden(make: Make) -> None:
    proto = onnx.ModelProto.FromString(make("g (float[n] x, float[1] k) => (float[n] y) { y = Mul (x, k) }"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(full(2, 1), "k"))
    session = Session(proto.SerializeToString())
    assert [spec.name for spec in session.inputs] == ["x"]
    assert session(x=full(3, 1))["y"][0] == 6
    assert session(x=full(3, 1), k=full(5, 1))["y"][0] == 15


def test_empty_batch(add: bytes) -> None:
    assert Session(add)(x=full(1, 0, 3), z=full(1, 0, 3))["y"].shape == (0, 3)


def test_views_that_are_not_contiguous(add: bytes) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    assert (Session(add)(x=x, z=full(0, 2, 3))["y"] == x).all()


def test_strings(make: Make) -> None:
    session = Session(make("g (string[n] s) => (string[n] t) { t = Identity (s) }"))
    assert session.inputs[0].dtype == "str"
    assert session(s=["a", "bc"])["t"].tolist() == ["a", "bc"]
    assert session(s=np.array(["é"]))["t"].tolist() == ["é"]


def test_bfloat16_in_and_out(make: Make) -> None:
    session = Session(
        make("g (bfloat16[n] x) => (bfloat16[n] y, float[n] z) { y = Identity (x)  z = Cast <to=1> (x) }")
    )
    x = np.array([1.5, -2], ml_dtypes.bfloat16)
    found = session(x=x)
    assert found["y"].dtype == ml_dtypes.bfloat16
    assert found["y"].tolist() == [1.5, -2]
    assert found["z"].tolist() == [1.5, -2]
    found["y"][0] = 3
    assert x[0] == 1.5
    assert session.bind()(x=x)["y"].tolist() == [1.5, -2]


def test_float8_in_and_out(make: Make) -> None:
    session = Session(make("g (float8e4m3fn[n] x) => (float8e4m3fn[n] y) { y = Identity (x) }"))
    assert session.inputs[0].dtype == "float8_e4m3fn"
    assert session(x=[1.0, 448.0])["y"].astype(np.float32).tolist() == [1, 448]


def test_sequences_pass_unchecked(make: Make) -> None:
    session = Session(make("g (seq(float[2]) q) => (float[m] y) { y = ConcatFromSequence <axis=0> (q) }"))
    assert session(q=[full(1, 2), full(2, 2)])["y"].tolist() == [1, 1, 2, 2]
    with pytest.raises(SessionError) as caught:
        session.bind()
    assert caught.value.code == "BIND_UNSUPPORTED"


def test_only_some_outputs(make: Make) -> None:
    session = Session(make("g (float[n] x) => (float[n] y, float[n] z) { y = Relu (x)  z = Neg (x) }"))
    assert list(session.run({"x": full(1, 1)}, ["z"])) == ["z"]
    assert list(session.run({"x": full(1, 1)})) == ["y", "z"]
    with pytest.raises(ModelError) as caught:
        session.run({"x": full(1, 1)}, ["w"])
    assert caught.value.code == "OUTPUT_UNKNOWN"


def test_closed(add: bytes) -> None:
    with Session(add) as session:
        bound = session.bind()
    session.close()
    feeds = {"x": full(1, 1, 3), "z": full(1, 1, 3)}
    calls: list[Callable[[], object]] = [
        lambda: session(feeds), lambda: session.run(feeds, ["y"]), lambda: session.last_placement,
        lambda: bound(feeds), session.bind, session.executed_ops, lambda: session.profile(feeds),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(SessionError) as caught:
            call()
        assert caught.value.code == "SESSION_CLOSED"
    assert "closed" in repr(session)
