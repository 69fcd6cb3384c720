"""Traces that follow the example, and what keeps them from being wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import burnish
from burnish.errors import MismatchError
from burnish.exporter.dims import read_axes
from burnish.exporter.following import Taken, decisions, roomy
from burnish.exporter.parity import check_parity
from burnish.exporter.torch_export import Exported, export_module
from burnish.manifest import DimRange
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

DIMS: Any = {0: "batch", 1: ("sequence", 1, 300)}


class Chunks(torch.nn.Module):
    """Sums of four neighbours; padded to fours where that is needed; doubled where the mask says so."""

    def forward(self, x: Any, attention_mask: Any) -> Any:
        if (attention_mask > 1).any():
            x = x * 2
        missing = (4 - x.shape[1] % 4) % 4
        if missing > 0:
            x = torch.nn.functional.pad(x, (0, missing))
        count = torch.div(x.shape[1], 4, rounding_mode="floor")
        return x.view(x.shape[0], count, 4).sum(-1) * attention_mask[:, :1]


class Turning(torch.nn.Module):
    """Does something else to what is long."""

    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[1] > 250 else x + 1


def followed(module: Any, inputs: dict[str, Any]) -> Exported:
    pytest.importorskip("transformers")
    dynamic = dict.fromkeys(inputs, DIMS)
    return export_module(module, inputs, dynamic=dynamic, fixed=True, followed=True)


def test_decisions_are_those_of_the_example() -> None:
    inputs = {"x": torch.randn(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    exported = followed(Chunks(), inputs)
    assert exported.example["x"].shape == (2, 299), "padding is needed, as it mostly is"
    assert exported.signature.dims["sequence"] == DimRange(1, 300)
    assert "if (attention_mask > 1).any(): is False" in exported.notes[0]
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert {a["sequence"] for a in receipt.assignments} >= {1, 2, 7, 300}


def test_the_other_decision_does_not_pass_the_comparison() -> None:
    inputs = {"x": torch.randn(2, 8), "attention_mask": torch.full((2, 8), 2)}
    exported = followed(Chunks(), inputs)
    assert "is True" in exported.notes[0]
    with pytest.raises(MismatchError):
        check_parity(exported, Reference(to_bytes(exported.model)))


def test_where_an_assumption_ends_is_compared() -> None:
    dynamic = {"x": {0: "batch", 1: "sequence"}}
    exported = export_module(Turning(), torch.randn(2, 8), dynamic=dynamic, fixed=True, followed=True)
    assert exported.doubtful, "not among the usual sizes, which end at 16"
    assert min(each["sequence"] for each in exported.doubtful) > 250
    with pytest.raises(MismatchError, match="sequence="):
        check_parity(exported, Reference(to_bytes(exported.model)))


def test_lines_that_decide_both_ways_are_left_out() -> None:
    class Loop(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            for row in x:
                if row.sum() > 0:
                    x = x + 1
            if x.min() < 100:
                x = x - 1
            return x

    found = decisions(Loop(), {"x": torch.tensor([[1.0], [-1.0]])})
    assert list(found.values()) == [True]
    assert "x.min() < 100" in next(iter(found))


def test_example_sizes_are_odd_and_large_where_they_may_be() -> None:
    shapes = {"x": (2, 16, 8), "y": (2, 16, 4)}
    dynamic = {"x": {0: "batch", 1: ("sequence", 1, 126), 2: "width"}, "y": {0: "batch", 2: ("past", 0, 64)}}
    assert roomy(read_axes(dynamic, shapes), shapes) == {"x": (2, 125, 21), "y": (2, 16, 4)}


def test_what_is_known_of_sizes() -> None:
    import sympy

    size = sympy.Symbol("s0", integer=True)
    taken = Taken((size < 40, sympy.Symbol("u0") > size), {"s0": DimRange(1, 90)}, ())
    example = {"sequence": 9}
    found = taken.doubtful({"s0": "sequence"}, {"sequence": DimRange(1, 128)}, [{"sequence": 16}], example)
    assert [each["sequence"] >= 40 for each in found] == [True, True], "the condition, then the range"
    assert found[-1]["sequence"] > 90
    assert taken.doubtful({"s0": "sequence"}, {"sequence": DimRange(1, 39)}, [example], example) == []


class Untold:
    """A condition as torch has them: where a number is negative, its remainder raises."""

    free_symbols: ClassVar[set[str]] = {"s0"}

    def subs(self, sizes: dict[str, int]) -> bool:
        assert sizes["s0"] <= 300, "negative"
        return True


def test_a_condition_that_cannot_be_told_is_compared() -> None:
    dims, compared = {"sequence": DimRange(1, 1024)}, [{"sequence": 290}]
    found = Taken((Untold(),), {}, ()).doubtful({"s0": "sequence"}, dims, compared, {"sequence": 9})
    assert [each["sequence"] > 300 for each in found] == [True]


@pytest.mark.slow
def test_longformer(tiny: Callable[[str], Path]) -> None:
    made = burnish.export(tiny("longformer"), task="fill-mask")
    (receipt,) = made.manifest.receipts
    assert [note for note in receipt.notes if "is_global_attn" in note and "is False" in note]
    assert {a["sequence"] for a in receipt.assignments} >= {1, 2, 7}
