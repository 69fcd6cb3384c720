"""The judge of the export table: right is called right, and each kind of mistake is seen."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from burnish.benchmarks.export.cases import Loaded, resized
from burnish.benchmarks.export.judge import assignments, distance, judge_graph, paired, unpadded
from burnish.benchmarks.export.steppers import cache_pairs, positions

pytestmark = pytest.mark.torch


class Rows(torch.nn.Module):
    """relu(x) of each row, and their sum."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x.relu(), "total": x.relu().sum(-1)}


def case(sizes: tuple[int, ...] = (1, 2, 3)) -> Loaded:
    return Loaded(
        "hand-made/rows", Rows(), {"x": torch.randn(2, 4)}, {"x": {0: "batch"}}, {"batch": sizes}
    )  # fmt: skip


def graph(path: Path, op: str = "Relu", batch: str = "batch") -> Path:
    text = f"""
        <ir_version: 10, opset_import: ["": 21]>
        g (float[{batch}, 4] x) => (float[{batch}, 4] y, float[{batch}] total)
        <int64[1] last = {{-1}}>
        {{ y = {op} (x) total = ReduceSum <keepdims = 0> (y, last) }}
    """
    onnx.save(onnx.parser.parse_model(text), path / "model.onnx")
    return path / "model.onnx"


def test_a_right_graph(tmp_path: Path) -> None:
    found = judge_graph(case(), graph(tmp_path))
    assert (found.right, found.compared, found.error) == (True, 3, pytest.approx(0, abs=1e-6))


def test_a_graph_that_computes_something_else(tmp_path: Path) -> None:
    found = judge_graph(case(), graph(tmp_path, op="Abs"))
    assert not found.right
    assert "differs by" in found.parity


def test_a_fixed_dim(tmp_path: Path) -> None:
    found = judge_graph(case((2,)), graph(tmp_path, batch="2"))
    assert (found.parity, found.dims, found.right) == ("", "x[0]=2", False)
    found = judge_graph(case(), graph(tmp_path, batch="2"))
    assert "does not run" in found.parity


def test_a_graph_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    assert "cannot load" in judge_graph(case(), tmp_path / "model.onnx").parity


def test_sizes_that_the_module_refuses_are_counted(tmp_path: Path) -> None:
    class Even(Rows):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if x.shape[0] % 2:
                raise ValueError("odd")
            return super().forward(x)

    found = judge_graph(dataclasses.replace(case(), module=Even()), graph(tmp_path))
    assert (found.right, found.compared, found.refused) == (True, 1, 2)


def test_all_combinations_of_sizes() -> None:
    two = dataclasses.replace(case(), sizes={"batch": (1, 2), "sequence": (1, 7)})
    assert len(list(assignments(two))) == 4


def test_distance() -> None:
    assert distance(np.ones(3), np.ones(4)) == np.inf
    assert distance(np.array([np.nan, 1]), np.array([1, 1])) == np.inf
    assert distance(np.array([np.nan, 10.0]), np.array([np.nan, 11.0])) == pytest.approx(0.1)


def test_outputs_are_paired_by_name_or_place() -> None:
    one, two = np.ones(1), np.zeros(1)
    assert [p[0] for p in paired({"a": one, "b": two}, {"b": two, "a": one})] == ["a", "b"]
    assert [p[0] for p in paired({"a": one, "b": two}, {"linear_3": one})] == ["a"]
    assert paired({"a": one}, {"x": one, "y": two}) == []


def test_padding_is_not_compared() -> None:
    mask = torch.tensor([[1, 1], [1, 0]])
    wanted, found = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    found[1, 1] = 5
    one, two = unpadded(wanted, found, {"attention_mask": mask})
    assert distance(one, two) == 0


def test_masks_keep_their_first_row_whole() -> None:
    mask = resized("attention_mask", torch.ones(2, 5, dtype=torch.int64), {0: 3, 1: 9}, seed=3)
    assert mask.shape == (3, 9)
    assert mask[0].all()
    assert (mask.sum(1) >= 1).all()


def test_ids_stay_in_the_vocabulary() -> None:
    ids = resized("input_ids", torch.tensor([[3, 5, 8]]), {0: 2, 1: 40}, seed=0)
    assert set(ids.flatten().tolist()) <= {3, 5, 8}


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("input.past_key_values.layers.0.keys", "output.past_key_values.layers.0.keys"),
        ("cache_params.layers.0.conv_states.0", "cache_params.layers.0.conv_states.0"),
    ],
)
def test_caches_are_paired_however_they_are_called(name: str, output: str) -> None:
    assert cache_pairs([name, "input_ids"], ["logits", output]) == {name: output}


def test_positions_are_counted_by_the_mask() -> None:
    assert positions(np.array([[0, 0, 1, 1, 1]]), 2).tolist() == [[1, 2]]
