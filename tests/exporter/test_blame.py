"""Failures name the operator, the module's path, the line, and what to do instead."""

import re
from typing import Any

import pytest
import torch

import burnish
from burnish.errors import ExportError
from burnish.exporter.failures import alternatives

pytestmark = pytest.mark.torch


class Singular(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class Counted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = torch.nonzero(x).shape[0]
        return x.new_zeros(n * 2 if n > 3 else n)


class Middle(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.median(dim=-1).values


class Counts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.histc(x, 4)


class Noisy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Refuses(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not today\nnor tomorrow")


class Net(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Identity(), inner])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("inner", "code", "what", "hint"),
    [
        (
            Singular(),
            "EXPORT_UNSUPPORTED_OP",
            "no translation for aten._linalg_svd in blocks.1 (Singular) at",
            "outside",
        ),
        (Middle(), "EXPORT_UNSUPPORTED_OP", "no translation for aten.median in blocks.1 (Middle) at", "Sort"),
        (Counts(), "EXPORT_FAILED", "in blocks.1 (Counts) at", "scatter_add"),
        (Noisy(), "EXPORT_RANDOM", "another 'output' each time", "outside the module"),
        (Noisy(), "EXPORT_RANDOM", "in blocks.1 (Noisy) at", "outside the module"),
        (Refuses(), "EXPORT_INPUTS", "ValueError: not today in blocks.1 (Refuses) at", "Call the module"),
        (Branch(), "EXPORT_DATA_DEPENDENT", "in blocks.1 (Branch) at", "torch.where or torch.cond"),
        (Counted(), "EXPORT_DATA_DEPENDENT", "in blocks.1 (Counted) at", "torch._check"),
    ],
)
def test_module_line_and_alternative(inner: Any, code: str, what: str, hint: str) -> None:
    with pytest.raises(ExportError) as caught:
        burnish.export(Net(inner), {"x": torch.eye(3)})
    assert caught.value.code == code
    assert what in caught.value.what
    assert re.search(r"test_blame\.py:\d+ in forward", caught.value.what)
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_what_can_be_done_about_operators() -> None:
    assert "sort" in alternatives("aten.kthvalue")
    assert "quantise it with burnish quantize" in alternatives("aten.fake_quantize_per_tensor_affine")
    assert "scatter_add" in alternatives("aten.bincount")
    assert "random numbers outside" in alternatives("aten.multinomial")
    assert "outside the module" in alternatives("my.own_operator")
