"""Sizes that a module divides by torch's functions."""

from typing import Any

import pytest
import torch

from burnish.exporter.sizes import SizesStaySizes

pytestmark = pytest.mark.torch


class Chunks(torch.nn.Module):
    """Rows in groups of four, counted by torch."""

    def __init__(self, divide: Any, **options: Any) -> None:
        super().__init__()
        self.divide, self.options = divide, options

    def forward(self, x: Any) -> Any:
        return x.view(self.divide(x.shape[0], 4, **self.options), 4)


WAYS = {
    "floor": Chunks(torch.div, rounding_mode="floor"),
    "trunc": Chunks(torch.div, rounding_mode="trunc"),
    "floor_divide": Chunks(torch.floor_divide),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_quotient_is_a_size(way: str) -> None:
    rows = torch.export.Dim("rows", min=1) * 4
    with SizesStaySizes():
        traced = torch.export.export(WAYS[way], (torch.ones(12),), dynamic_shapes=({0: rows},))
    assert traced.module()(torch.ones(20)).shape == (5, 4)
    assert not [node for node in traced.graph.nodes if "item" in str(node.target)]


@pytest.mark.parametrize("divisor", [3, -3])
def test_floor_of_what_is_negative(divisor: int) -> None:
    class Less(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.div(x.shape[0] - 20, divisor, rounding_mode="floor")

    with SizesStaySizes():
        traced = torch.export.export(Less(), (torch.ones(4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    for size in (3, 5, 20, 24):
        assert torch.equal(traced.module()(torch.ones(size)), Less()(torch.ones(size)))


def test_tensors_and_exact_quotients_are_torchs() -> None:
    with SizesStaySizes():
        assert torch.equal(torch.div(torch.tensor(7), 2, rounding_mode="floor"), torch.tensor(3))
        assert torch.equal(torch.div(7, 2), torch.tensor(3.5))
        assert torch.equal(torch.floor_divide(7, 2), torch.tensor(3))
