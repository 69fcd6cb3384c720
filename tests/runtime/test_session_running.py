"""What a session says of its runs, and runs with outputs in place."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from burnish.artifact import Artifact
from burnish.errors import (
    BurnishError,
    InputError,
    ModelError,
    ProviderError,
)
from burnish.runtime.options import Options
from burnish.runtime.session import Session

Make = Callable[[str], bytes]


def full(value: float, *shape: int) -> np.ndarray:
    return np.full(shape, value, np.float32)


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
    (tmp_path / "raw.onnx").write_bytes(add)
    Artifact.from_onnx(tmp_path / "raw.onnx").save(tmp_path / "m.burnish")
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
