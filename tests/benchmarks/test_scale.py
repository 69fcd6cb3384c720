"""The graphs that the cost of optimising is measured on, and the report."""

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from burnish.benchmarks.layered import make_model
from burnish.benchmarks.scale import Cost, main, markdown, optimise


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, bool], Cost]:
    folder, found = tmp_path_factory.mktemp("scale"), {}
    for nodes in (90, 600):
        onnx.save(make_model(nodes), folder / "m.onnx")
        for checked in (False, True):
            found[nodes, checked] = optimise(folder / "m.onnx", checked=checked)
    return found


def test_checking_changes_nothing(costs: dict[tuple[int, bool], Cost]) -> None:
    for nodes in (90, 600):
        assert costs[nodes, True].left == costs[nodes, False].left
        assert costs[nodes, True].nodes == costs[nodes, False].nodes >= nodes


def test_every_layer_is_optimised_alike(costs: dict[tuple[int, bool], Cost]) -> None:
    small, large = costs[90, False], costs[600, False]
    per_layer = small.nodes - 1  # and one Identity at the end
    layers = (large.nodes - 1) // per_layer
    assert layers >= 6
    assert large.left <= layers * small.left  # attention, norms and Gelu in every layer are found
    assert small.left <= 12


def test_the_report_has_a_row_a_run_and_a_chart() -> None:
    runs = [Cost(1000, 70, False, 1.5, 100), Cost(1000, 70, True, 2.5, 120), Cost(3000, 210, False, 4.5, 200)]
    text = markdown(runs, {"cpu": "some CPU"})
    assert "| 1,000 | 70 | yes | 2.5 | 2500 | 120 |" in text
    assert "line [1500, 1500]" in text
    assert "3,000 nodes: 4.5 s, within the 60 s aimed at." in text


def test_the_command_runs_each_size_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--output", str(tmp_path), "--largest", "1000"])
    assert done.exit_code == 0, done.output
    assert done.output.count("µs a node") == 2
    assert (tmp_path / "scale.md").exists()
    assert (tmp_path / "scale.json").exists()
