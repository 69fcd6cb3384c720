"""torch exports these without a word, for one size only; here dim and line of the module are named."""

from typing import Any

import pytest
import torch

from burnish.errors import ExportError
from burnish.exporter.parity import check_parity
from burnish.exporter.torch_export import export_module
from burnish.manifest import DimRange
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch


class FixedView(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return self.layer(x).view(2, 5)


class SmallBatches(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        if x.shape[0] > 3:
            return x + 1
        return x * 2


class AsInt(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * torch.ones(int(x.shape[0]), 1).numpy().shape[0]


class Sum(torch.nn.Module):
    def forward(self, x: Any, y: Any) -> Any:
        return x + y


class OnValues(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        if x.sum() > 3:
            return x + 1
        return x * 2


class Pairs(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.reshape(x.shape[0] // 2, 8)


def failure(module: Any, inputs: Any, dynamic: Any) -> ExportError:
    with pytest.raises(ExportError) as caught:
        export_module(module, inputs, dynamic=dynamic)
    return caught.value


def test_a_dim_that_becomes_a_constant() -> None:
    error = failure(FixedView(), torch.randn(1, 4), {"x": {0: "batch"}})
    assert error.code == "EXPORT_SPECIALISED"
    assert "'batch'" in error.what
    assert "axis 0 of 'x'" in error.what
    assert " in FixedView at test_specialised.py" in error.what
    assert "view(2, 5)" in error.what


def test_the_part_is_named_where_it_is_torchs_own() -> None:
    error = failure(torch.nn.Linear(3, 4), torch.randn(2, 3), {"input": {1: "features"}})
    assert error.code == "EXPORT_SPECIALISED"
    assert "'features'" in error.what
    assert error.what.endswith("Eq(features, 3) in Linear.")
    net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 4))
    assert "in 1 (Linear)" in failure(net, torch.randn(2, 3), {"input": {1: "features"}}).what


def test_the_path_of_an_inner_module_is_named() -> None:
    net = torch.nn.Sequential(torch.nn.ReLU(), FixedView())
    error = failure(net, torch.randn(2, 4), {"input": {0: "batch"}})
    assert " in 1 (FixedView) at test_specialised.py" in error.what


def test_a_range_that_the_module_narrows() -> None:
    error = failure(SmallBatches(), torch.randn(2, 4), {"x": {0: ("batch", 1, 8)}})
    assert error.code == "EXPORT_SPECIALISED"
    assert "from 1 to 8, but the module allows from 1 to 3" in error.what
    assert "batch <= 3" in error.what
    assert "if x.shape[0] > 3" in error.what


def test_a_range_that_was_only_assumed_is_narrowed_and_noted() -> None:
    exported = export_module(SmallBatches(), torch.randn(2, 4), dynamic={"x": {0: "batch"}})
    assert exported.signature.dims["batch"] == DimRange(1, 3)
    assert any("1 to 3" in note for note in exported.notes)
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert max(a["batch"] for a in receipt.assignments) == 3


def test_two_dims_that_must_be_equal() -> None:
    inputs = (torch.randn(3, 4), torch.randn(3, 4))
    error = failure(Sum(), inputs, {"x": {0: "batch"}, "y": {0: "rows"}})
    assert error.code == "EXPORT_SPECIALISED"
    assert "'batch' and 'rows' to be equal" in error.what
    export_module(Sum(), inputs, dynamic={"x": {0: "batch"}, "y": {0: "batch"}})


def test_branching_on_values_names_the_line() -> None:
    error = failure(OnValues(), torch.randn(2, 4), {"x": {0: "batch"}})
    assert error.code == "EXPORT_DATA_DEPENDENT"
    assert "test_specialised.py" in error.what
    assert "if x.sum() > 3" in error.what


def test_sizes_that_the_module_itself_refuses_are_noted_and_others_found() -> None:
    exported = export_module(Pairs(), torch.randn(2, 4), dynamic={"x": {0: "batch"}})
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert len(receipt.assignments) >= 4
    assert all(a["batch"] % 2 == 0 for a in receipt.assignments)
    assert any("not compared at batch=3" in note for note in receipt.notes)
