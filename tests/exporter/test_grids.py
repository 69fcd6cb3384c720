"""Affine grids of images and volumes of any size, against torch's own."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from burnish.exporter.grids import affine_grid, grids_in_arithmetic
from burnish.exporter.parity import check_parity
from burnish.exporter.torch_export import export_module
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch


class Warp(torch.nn.Module):
    """An image, sampled where an affine grid says."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, image: Any, affine: Any) -> Any:
        grid = functional.affine_grid(affine, list(image.shape), align_corners=self.align_corners)
        return functional.grid_sample(image, grid, align_corners=self.align_corners), grid


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_image_of_any_size(align_corners: bool) -> None:
    inputs = {"image": torch.randn(2, 3, 5, 6), "affine": torch.eye(2, 3) + 0.1 * torch.randn(2, 2, 3)}
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}, "affine": {0: "batch"}}
    exported = export_module(Warp(align_corners), inputs, dynamic=dynamic)
    assert exported.signature.outputs[1].shape == ("batch", "height", "width", 2)
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))

    assert min(a["height"] for a in receipt.assignments) == 1
    assert len(receipt.assignments) >= 8


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 4, 7), (2, 1, 1, 5), (2, 3, 3, 4, 5)])
def test_the_same_grid_as_torch(size: tuple[int, ...], align_corners: bool) -> None:
    theta = torch.randn(2, len(size) - 2, len(size) - 1, dtype=torch.float64)
    wanted = torch.affine_grid_generator(theta, size, align_corners)
    torch.testing.assert_close(affine_grid(theta, size, align_corners), wanted, atol=1e-6, rtol=0)


def test_torch_is_itself_again_outside() -> None:
    original = torch.affine_grid_generator
    with grids_in_arithmetic():
        assert torch.affine_grid_generator is affine_grid
    assert torch.affine_grid_generator is original
