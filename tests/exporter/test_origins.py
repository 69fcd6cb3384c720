"""Every node of an export says which module and which line made it; initializers have state-dict names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.exporter.torch_export import Exported, export_module
from burnish.model import to_bytes
from burnish.provenance import Origin, origins

pytestmark = pytest.mark.torch


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.tanh(self.inner(x)) * 2


class Net(torch.nn.Module):
    """Blocks in a list, in a Sequential, shared; a tied weight; a buffer; a branch on values."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), torch.nn.Sequential(Block(), torch.nn.GELU())])
        self.tied = torch.nn.Linear(4, 4)
        self.tied.weight = self.blocks[0].inner.weight  # type: ignore[union-attr]
        self.scale = torch.nn.Parameter(torch.full((4,), 3.0))
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        x = self.tied(self.blocks[0](x)) * self.scale + self.shift
        return torch.cond(x.sum() > 0, torch.sigmoid, torch.cos, (x,)), x


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def exported(net: Net) -> Exported:
    return export_module(net, torch.randn(2, 4), dynamic={"x": {0: "batch"}})


def found(exported: Exported, op_type: str) -> list[Origin]:
    nodes = [node for node in exported.model.graph.all_nodes() if node.op_type == op_type]
    return [origin for node in nodes for origin in origins(node.metadata_props)]


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_every_node_has_one_origin(exported: Exported) -> None:
    nodes = list(exported.model.graph.all_nodes())
    assert [len(origins(node.metadata_props)) for node in nodes] == [1] * len(nodes)


def test_module_class_and_the_line_of_the_users_code(exported: Exported) -> None:
    here = f"{Path(__file__).name}:{line_of('return torch.tanh')} in forward"
    paths = ["blocks.0", "blocks.1.0", "blocks.0"]
    assert found(exported, "Tanh") == [Origin(path, "Block", here) for path in paths]
    assert Origin("blocks.1.0.inner", "Linear", here) in found(exported, "Gemm")
    gelu = f"{Path(__file__).name}:{line_of('x = block(x)')} in forward"
    assert found(exported, "Gelu") == [Origin("blocks.1.1", "GELU", gelu)]


def test_branches_belong_to_the_module_around_them(exported: Exported) -> None:
    here = f"{Path(__file__).name}:{line_of('return torch.cond')} in forward"
    assert found(exported, "Sigmoid") == found(exported, "Cos") == [Origin("", "Net", here)]


def test_what_torch_adds_belongs_to_the_root(exported: Exported) -> None:
    class Sizes(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.new_ones(x.shape[0], 2), x

    model = export_module(Sizes(), torch.randn(2, 4), dynamic={"x": {0: "batch"}}).model
    assert {o.module for node in model.graph for o in origins(node.metadata_props)} == {""}
    assert all(o.kind == "Sizes" for node in model.graph for o in origins(node.metadata_props))


def test_nothing_names_this_machine(exported: Exported) -> None:
    data = to_bytes(exported.model)
    for secret in (
        str(Path(__file__).parent),
        str(Path(torch.__file__).parent),
        "pkg.torch",
        "eval_with_key",
    ):
        assert secret.encode() not in data


def test_initializers_keep_their_state_dict_names(net: Net, exported: Exported) -> None:
    names, state = set(exported.model.graph.initializers), net.state_dict()
    assert names <= set(state)
    missing = set(state) - names  # names of the same tensor: it has one of its names
    tied = {"blocks.0.inner.weight", "tied.weight"}
    assert missing < tied
    assert len(tied & names) == 1
