"""Attention in modules as torch's exporter writes them: every layer fuses, and computes the same."""

from typing import Any

import numpy as np
import pytest
import torch

from burnish.difference import worst
from burnish.exporter.torch_export import Exported, export_module
from burnish.model import copy_model, histogram, to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_attention import FuseAttention
from burnish.passes.recipe import Recipe
from burnish.passes.recipes import CLEAN_UP
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}


class Padded(torch.nn.Module):
    """Two encoder layers with a mask of padding, as nn.TransformerEncoder has them."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Any, padding: Any) -> Any:
        return self.layers(x, src_key_padding_mask=padding)


class Decoder(torch.nn.Module):
    """A decoder layer: causal over itself, and over another sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)

    def forward(self, x: Any, memory: Any) -> Any:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layer(x, memory, tgt_mask=mask, tgt_is_causal=True)


def text_model(kind: str) -> torch.nn.Module:
    import transformers

    config: Any
    if kind.startswith("bert"):
        config = transformers.BertConfig(vocab_size=90, **SMALL)
        config._attn_implementation = "eager" if kind == "bert by hand" else "sdpa"
        return transformers.BertModel(config, add_pooling_layer=False)
    config = transformers.GPT2Config(
        vocab_size=90, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False
    )
    return transformers.GPT2Model(config)


def exported(kind: str, opset: int) -> Exported:
    torch.manual_seed(0)
    if kind == "padded":
        x, padding = torch.randn(2, 5, 32), torch.zeros(2, 5, dtype=torch.bool)
        dims = {0: "batch", 1: "sequence"}
        return export_module(Padded(), (x, padding), dynamic={"x": dims, "padding": dims}, opset=opset)
    if kind == "decoder":
        x, memory = torch.randn(2, 5, 32), torch.randn(2, 6, 32)
        dynamic = {"x": {0: "batch", 1: "sequence"}, "memory": {0: "batch", 1: "other"}}
        return export_module(Decoder(), (x, memory), dynamic=dynamic, opset=opset)
    ids = torch.randint(0, 90, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return export_module(text_model(kind), inputs, dynamic=TEXT, opset=opset)


def feeds(kind: str, batch: int, length: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    x = random.standard_normal((batch, length, 32), np.float32)
    visible = random.random((batch, length)) < 0.6
    visible[:, 0] |= ~visible.any(axis=1)
    if kind == "padded":
        return {"x": x, "padding": ~visible}
    if kind == "decoder":
        return {"x": x, "memory": random.standard_normal((batch, length + 2, 32), np.float32)}
    ids = random.integers(0, 90, (batch, length))
    return {"input_ids": ids, "attention_mask": visible.astype(np.int64)}


@pytest.mark.parametrize(
    ("kind", "opset"),
    [
        ("bert", 20), ("bert", 23), ("bert by hand", 20), ("gpt2", 20), ("gpt2", 23), ("padded", 20),
        ("decoder", 20), ("decoder", 23),  # padded at 23: onnxruntime cannot run what torch writes
    ],
)  # fmt: skip
def test_every_layer_fuses_and_computes_the_same(kind: str, opset: int) -> None:
    model = exported(kind, opset).model
    before, context = copy_model(model), Context()
    for each in Recipe.parse(CLEAN_UP).passes:
        each.rewrite(model, Context())
    assert FuseAttention().rewrite(model, context) == 2, context.misses
    assert "Softmax" not in histogram(model)
    run, rerun = Reference(to_bytes(before)), Reference(to_bytes(model))
    random = np.random.default_rng(1)
    for batch, length in ((1, 1), (2, 7), (3, 16)):
        given = feeds(kind, batch, length, random)
        apart = worst(run(given), rerun(given))
        assert apart.within(1e-5), (batch, length, str(apart))
