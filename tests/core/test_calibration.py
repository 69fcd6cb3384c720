"""Calibration of a model: values in any groups, what channels are worth, killed and resumed, flat memory."""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import burnish
from burnish.byte_sizes import parse_bytes
from burnish.calibration import Calibration, Values
from burnish.cli import main
from burnish.errors import BurnishError, CalibrationError, InputError
from burnish.model import expose, save_model, signature, to_bytes
from burnish.runtime import memory
from burnish.runtime.calibrators import METHODS
from burnish.runtime.checkpoints import Checkpoint
from burnish.runtime.reference import Reference
from burnish.runtime.samples import Dataset
from burnish.testing import parse

Feeds = Callable[[int], list[dict[str, np.ndarray]]]
NAMES = ("e", "a", "gelu", "o", "r", "hidden")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ranges(
    model: ir.Model, data: object, names: tuple[str, ...] = NAMES, **how: object
) -> dict[str, tuple[float, float]]:
    return Calibration(**how).ranges(model, names, data, signature(model))  # type: ignore[arg-type]


def test_a_session_gives_the_values_and_nothing_else(encoder: ir.Model, encoder_feeds: Feeds) -> None:
    feeds = encoder_feeds(1)[0]
    names = ["gelu", "a"]
    session = Values(encoder, NAMES).open(names)
    assert session.outputs == tuple(names)
    everything = Reference(to_bytes(expose(encoder, names)))(feeds, names)
    for name, array in session.each(feeds, names):
        np.testing.assert_array_equal(array, everything[name])
    alone = expose(encoder, ["a"], alone=True)
    assert [node.op_type for node in alone.graph] == ["Gather", "Identity", "MatMul", "Add"]
    assert len(encoder.graph) > 4, "the model itself is as it was"


def test_sizes_are_those_of_the_arrays(encoder: ir.Model, encoder_feeds: Feeds) -> None:
    values = Values(encoder, [*NAMES, "weight"])
    for feeds in encoder_feeds(3):
        arrays = Reference(to_bytes(expose(encoder, [*NAMES, "weight"])))(feeds)
        assert values.sizes(feeds) == {name: arrays[name].nbytes for name in (*NAMES, "weight")}


CONV = """
g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {
    c = Conv <group = 2> (x, w)
    d = Conv (x, v)
    y = Add (c, d)
}
"""


def test_channels_of_a_conv_are_worth_their_squared_weights() -> None:
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((6, 2, 3, 3)), rng.standard_normal((6, 4, 3, 3))
    model = parse(CONV, weights={"w": w.astype(np.float32), "v": v.astype(np.float32)})
    gains = Values(model, ["x"]).gains()["x"]
    worth = np.square(v).sum(axis=(0, 2, 3))
    for channel in range(4):
        mine = slice(0, 3) if channel < 2 else slice(3, 6)
        worth[channel] += np.square(w[mine, channel % 2]).sum()
    assert gains.axis == 1
    np.testing.assert_allclose(gains.counts, worth / worth.max() * 4095, atol=1)


def test_channels_of_linears_are_worth_their_squared_weights() -> None:
    rng = np.random.default_rng(0)
    w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3), (7, 5)))
    model = parse(
        "g (float[N, 5] x) => (float[N, 3] y, float[N, 7] z) "
        "{ y = MatMul (x, w) z = Gemm <transB = 1> (x, b) }",
        weights={"w": w, "b": b},
    )
    gains = Values(model, ["x"]).gains()
    worth = np.square(w).sum(axis=1) + np.square(b).sum(axis=0)
    assert gains["x"].axis == -1
    np.testing.assert_allclose(gains["x"].counts, worth / worth.max() * 4095, atol=1)
    zero = parse("g (float[N, 5] x) => (float[N, 3] y) { y = MatMul (x, w) }", weights={"w": w * 0})
    np.testing.assert_array_equal(Values(zero, ["x"]).gains()["x"].counts, np.ones(5))


def test_the_digest_is_of_graph_weights_and_names(encoder: ir.Model) -> None:
    digest = Values(encoder, NAMES).digest()
    assert Values(burnish.model.copy_model(encoder), NAMES).digest() == digest
    assert Values(encoder, NAMES[:-1]).digest() != digest
    table = encoder.graph.initializers["table"]
    array = table.const_value.numpy().copy()
    array[3, 3] += 1e-3
    table.const_value = ir.tensor(array, name="table")
    assert Values(encoder, NAMES).digest() != digest


