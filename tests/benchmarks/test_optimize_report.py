"""The report of the comparison, from made-up rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.benchmarks.optimize.report import cells, markdown, write_report
from burnish.benchmarks.optimize.rows import SOURCE, Result, Row
from burnish.benchmarks.optimize.summary import Beside, Summary, claims, geomean
from burnish.benchmarks.optimize.tools import ALONE, OURS


def right(tool: str, nodes: int, speedup: float, seconds: float = 1.0, peak_mb: float = 400.0) -> Row:
    return Row(
        tool, nodes, {}, True, True, 1e-7, "", seconds, peak_mb, 10 / speedup, 11 / speedup, speedup, speedup
    )


def result(model: str, family: str, ours: Row, *peers: Row, size: int = 100 * 2**20) -> Result:
    source = Row(SOURCE, 100, {}, True, True, 0.0, min_ms=10.0, p50_ms=11.0, speedup=1.0, p50_speedup=1.0)
    return Result(model, family, size, {"batch": 1}, 4, rows=[source, *peers, ours])


@pytest.fixture
def results() -> list[Result]:
    bert = result(
        "bert-base", "transformer", right("burnish", 50, 1.3), right("onnxsim", 80, 1.0, 4.0),
        right("onnxscript", 60, 1.1), Row("OnnxSlim", failure="no result in 900 s"),
    )  # fmt: skip
    bert.rows.append(right(ALONE, 50, 1.0, 1.0, 500.0))
    resnet = result("resnet-50", "convolution", right("burnish", 90, 0.9), right("onnxsim", 85, 1.0, 2.0))
    wrong = Row("onnxoptimizer", 10, {}, True, False, None, "differs | at y", 1.0, 100.0)
    resnet.rows.append(wrong)
    ours, peer = resnet.row("burnish"), resnet.row("onnxsim")
    assert ours is not None
    assert peer is not None
    ours.ops, peer.ops = {"Conv": 53, "Add": 30, "Relu": 7}, {"Conv": 53, "Add": 20, "Gemm": 1}
    return [bert, resnet]


def test_the_best_peer_is_one_that_is_right(results: list[Result]) -> None:
    assert Summary.of(results).nodes("burnish") == [
        Beside("bert-base", 50, 60, "onnxscript"),
        Beside("resnet-50", 90, 85, "onnxsim", ("Add +10", "Relu +7")),
    ]
    assert Summary.of(results).speed()[0] == Beside("bert-base", 1.3, 1.1, "onnxscript")


def test_every_acceptance_number_is_met_or_not(results: list[Result]) -> None:
    found = {claim.what: (claim.figure, claim.met) for claim in claims(Summary.of(results))}
    assert found == {
        "valid and equal": ("2 of 2", True),
        "fewer nodes than the best peer": ("on 1 of 2", False),
        "more nodes than the best peer": ("on 1 of 2", False),
        "fewer nodes than the best peer, passes alone": ("on 1 of 1", True),
        "more nodes than the best peer, passes alone": ("on 0 of 1", True),
        "latency against the best peer, 1 transformers": ("1.18 ×", True),
        "latency against the best peer, 1 convolutional nets": ("0.90 ×", False),
        "slower than the raw file": ("on 1 of 2", False),
        "time against onnxsim, passes alone": ("0.25 ×", True),
        "time against OnnxSlim, passes alone": ("-", None),
        "peak memory, passes alone": ("on 0 of 1", False),
    }


def test_what_products_leave_to_win_is_told(results: list[Result]) -> None:
    assert Summary.of(results).ceiling() is None
    results[0].products = 0.8
    assert Summary.of(results).ceiling() == pytest.approx(1 / (0.8 * 1.1))
    text = "\n".join(markdown(results))
    assert "| transformer | 1 | 1.182 | 1.136 | 1.300 |" in text
    assert "Products: 80 % of the source's run." in text


def test_what_is_not_equal_is_not_met() -> None:
    bad = Row("burnish", 5, {}, True, False, None, "differs at y", 1.0, 100.0)
    found = claims(Summary.of([result("m", "other", bad)]))
    assert (found[0].figure, found[0].met) == ("0 of 1", False)


def test_without_results_nothing_is_claimed() -> None:
    assert {claim.met for claim in claims(Summary.of([]))} == {None}
    assert geomean([]) is None
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)


def test_slower_means_by_both_times(results: list[Result]) -> None:
    assert Summary.of(results).slower() == [("resnet-50", 0.9)]
    noisy = results[1].row("burnish")
    assert noisy is not None
    noisy.p50_speedup = 1.0
    assert Summary.of(results).slower() == []


def test_the_report_says_where_it_is_behind(results: list[Result]) -> None:
    results.append(Result("gpt2", "transformer", failure="not exported: no"))
    text = "\n".join(markdown(results))
    assert "| fewer nodes than the best peer | on 1 of 2 | ≥ 90 % | **not met** |" in text
    assert "| resnet-50 | 90 | 85 | onnxsim | +5 | Add +10, Relu +7 |" in text
    assert "Slower than the raw file: resnet-50 (0.90 ×)." in text
    assert "| onnxsim | 2 | 2 | 2 | 2 | 82 % | 1.00 | 2.83 |" in text
    assert "| OnnxSlim | bert-base | no result in 900 s |" in text
    assert "No model to compare on: gpt2 (not exported: no)." in text
    assert "differs \\| at y" in text
    assert "Not run (" in text
    assert "| burnish | 50 | yes | yes | 1e-07 | 1.00 | 400 | 7.69 | 8.46 | 1.300 |  |" in text


def test_it_is_written_in_the_order_of_the_table(results: list[Result], tmp_path: Path) -> None:
    mine = result("my-model", "other", right("burnish", 5, 1.0))
    write_report({each.model: each for each in [mine, *reversed(results)]}, tmp_path)
    text = (tmp_path / "optimize.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][-3:] == [
        "bert-base", "resnet-50", "my-model"
    ]  # fmt: skip
    assert (tmp_path / "optimize.json").stat().st_size > 500


def test_a_tool_without_a_result_has_no_verdict() -> None:
    assert cells(Row("onnxsim", failure="killed"))[1:4] == ("-", "-", "-")
    assert set(OURS) > {ALONE}


def test_what_noise_allowed_is_told() -> None:
    assert cells(Row("onnxsim", 5, {}, True, True, 2e-4, note="y is 0.0002 off"))[-1] == "y is 0.0002 off"
