"""The table of exporters: its cases, its rows, its report, and a few of its architectures."""

from pathlib import Path

import pytest
import torch

from burnish.benchmarks.export import cases, report
from burnish.benchmarks.export.explained import EXPLAINED
from burnish.benchmarks.export.job import Request, Row, run
from burnish.benchmarks.export.peers import _older_config
from burnish.benchmarks.export.sweep import read_rows
from burnish.benchmarks.export.zoo import Architecture, architectures, build
from burnish.exporter.tasks import TASKS

pytestmark = pytest.mark.torch


def test_a_hundred_architectures_over_all_tasks() -> None:
    found = list(architectures())
    assert len({case.kind for case in found}) >= 100
    assert len({case.name for case in architectures(more=True)}) == len(list(architectures(more=True)))
    # An encoder with pooling behind it: no peer exports that, so it would be compared with nothing.
    assert {case.task for case in found} == set(TASKS) - {"sentence-embedding"}


def test_every_explained_failure_is_a_case() -> None:
    assert set(EXPLAINED) <= set(cases.names(more=True))


def test_cases_are_chosen_by_pattern() -> None:
    assert cases.chosen(["bert"]) == ["fill-mask/bert"]
    assert "hand-made/lstm" in cases.chosen(["hand-made/*"])
    assert "text-generation/olmo" in cases.chosen(["olmo*"])


def test_models_are_small_and_the_same_every_time() -> None:
    one, notes = build(Architecture("llama", "text-generation"))
    two, _ = build(Architecture("llama", "text-generation"))
    assert sum(weight.numel() for weight in one.parameters()) < 100_000
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert notes == ()  # decoding varies


def test_hand_made_networks_run_at_their_sizes(tmp_path: Path) -> None:
    for name in ("lstm-packed", "index-put-scatter", "nonzero-rows"):
        made = cases.load(f"hand-made/{name}", tmp_path)
        assert made.module(**made.inputs).shape[0] > 0


def test_the_last_row_of_a_case_counts_and_cut_lines_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"case":"a/b","exporter":"torch","failure":"old"}\n{"case":"a/b","exporter":"torch","status":"right"}\n'
        '{"case":"a/c","exp'
    )
    assert {key: row.status for key, row in read_rows(path).items()} == {("a/b", "torch"): "right"}


def test_the_report_counts_and_explains(tmp_path: Path) -> None:
    names = ["fill-mask/bert", "text-generation/llama", "hand-made/lstm"]
    rows = [
        Row("fill-mask/bert", "burnish", "right", parity=True, seconds=2.0),
        Row("text-generation/llama", "burnish", "failed", failure="no | op"),
        Row("text-generation/llama", "torch", "wrong", parity=True, decode="no cache", failure="no cache"),
        Row("hand-made/lstm", "burnish", "right", parity=True),
    ]
    found = {(row.case, row.exporter): row for row in rows}
    first = report.summaries(found, names[:2])[0]
    assert (first.right, first.failed, first.total, first.parity) == (1, 1, 2, 1)
    report.write_report(found, tmp_path, names)
    text = (tmp_path / "export.md").read_text()
    assert "| burnish | 1 | 0 | 1 | 2 | 50.0 |" in text
    assert "no \\| op" in text
    assert "| no cache |" in text
    assert (tmp_path / "export.json").stat().st_size > 500


def test_configurations_are_read_by_older_transformers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}, "dtype": "float32"}')
    _older_config(path)
    assert '"rope_theta": 5.0, "rope_type"' in path.read_text()
    assert '"torch_dtype": "float32"' in path.read_text()


@pytest.mark.parametrize("case", ["image-classification/resnet", "text-generation/gpt2"])
def test_burnish_is_right(case: str) -> None:
    row = run(Request(case, "burnish"))
    assert (row.status, row.failure) == ("right", "")
    assert row.compared > 2
    assert row.nodes
    assert row.decode == ("same" if "generation" in case else "-")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    ["fill-mask/bert", "text2text-generation/t5", "automatic-speech-recognition/whisper",
     "text-generation/mamba", "zero-shot-image-classification/clip", "hand-made/lstm-packed"],
)  # fmt: skip
def test_burnish_is_right_on_more(case: str) -> None:
    assert run(Request(case, "burnish")).status == "right"


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["torch", "transformers"])
def test_peers_are_judged(exporter: str) -> None:
    assert run(Request("image-classification/resnet", exporter)).status == "right"


def test_a_missing_peer_says_so() -> None:
    row = run(Request("hand-made/lstm", "optimum"))
    assert (row.status, row.failure) == ("failed", "PeerError: not installed: give its Python with --peers")
