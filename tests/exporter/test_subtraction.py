"""Integers subtracted from a fraction."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import burnish
from burnish.exporter.subtraction import fractions_less_integers

pytestmark = pytest.mark.torch


class Less(torch.nn.Module):
    def __init__(self, subtract: Callable[[Any], Any]) -> None:
        super().__init__()
        self.subtract = subtract

    def forward(self, mask: Any) -> Any:
        return self.subtract(mask) * -1e4


@pytest.mark.parametrize("way", [lambda mask: 1.0 - mask, lambda mask: torch.rsub(mask, 0.5, alpha=2)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_an_integer_mask_exports(way: Callable[[Any], Any], dtype: torch.dtype) -> None:
    """Fails without the mend: torch 2.13 finds no aten.sub. The export compares it with the module."""
    mask = torch.ones(2, 5, dtype=dtype)
    made = burnish.export(Less(way), {"mask": mask}, dynamic={"mask": {0: "batch", 1: "length"}})
    assert made.manifest.outputs[0].dtype == "float32"


def test_the_results_are_torchs_and_the_functions_come_back() -> None:
    before = torch.Tensor.__rsub__, torch.rsub
    cases = [torch.tensor([0, 3, 200], dtype=dtype) for dtype in (torch.uint8, torch.int64, torch.float64)]
    for tensor in cases:
        for number in (0.5, 2):
            wanted = number - tensor
            with fractions_less_integers():
                found = number - tensor
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
    assert (torch.Tensor.__rsub__, torch.rsub) == before