@pytest.mark.parametrize("method", METHODS)
def test_groups_do_not_change_a_range(
    method: str, encoder: ir.Model, encoder_feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoder_feeds(5)
    whole = ranges(encoder, data, method=method)
    runs: list[tuple[str, ...]] = []
    opened = Values.open
    monkeypatch.setattr(Values, "open", lambda self, names: runs.append(tuple(names)) or opened(self, names))
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert ranges(encoder, data, method=method) == whole
    assert set(runs) == {(name,) for name in NAMES}
    monkeypatch.setattr("burnish.runtime.calibrate._KEPT", 2)
    assert ranges(encoder, data, method=method) == whole


def test_ranges_are_of_the_model_as_it_is_written(encoder: ir.Model, encoder_feeds: Feeds) -> None:
    data = encoder_feeds(4)
    reference = Reference(to_bytes(expose(encoder, NAMES)))
    arrays = [reference(feeds, NAMES) for feeds in data]
    expected = {
        name: (min(float(a[name].min()) for a in arrays), max(float(a[name].max()) for a in arrays))
        for name in NAMES
    }
    assert ranges(encoder, data) == expected


def test_a_budget_that_cannot_be_kept_names_what_needs_how_much(
    encoder: ir.Model, encoder_feeds: Feeds
) -> None:
    with pytest.raises(CalibrationError) as caught:
        ranges(encoder, encoder_feeds(2), memory_budget=1_000_000)
    assert caught.value.code == "CALIB_MEMORY"
    assert "on sample 0" in caught.value.what
    assert "the budget is 1 MB" in caught.value.what
    assert "Raise --memory-budget to" in caught.value.hint
    needed = parse_bytes(caught.value.hint.split(" to ")[1].split(",")[0])
    assert ranges(encoder, encoder_feeds(2), memory_budget=needed + 200_000_000)


# -- the command ---------------------------------------------------------------------------------------

CHILD = """
import functools, sys, time
import burnish.calibration as calibration
import burnish.runtime.checkpoints as checkpoints
checkpoints._SLOWER = 0
calibration.Checkpoint = functools.partial(checkpoints.Checkpoint, every=0.0)
from burnish.runtime.reference import Reference
from burnish.runtime.samples import Dataset
each = Reference.each
def told(self, feeds, names):
    print("run", flush=True)
    return each(self, feeds, names)
Reference.each = told
from burnish.cli import main
main()
"""


def command(folder: Path, method: str) -> list[str]:
    return [
        sys.executable, "-P", "-c", CHILD, "quantize", "model.onnx", "-o", "int8.onnx", "--data", "samples",
        "--calibration", method, "--no-measured",
    ]  # fmt: skip


@pytest.fixture
def at_work(tmp_path: Path, encoder: ir.Model, encoder_feeds: Feeds) -> Path:
    """A folder with a model and 60 samples."""
    save_model(encoder, tmp_path / "model.onnx", signature(encoder))
    (tmp_path / "samples").mkdir()
    for number, feeds in enumerate(encoder_feeds(60)):
        np.savez(tmp_path / "samples" / f"{number:03}.npz", **feeds)
    return tmp_path


def run(folder: Path, method: str, kill_at: int | None = None) -> int:
    """Runs the command, killed (-9) after that many samples; how many the model was run on."""
    child = subprocess.Popen(
        command(folder, method), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = 0
    assert child.stdout is not None
    for line in child.stdout:
        seen += line == "run\n"
        if seen == kill_at:
            child.send_signal(signal.SIGKILL)
            break
    _, errors = child.communicate()
    assert child.returncode == (0 if kill_at is None else -signal.SIGKILL), errors
    return seen


def killed_and_resumed(folder: Path, method: str, moments: list[int]) -> None:
    cache = folder / "cache" / "calibration"
    with contextlib.chdir(folder):
        whole = CliRunner().invoke(main, command(folder, method)[4:])
    assert whole.exit_code == 0, whole.output
    expected = (folder / "int8.onnx").read_bytes()
    for moment in moments:
        (folder / "int8.onnx").unlink()
        run(folder, method, kill_at=moment)
        assert not (folder / "int8.onnx").exists()
        assert run(folder, method) <= 60 - moment + 2, "it went on from the last checkpoint"
        assert (folder / "int8.onnx").read_bytes() == expected
        assert list(cache.iterdir()) == []


def test_killed_by_the_system_it_goes_on(at_work: Path) -> None:
    killed_and_resumed(at_work, "percentile", [30])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["entropy", "moving-average"])
def test_killed_at_ten_moments_each(method: str, at_work: Path) -> None:
    killed_and_resumed(at_work, method, random.Random(method).sample(range(1, 61), 10))


def test_no_resume_starts_again(at_work: Path) -> None:
    run(at_work, "mse", kill_at=20)
    left = next((at_work / "cache" / "calibration").iterdir())
    done = subprocess.run(
        [*command(at_work, "mse"), "--no-resume"], cwd=at_work, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("run\n") == 60
    assert left.exists()


@pytest.mark.parametrize(("method", "files"), [("layerwise-percentile", 2), ("entropy", 1)])
def test_a_checkpoint_belongs_to_the_weights_that_decide(
    method: str, files: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = functools.partial(Checkpoint, every=-1.0)
    monkeypatch.setattr("burnish.runtime.checkpoints._SLOWER", 0)
    monkeypatch.setattr("burnish.calibration.Checkpoint", often)

    def interrupted() -> Iterator[dict[str, np.ndarray]]:
        for _ in range(3):
            yield {"x": np.ones((2, 5), np.float32)}
        raise KeyboardInterrupt

    for seed in range(2):  # the values of x are those of the input, whatever the weights behind it are
        w = np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32)
        model = parse("g (float[N, 5] x) => (float[N, 3] y) { y = MatMul (x, w) }", weights={"w": w})
        with pytest.raises(KeyboardInterrupt):
            ranges(model, Dataset(interrupted), ("x",), method=method)
    assert len(list((cache / "calibration").iterdir())) == files


# -- memory --------------------------------------------------------------------------------------------

WIDE = """
g (float[N, 3, 96, 96] x) => (float[N, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)  b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2)  d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w2)  f = Relu (e)
    m = GlobalAveragePool (f)  n = Flatten (m)  y = MatMul (n, w3)
}
"""
MEASURE = """
import json, sys
import numpy as np
from burnish.calibration import Calibration
from burnish.runtime import memory
from burnish.runtime.samples import Dataset
from burnish.sources import open_source
source, count, budget = open_source("wide.onnx"), int(sys.argv[1]), int(sys.argv[2]) or None
def samples():
    rng = np.random.default_rng(0)
    for number in range(count):  # the eight kinds of samples come again and again
        yield {"x": rng.standard_normal((1 + number % 2, 3, 96, 96)).astype(np.float32)}
most = [0]
def look(what, done, total):
    most[0] = max(most[0], memory.peak())
names = ["x", "a", "b", "c", "d", "e", "f", "n", "y"]
calibration = Calibration("percentile", memory_budget=budget, resume=False)
found = calibration.ranges(source.model, names, Dataset(samples), source.manifest, look)
print(json.dumps({"peak": most[0], "ranges": found}))
"""


def wide(folder: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 8)}
    weights = {k: rng.standard_normal(v).astype(np.float32) * 0.1 for k, v in shapes.items()}
    model = parse(WIDE, weights=weights)
    save_model(model, folder / "wide.onnx", signature(model))


def measured(folder: Path, count: int, budget: int = 0) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURE, str(count), str(budget)],
        cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts the peak on Linux only")
