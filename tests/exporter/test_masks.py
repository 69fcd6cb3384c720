"""torch.nn's own Transformer with masks, without the hint that they are causal."""

from typing import Any

import pytest
import torch

from burnish.exporter.parity import check_parity
from burnish.exporter.torch_export import export_module
from burnish.model import to_bytes
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch


class Decoder(torch.nn.Module):
    """Every token sees itself and `reach` tokens before it: for a large reach, the causal mask."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True}
        self.encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(**shape), 1)
        self.decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**shape), 1)
        self.reach = reach

    def forward(self, source: Any, target: Any) -> Any:
        return self.decoder(target, self.encoder(source, mask=self.mask(source)), tgt_mask=self.mask(target))

    def mask(self, x: Any) -> Any:
        ones = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        return ones.triu(1) | ones.tril(-1 - self.reach)


@pytest.mark.parametrize("reach", [1000, 1])
def test_a_mask_counts_as_given(reach: int) -> None:
    detect = torch.nn.modules.transformer._detect_is_causal_mask
    exported = export_module(
        Decoder(reach), {"source": torch.randn(2, 5, 8), "target": torch.randn(2, 4, 8)},
        dynamic={"source": {0: "batch", 1: "length"}, "target": {0: "batch", 1: "decoded"}},
    )  # fmt: skip
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert len(receipt.assignments) >= 4
    assert torch.nn.modules.transformer._detect_is_causal_mask is detect
