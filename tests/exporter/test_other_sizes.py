"""A branch of the module that torch decides by the example's size, without a word."""

from typing import Any

import numpy as np
import pytest
import torch

import burnish
from burnish.exporter.lattice import lattice
from burnish.manifest import DimRange, TensorSpec

pytestmark = pytest.mark.torch


class Padded(torch.nn.Module):
    """Two ways to halve the steps of a wave, together, doubled and padded to as many steps as there were."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.nn.Conv1d(1, 4, 10, stride=5)
        self.halved = torch.nn.Conv1d(4, 4, 3, stride=2, padding=1)

    def forward(self, wave: Any) -> Any:
        steps = self.steps(wave[:, None])
        one, two = torch.nn.functional.avg_pool1d(steps, 2), self.halved(steps)
        shorter = min(one.shape[-1], two.shape[-1])
        found = (one[..., :shorter] + two[..., :shorter]).repeat_interleave(2, -1)
        missing = steps.shape[-1] - found.shape[-1]
        return torch.nn.functional.pad(found, (0, missing)) if missing > 0 else found


def test_what_is_wrong_at_other_sizes_is_traced_there() -> None:
    module = Padded().eval()
    made = burnish.export(module, {"wave": torch.randn(2, 105)}, dynamic={"wave": {0: "batch", 1: "samples"}})
    assert any(note.startswith("traced at batch=") for note in made.manifest.receipts[0].notes)
    session = burnish.load(made)
    for samples in range(40, 70):
        wave = torch.randn(1, samples)
        with torch.inference_mode():
            wanted = module(wave).numpy()
        (found,) = session({"wave": wave.numpy()}).values()
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_strided_lengths_are_compared_between_too() -> None:
    specs = [TensorSpec("wave", "float32", ("batch", "samples"))]
    dims = {"batch": DimRange(1), "samples": DimRange(15)}
    lengths = {each["samples"] for each in lattice(specs, dims, 1000)}
    assert {(length - 10) // 5 % 2 for length in lengths} == {0, 1}