def test_memory_is_flat_and_under_the_budget(tmp_path: Path) -> None:
    wide(tmp_path)
    budget = 220_000_000
    few, many = (int(measured(tmp_path, count, budget)["peak"]) for count in (8, 800))  # type: ignore[call-overload]
    assert abs(many - few) <= 0.05 * few
    assert max(few, many) <= budget


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts the peak on Linux only")
def test_less_memory_the_same_ranges(tmp_path: Path) -> None:
    wide(tmp_path)
    free = measured(tmp_path, 4)
    tight = measured(tmp_path, 4, 200_000_000)
    assert tight["ranges"] == free["ranges"]
    assert int(tight["peak"]) <= 200_000_000  # type: ignore[call-overload]


# -- the Python API --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_quantises(method: str, encoder: ir.Model, encoder_feeds: Feeds) -> None:
    data = encoder_feeds(6)
    given = iter(data)  # read once only, so it is kept on disk
    made = burnish.quantize(encoder, data=given, calibration=method, measured=False)
    again = burnish.quantize(encoder, data=data, calibration=method, measured=False, memory_budget="4 GiB")
    assert to_bytes(made) == to_bytes(again)
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph) >= 2


def test_wrong_options_are_refused_before_the_work(tmp_path: Path) -> None:
    missing = tmp_path / "missing.onnx"
    wrong: list[tuple[dict[str, object], type[BurnishError], str]] = [
        ({"calibration": "minmaks"}, CalibrationError, "minmaks"),
        ({"calibration": "percentile", "percent": 3}, CalibrationError, "3 %"),
        ({"memory_budget": "lots"}, InputError, "'lots' is not a size"),
    ]
    for options, kind, said in wrong:
        with pytest.raises(kind, match=said):
            burnish.quantize(missing, data="random", output=tmp_path / "x.onnx", **options)


def test_a_bad_sample_far_behind_is_named(encoder: ir.Model, encoder_feeds: Feeds, tmp_path: Path) -> None:
    for number, feeds in enumerate(encoder_feeds(12)):
        if number == 11:
            feeds["weight"][0, 0, 0] = np.nan
        np.savez(tmp_path / f"{number:02}.npz", **feeds)
    with pytest.raises(CalibrationError) as caught:
        burnish.quantize(encoder, data=tmp_path, measured=False)
    assert caught.value.code == "CALIB_NONFINITE"
    assert "'weight' of calibration sample 11" in caught.value.what
    assert "11.npz" in caught.value.what


@pytest.mark.parametrize("one_way", [True, False])
def test_samples_are_not_held(one_way: bool, encoder: ir.Model, encoder_feeds: Feeds) -> None:
    living: set[int] = set()
    most = [0]

    def stream() -> Iterator[dict[str, np.ndarray]]:
        for number in range(40):
            feeds = {name: array.copy() for name, array in encoder_feeds(1)[0].items()}
            living.add(number)
            weakref.finalize(feeds["weight"], living.discard, number)
            yield feeds
            del feeds
            most[0] = max(most[0], len(living))

    data = stream() if one_way else Dataset(stream)
    burnish.quantize(encoder, data=data, measured=False)
    assert most[0] <= 8 + 2, "the first 8 are held, to judge rewrites on"
