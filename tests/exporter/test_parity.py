import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.errors import ExportError, MismatchError, ModelError
from burnish.exporter.parity import check_parity
from burnish.exporter.rounding import own_rounding
from burnish.exporter.torch_export import Exported, export_module
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.table(input_ids) * attention_mask.unsqueeze(-1)


@pytest.fixture(scope="module")
def encoder() -> Exported:
    torch.manual_seed(0)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    dims = {0: "batch", 1: ("sequence", 1, 40)}
    return export_module(
        Encoder(), {"input_ids": ids, "attention_mask": ids + 1},
        dynamic={"input_ids": dims, "attention_mask": dims},
    )  # fmt: skip


def test_receipt(encoder: Exported) -> None:
    receipt = check_parity(encoder, Reference(to_bytes(encoder.model)))
    assert (receipt.step, receipt.numerics, receipt.max_abs_error) == ("export", "rounding", 0.0)
    assert len(receipt.assignments) >= 4
    assert {a["batch"] for a in receipt.assignments} >= {1, 2, 3}
    lengths = {a["sequence"] for a in receipt.assignments}
    assert {1, 40} <= lengths, "the shortest and the longest"
    assert max(lengths) == 40
    assert receipt.nodes_after == len(list(encoder.model.graph))


def test_inputs_have_the_meaning_of_their_names(encoder: Exported) -> None:
    ids, mask = encoder.signature.inputs
    assert (ids.meaning, ids.high) == ("token_ids", 11)
    assert mask.meaning == "mask"


def test_same_seed_same_inputs(encoder: Exported) -> None:
    run = Reference(to_bytes(encoder.model))
    seen: list[list[int]] = [[], []]
    for calls in seen:

        def spy(feeds: Mapping[str, np.ndarray], calls: list[int] = calls) -> dict[str, np.ndarray]:
            calls.append(hash(feeds["input_ids"].tobytes()))
            return run(feeds)

        check_parity(encoder, spy)
    assert seen[0] == seen[1]


def test_a_wrong_graph_names_output_and_sizes(encoder: Exported) -> None:
    run = Reference(to_bytes(encoder.model))

    def wrong_for_batches(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = run(feeds)
        if len(feeds["input_ids"]) > 1:
            made["output"] = made["output"] + np.float32(0.05)
        return made

    with pytest.raises(MismatchError, match="output 'output' at batch=2") as caught:
        check_parity(encoder, wrong_for_batches)
    assert caught.value.code == "EXPORT_PARITY"
    check_parity(encoder, wrong_for_batches, tolerance=0.1)


def test_a_graph_that_is_wrong_at_some_sizes_says_the_largest_of_them(encoder: Exported) -> None:
    run = Reference(to_bytes(encoder.model))
    seen: list[int] = []

    def wrong_where_odd(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made, length = run(feeds), feeds["input_ids"].shape[1]
        seen.append(length if length % 2 else 0)
        return {name: array + np.float32(length % 2) for name, array in made.items()}

    with pytest.raises(MismatchError, match="differs from the module") as caught:
        check_parity(encoder, wrong_where_odd)
    assert caught.value.sizes is not None
    assert max(seen) in caught.value.sizes.values()


def test_a_graph_that_does_not_run_is_a_mismatch(encoder: Exported) -> None:
    def broken(_feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise ModelError("node 'x' fails.", "Look at it.")

    with pytest.raises(MismatchError, match="does not run at batch=1"):
        check_parity(encoder, broken)


def test_a_missing_output_is_a_mismatch(encoder: Exported) -> None:
    with pytest.raises(MismatchError, match="output 'output'"):
        check_parity(encoder, lambda _feeds: {})


def test_a_module_that_never_runs(encoder: Exported) -> None:
    def refuses(_feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise RuntimeError("not today")

    with pytest.raises(ExportError, match="not today") as caught:
        check_parity(dataclasses.replace(encoder, reference=refuses), lambda feeds: {})
    assert caught.value.code == "EXPORT_REFERENCE"


def test_fixed_sizes_are_compared_once() -> None:
    exported = export_module(torch.nn.Linear(3, 2), torch.ones(2, 3))
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert receipt.assignments == ({},)


def test_half_precision_may_drift_further() -> None:
    torch.manual_seed(0)
    exported = export_module(torch.nn.Linear(64, 64).half(), torch.ones(2, 64).half(),
                             dynamic={"input": {0: "batch"}})  # fmt: skip
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error < 5e-3


class Reads(torch.nn.Module):
    def forward(self, x: Any, places: Any) -> Any:
        return x.gather(1, places)


def test_integers_that_few_values_fit_are_the_examples() -> None:
    inputs = {"x": torch.randn(2, 6), "places": torch.tensor([[5, 0], [1, 3]])}
    exported = export_module(Reads(), inputs, dynamic={"x": {0: "batch", 1: "width"}, "places": {0: "batch"}})
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert {a["width"] for a in receipt.assignments} >= {1, 2, 7}
    assert receipt.notes == ()


class Cancels(torch.nn.Module):
    """Its float32 result is some 5e-4 from the truth, which is x."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor(1e4))

    def forward(self, x: Any) -> Any:
        return (x + self.offset) - self.offset


def test_what_is_torchs_own_rounding_is_no_mismatch() -> None:
    module = Cancels()
    exported = export_module(module, torch.randn(2, 3), dynamic={"x": {0: "batch"}})
    receipt = check_parity(exported, lambda feeds: {"output": feeds["x"]})  # as in exact arithmetic
    assert receipt.max_rel_error is not None
    assert 1e-4 < receipt.max_rel_error < 1e-3
    assert any("where torch's own rounding is" in note for note in receipt.notes)
    assert module.offset.dtype == torch.float32, "the weights are what they were"
    with pytest.raises(MismatchError, match="differs from the module in output 'output'"):
        check_parity(exported, lambda feeds: {"output": feeds["x"] + np.float32(0.05)})
    with pytest.raises(MismatchError):
        check_parity(exported, lambda feeds: {"output": feeds["x"]}, tolerance=1e-5)


def test_rounding_of_what_cannot_run_in_float64_is_unknown() -> None:
    single = torch.nn.Linear(3, 2)

    def in_single(feeds: Any) -> dict[str, np.ndarray]:
        return {"y": single(torch.from_numpy(feeds["x"]).float()).detach().numpy()}

    feeds = {"x": np.ones((2, 3), np.float32)}
    assert own_rounding(single, in_single, feeds, "y", in_single(feeds)["y"]) == 0.0
    assert single.weight.dtype == torch.float32
    assert own_rounding(single, in_single, feeds, "y", np.ones(2, np.float16)) == 0.0


def test_a_type_that_the_judge_cannot_run_is_said_so() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.SiLU()).bfloat16()
    with pytest.raises(ModelError, match="no kernel for the type at that node") as caught:
        burnish.export(module, torch.ones(2, 3, dtype=torch.bfloat16))
    assert "float32" in caught.value.hint
