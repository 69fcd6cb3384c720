"""A BERT-like encoder from torch through the default recipes: every node still says where it comes from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import burnish
from burnish.exporter.torch_export import Exported, export_module
from burnish.model import to_bytes
from burnish.provenance import home_module, origins

pytestmark = pytest.mark.torch

WIDTH = 32


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense = torch.nn.Linear(WIDTH, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, x: Any, mask: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, 4, WIDTH // 4).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / (WIDTH // 4) ** 0.5 + mask
        context = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        return self.norm(self.dense(context) + x)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.up, self.act, self.down = torch.nn.Linear(WIDTH, 64), torch.nn.GELU(), torch.nn.Linear(64, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, x: Any, mask: Any) -> Any:
        x = self.attention(x, mask)
        return self.norm(self.down(self.act(self.up(x))) + x)


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, WIDTH)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(2))

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -1e9
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


@pytest.fixture(scope="module")
def exported() -> Exported:
    torch.manual_seed(0)
    module = Encoder()
    for parameter in module.parameters():  # no two alike, as in a trained model
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 50, (2, 7))
    dims = {0: "batch", 1: "sequence"}
    dynamic = {"input_ids": dims, "attention_mask": dims}
    return export_module(module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, dynamic=dynamic)


@pytest.fixture(scope="module")
def optimized(exported: Exported) -> ir.Model:
    model = burnish.optimize(exported.model, measured=False)
    assert isinstance(model, ir.Model)
    return model


def without_origin(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes() if not origins(node.metadata_props)]


def modules_by_op(model: ir.Model, op_type: str) -> list[set[str]]:
    nodes = [node for node in model.graph if node.op_type == op_type]
    return [{origin.module for origin in origins(node.metadata_props)} for node in nodes]


def test_every_node_of_the_optimised_model_has_an_origin(exported: Exported, optimized: ir.Model) -> None:
    assert len(list(optimized.graph)) < len(list(exported.model.graph)) / 3
    assert without_origin(optimized) == []


def test_a_fused_attention_lists_its_projections_and_counts_in_its_layer(optimized: ir.Model) -> None:
    found = modules_by_op(optimized, "Attention")
    assert len(found) == 2
    for number, modules in enumerate(found):
        path = f"layers.{number}.attention"
        assert modules >= {path, f"{path}.query", f"{path}.key", f"{path}.value"}
        assert not any(module.startswith(f"layers.{1 - number}") for module in modules)
    nodes = [node for node in optimized.graph if node.op_type == "Attention"]
    assert [home_module(origins(n.metadata_props)) for n in nodes] == [
        "layers.0.attention",
        "layers.1.attention",
    ]


def test_fused_norms_and_gelus_list_what_they_swallowed(optimized: ir.Model) -> None:
    norms = modules_by_op(optimized, "SkipLayerNormalization")
    assert [sorted(modules) for modules in norms] == [
        expected
        for number in range(2)
        for expected in (
            [
                f"layers.{number}.attention",
                f"layers.{number}.attention.dense",
                f"layers.{number}.attention.norm",
            ],
            [f"layers.{number}", f"layers.{number}.down", f"layers.{number}.norm"],
        )
    ]
    gelus = modules_by_op(optimized, "BiasGelu")
    assert gelus == [{f"layers.{number}.up", f"layers.{number}.act"} for number in range(2)]


def test_origins_name_lines_of_this_file(optimized: ir.Model) -> None:
    sources = {o.source for node in optimized.graph for o in origins(node.metadata_props)}
    assert any(source.startswith("test_origins_exported.py:") for source in sources)
    assert not any(source.startswith(("/", "\\")) for source in sources)


def test_weights_keep_their_state_dict_names(optimized: ir.Model) -> None:
    names = set(optimized.graph.initializers)
    for number in range(2):
        expected = {
            f"layers.{number}.{part}" for part in ("up.weight", "down.weight", "attention.dense.weight")
        }
        assert expected <= names


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_quantising_keeps_origins(exported: Exported, scheme: Any) -> None:
    samples: list[Mapping[str, np.ndarray]] = [exported.example]
    model = burnish.quantize(exported.model, scheme=scheme, data=samples, measured=False)
    assert without_origin(model) == []
    wanted = ("QuantizeLinear", "DequantizeLinear") if scheme == "static" else ("DynamicQuantizeMatMul",)
    for op_type in wanted:
        homes = {home_module(origins(n.metadata_props)) for n in model.graph if n.op_type == op_type}
        assert homes >= {"layers.0.up", "layers.1.down"}, (op_type, homes)


def test_diff_shows_every_layer_with_its_macs(exported: Exported, optimized: ir.Model) -> None:
    changes = {module.path: module for module in burnish.diff(exported.model, optimized).modules or ()}
    for number in range(2):
        layer = changes[f"layers.{number}"]
        assert layer.before.nodes > 2 * layer.after.nodes
        assert layer.before.macs == layer.after.macs == 128 * (4 * 32 * 32 + 2 * 32 * 64 + 2 * 128 * 32)
    assert changes[""].kind == "Encoder"
    assert changes["layers.0.attention"].kind == "Attention"


def test_the_same_model_gives_the_same_bytes(exported: Exported, optimized: ir.Model) -> None:
    same = to_bytes(burnish.optimize(exported.model, measured=False)) == to_bytes(optimized)
    assert same  # pytest would take minutes to show how they differ
