"""Adaptive average pooling at every size, against torch's own."""

from typing import Any

import pytest
import torch

from burnish.exporter.adaptive import adaptive_mean, windows_of_any_size
from burnish.exporter.parity import check_parity
from burnish.exporter.torch_export import export_module
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

CASES: dict[str, tuple[torch.nn.Module, tuple[int, ...], tuple[Any, ...]]] = {
    "one axis": (torch.nn.AdaptiveAvgPool1d(4), (2, 3, 16), (4,)),
    "both axes": (torch.nn.AdaptiveAvgPool2d((3, 7)), (2, 3, 12, 20), (3, 7)),
    "one place of one axis": (torch.nn.AdaptiveAvgPool2d((1, 2)), (2, 3, 6, 8), (1, 2)),
    "an axis that stays": (torch.nn.AdaptiveAvgPool2d((None, 5)), (2, 3, 6, 10), ("axis_2", 5)),
    "a volume": (torch.nn.AdaptiveAvgPool3d((2, 3, 1)), (2, 3, 4, 6, 5), (2, 3, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_any_size(case: str) -> None:
    net, shape, pooled = CASES[case]
    dims = {0: "batch", **{axis: f"axis_{axis}" for axis in range(2, len(shape))}}
    exported = export_module(net, {"input": torch.randn(shape)}, dynamic={"input": dims})
    assert exported.signature.outputs[0].shape == ("batch", 3, *pooled)
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert {a["axis_2"] for a in receipt.assignments} >= {1, 2, 7, 16}
    assert receipt.notes == ()


def test_a_single_place_and_fixed_sizes_are_left_to_torch() -> None:
    image = {"input": torch.randn(2, 3, 8, 6)}
    single = export_module(torch.nn.AdaptiveAvgPool2d(1), image, dynamic={"input": {2: "height"}})
    fixed = export_module(torch.nn.AdaptiveAvgPool2d(2), image, dynamic={"input": {0: "batch"}})
    assert not [node for node in (*single.model.graph, *fixed.model.graph) if node.op_type == "MatMul"]


@pytest.mark.parametrize("length", [1, 3, 4, 7, 12, 101])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_the_same_windows_as_torch(length: int, count: int) -> None:
    image = torch.randn(2, 3, length, dtype=torch.float64)
    torch.testing.assert_close(adaptive_mean(image, [count]), torch.adaptive_avg_pool1d(image, count))


def test_torch_is_itself_again_outside() -> None:
    before = torch._C._nn.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool1d
    with windows_of_any_size():
        assert torch._C._nn.adaptive_avg_pool2d is not before[0]
    assert (torch._C._nn.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool1d) == before
