"""A session on the CPU: results, errors, placement, binding, profile, what is executed."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from burnish.artifact import Artifact
from burnish.errors import (
    ArtifactError,
    BurnishError,
    ExternalDataError,
    InputError,
    ModelError,
    ProviderError,
    SessionError,
    TargetError,
)
from burnish.manifest import DimRange, Manifest, TensorSpec, decode, encode
from burnish.runtime.options import Options
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


def test_placement_is_read_back(add: bytes) -> None:
    session = Session(add)
    assert list(session.last_placement.values()) == ["CPUExecutionProvider"]
    assert session.placement_summary == {"CPUExecutionProvider": {"Add": 1}}


GELU = """
    g (float[n, 4] x) => (float[n, 4] y)
        <float[4] b = {1, 2, 3, 4}, float r = {1.4142135}, float o = {1}, float h = {0.5}>
    {
        a = Add (x, b)
        d = Div (a, r)
        e = Erf (d)
        p = Add (e, o)
        m = Mul (a, p)
        y = Mul (m, h)
    }
"""


def test_executed_ops_are_those_after_fusion(make: Make) -> None:
    fused = Session(make(GELU)).executed_ops()
    assert fused == {"com.microsoft::BiasGelu": 1}
    plain = Session(make(GELU), options=Options(optimize=False)).executed_ops()
    assert plain == {"Add": 2, "Mul": 2, "Div": 1, "Erf": 1}


def test_a_fused_node_still_makes_a_value_of_the_model(make: Make) -> None:
    (node,) = Session(make(GELU)).executed_nodes()
    assert node.outputs == ("y",)


def test_executed_ops_leave_no_files(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    session = Session(make(GELU))
    session.executed_ops()
    session.profile({"x": full(1, 2, 4)}, runs=1)
    assert list(tmp_path.iterdir()) == []


def test_profile_adds_up(make: Make) -> None:
    session = Session(make(GELU), options={"optimize": False})
    profile = session.profile({"x": full(1, 64, 4)}, runs=3)
    assert profile.runs == 3
    assert {op.op: op.count for op in profile.ops} == {"Add": 2, "Mul": 2, "Div": 1, "Erf": 1}
    assert sum(op.share for op in profile.ops) == pytest.approx(1)
    assert len(profile.nodes) == 6
    assert [op.ms for op in profile.ops] == sorted((op.ms for op in profile.ops), reverse=True)


def test_profile_checks_its_inputs(add: bytes) -> None:
    with pytest.raises(InputError):
        Session(add).profile({"x": full(1, 1, 3)})


def test_bind_reuses_its_outputs(add: bytes) -> None:
    bound = Session(add).bind()
    first = bound(x=full(1, 2, 3), z=full(1, 2, 3))["y"]
    second = bound(x=full(2, 2, 3), z=full(2, 2, 3))["y"]
    assert second is first
    assert first.tolist() == full(4, 2, 3).tolist()
    assert bound(x=full(1, 4, 3), z=full(1, 4, 3))["y"].shape == (4, 3)
    assert bound(x=full(1, 2, 3), z=full(2, 2, 3))["y"].tolist() == full(3, 2, 3).tolist()


def test_bind_reads_inputs_in_place(add: bytes) -> None:
    bound = Session(add).bind()
    x, z = full(1, 1, 3), full(0, 1, 3)
    bound(x=x, z=z)
    x[:] = 7
    assert bound(x=x, z=z)["y"].tolist() == [[7, 7, 7]]
    view = np.arange(6, dtype=np.float32).reshape(3, 2).T[:1]
    bound(x=view, z=z)
    view[:] = 9
    assert bound(x=view, z=z)["y"].tolist() == [[9, 9, 9]]


def test_bind_with_outputs_whose_shape_depends_on_data(make: Make) -> None:
    bound = Session(
        make("g (float[n] x) => (int64[1, k] i, float[n] y) { i = NonZero (x)  y = Neg (x) }")
    ).bind()
    assert bound(x=np.array([1, 0, 1], np.float32))["i"].tolist() == [[0, 2]]
    found = bound(x=np.array([0, 0, 1], np.float32))
    assert found["i"].tolist() == [[2]]
    assert found["y"].tolist() == [0, 0, -1]


def test_bind_where_the_model_names_its_dims_wrongly(make: Make) -> None:
    proto = onnx.ModelProto.FromString(
        make("g (float[n] x, float[n] z) => (float[m] y) { y = Concat <axis = 0> (x, z) }")
    )
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    bound = Session(proto.SerializeToString()).bind()
    for n in (1, 2, 2):
        assert bound(x=full(1, n), z=full(2, n))["y"].shape == (2 * n,)


def test_bind_after_an_error_works_again(make: Make) -> None:
    bound = Session(
        make("g (float[n] x, int64[1] s) => (float[n] r, float[m] y) { r = Neg (x) y = Reshape (x, s) }")
    ).bind()
    with pytest.raises(ModelError) as caught:
        bound(x=full(1, 4), s=[3])
    assert caught.value.code == "MODEL_RUN"
    assert bound(x=full(1, 4), s=[4])["y"].shape == (4,)


def test_many_threads_on_one_session(add: bytes) -> None:
    session, wrong = Session(add, threads=1), []

    def work(value: int) -> None:
        for rows in range(1, 60):
            found = session(x=full(value, rows, 3), z=full(0, rows, 3))["y"]
            if not (found == value).all() or found.shape != (rows, 3):
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(BurnishError) as caught:
        Session(tmp_path)
    assert caught.value.code == "ARTIFACT_MISSING"


def test_unknown_option() -> None:
    with pytest.raises(InputError) as caught:
        Session(b"x" * 9, options={"optimise": True})
    assert caught.value.code == "OPTIONS"
    assert "'optimize'" in caught.value.hint


def test_unknown_provider(add: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        Session(add, "cudaa")
    assert caught.value.code == "EP_UNKNOWN"
    assert "'cuda'" in caught.value.hint


def test_running_loads_only_small_libraries(add: bytes, tmp_path: Path) -> None:
    """In a fresh interpreter, with an artifact: numpy, onnxruntime, msgspec, ml_dtypes and nothing heavy."""
    Artifact.from_onnx(on_disk(add, tmp_path / "raw.onnx")).save(tmp_path / "m.burnish")
    program = (
        "import sys, json, numpy as np\n"
        "import burnish\n"
        f"session = burnish.load({str(tmp_path / 'm.burnish')!r})\n"
        "x = np.ones((1, 3), np.float32)\n"
        "session(x=x, z=x); session.bind()(x=x, z=x); session.placement_summary\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout)) - set(sys.stdlib_module_names)
    allowed = {"numpy", "onnxruntime", "msgspec", "ml_dtypes", "burnish", "typing_extensions", "__main__"}
    foreign = {name for name in loaded - allowed if not name.startswith(("_", "pkg_resources"))}
    assert foreign == set(), f"loaded: {sorted(loaded)}"
