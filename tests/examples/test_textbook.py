"""The systems of the field's textbooks: each example trains, converts, runs, and reaches what it says."""

import os
import re
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

import burnish
from burnish.benchmarks import kit

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAYS = ["torch", "exported", "optimised", "int8"]


class Row(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    kilobytes: float
    metric: float
    p50_ms: float
    speedup: float


class Result(msgspec.Struct, forbid_unknown_fields=True):
    title: str
    metric: str
    timed: str
    rows: list[Row]
    remarks: list[str]


class Example(NamedTuple):
    name: str
    quick: float
    """What torch's metric reaches at least with `--quick` (a perplexity: at most)."""
    full: float
    """The same without."""
    lost: float
    """How far int8 may be from torch, in the metric."""
    needs: tuple[str, ...] = ()
    """Of the kit."""


TABLE = {
    example.name: example
    for example in (
        Example("perceptron", 85, 96, 2),
        Example("lstm_classifier", 65, 90, 2, ("reuters-r8",)),
        Example("bert_classifier", 75, 90, 4, ("minilm", "reuters-r8")),
        Example("gpt_decoder", 20, 5.5, 0.2, ("reuters-r8",)),
        Example("shared_transformer", 30, 97, 5),
    )
}


NAMES = [pytest.param(name, marks=[pytest.mark.kit] * bool(TABLE[name].needs)) for name in sorted(TABLE)]


class Ran(NamedTuple):
    example: Example
    folder: Path
    result: Result
    said: str


def run(example: Example, folder: Path, *options: str) -> Ran:
    for name in example.needs:
        try:
            kit.fetch(name)
        except kit.KitError as error:
            pytest.skip(error.what)
    if example.name == "lstm_classifier":
        pytest.importorskip("tensorboardX")
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{example.name}.py"), *options]
    done = subprocess.run(
        [*command, "--output", str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode((folder / "result.json").read_bytes(), type=Result)
    return Ran(example, folder, result, done.stdout)


def check(ran: Ran, least: float) -> None:
    """The metric is good, kept by export and optimisation, nearly so by int8, which is small."""
    rows = {row.name: row for row in ran.result.rows}
    assert list(rows) == WAYS
    torch, perplexity = rows["torch"].metric, ran.result.metric == "perplexity"
    assert torch <= least if perplexity else torch >= least
    for name in ("exported", "optimised"):  # of two equally likely answers, another may be the first
        assert rows[name].metric == pytest.approx(torch, abs=0.01 if perplexity else 0.51)
    assert rows["int8"].metric == pytest.approx(torch, abs=ran.example.lost)
    assert rows["int8"].kilobytes < 0.5 * rows["exported"].kilobytes
    assert all(row.p50_ms > 0 for row in rows.values())
    for row in rows.values():
        assert re.search(rf"│ {row.name} +│ +{row.kilobytes:,.1f} │", ran.said)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(1800)
def test_full(tmp_path: Path, name: str) -> None:
    check(run(TABLE[name], tmp_path), TABLE[name].full)


def stored_once(ran: Ran) -> None:
    """Feed-forward layers that encoder and decoder share in torch are stored once in every file."""
    for way, bytes_each in (("exported", 4), ("optimised", 4), ("int8", 1)):
        model = burnish.Artifact.open(ran.folder / way).model
        found = [v for v in model.graph.initializers.values() if v.const_value.size == 64 * 256]
        assert [value.const_value.nbytes for value in found] == [64 * 256 * bytes_each] * 4
        assert [len(products(value)) for value in found] == [2] * 4
        every = f"{64 * 256 * bytes_each * 4:,} bytes"
        assert f"{way}: 4 feed-forward matrices for 8 uses, {every}" in ran.result.remarks


def products(value: object) -> list[object]:
    """The MatMul and Gemm nodes that a weight reaches, through what only reads it."""
    found: list[object] = []
    for node in value.consumers():  # type: ignore[attr-defined]
        if node.op_type in ("MatMul", "Gemm"):
            found.append(node)
        elif node.op_type in ("DequantizeLinear", "Transpose"):
            found += products(node.outputs[0])
    return found


def logged(ran: Ran) -> None:
    """TensorBoard's file has loss, accuracy and rate of every step."""
    (file,) = (ran.folder / "logs").iterdir()
    scalars = read_scalars(file)
    assert set(scalars) == {"train/loss", "train/accuracy", "train/rate"}
    for found in scalars.values():
        assert [step for step, _ in found] == list(range(100))
    loss, accuracy, rate = (
        np.array([value for _, value in scalars[f"train/{name}"]]) for name in ("loss", "accuracy", "rate")
    )
    assert loss[-10:].mean() < 0.6 * loss[:10].mean()
    assert accuracy[-10:].mean() > accuracy[:10].mean()
    assert rate.argmax() in (8, 9), "warm-up over a tenth of the steps"
    assert rate.max() == pytest.approx(4e-3)
    assert rate[-1] < 1e-5, "a cosine to 0"
    assert (np.diff(rate[10:]) < 0).all()


def read_scalars(file: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, of an event file: records of length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found[value.tag].append((event.step, value.simple_value))
        at += 12 + length + 4
    return found


def tells(ran: Ran) -> None:
    """The decoder was exported with its cache, and tells a tale."""
    for way in WAYS[1:]:
        with burnish.load(ran.folder / way) as session:
            names = [spec.name for spec in session.inputs]
            assert names == ["input_ids", "attention_mask", *(
                f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")
            )]  # fmt: skip
    steps = [receipt.step for receipt in burnish.Artifact.open(ran.folder / "exported").manifest.receipts]
    assert steps == ["export", "decode"], "compared with PyTorch's greedy decoding"
    (told,) = (remark for remark in ran.result.remarks if remark.startswith("int8 tells"))
    assert "There was once a king who " in told
    assert len(told) >= 80


CHECKS: dict[str, Callable[[Ran], None]] = {
    "lstm_classifier": logged, "gpt_decoder": tells, "shared_transformer": stored_once,
}  # fmt: skip
"""What else there is to see in an example."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(900)
def test_quick(tmp_path: Path, name: str) -> None:
    ran = run(TABLE[name], tmp_path, "--quick")
    check(ran, ran.example.quick)
    weights = burnish.Artifact.open(tmp_path / "int8").model.graph.initializers.values()
    assert any(w.dtype.name in ("INT8", "UINT8") and w.const_value.size > 256 for w in weights)
    assert "deployed" in [r.step for r in burnish.Artifact.open(tmp_path / "int8").manifest.receipts]
    CHECKS.get(name, lambda _: None)(ran)


def test_the_readme_of_the_examples_shows_each() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in TABLE:
        assert f"python examples/{name}.py" in text
    assert text.count("│ torch ") == len(TABLE)
    assert text.count("│ int8 ") == len(TABLE)


def test_each_example_is_a_short_story() -> None:
    for name in TABLE:
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 120
