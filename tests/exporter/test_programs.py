"""A `torch.export.ExportedProgram` as a source."""

import numpy as np
import pytest
import torch

import burnish
from burnish.errors import ExportError

pytestmark = pytest.mark.torch


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.drop = torch.nn.Dropout()
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, *, scale: float = 2.0) -> dict[str, torch.Tensor]:
        return {"y": self.drop(self.layer(x)) * scale + self.shift, "seen": mask + x.shape[0]}


def traced(low: int = 1, high: int = 64) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=low, max=high)
    return torch.export.export(
        Net().eval(),
        (torch.ones(3, 4),),
        {"mask": torch.ones(3)},
        dynamic_shapes={"x": {0: batch}, "mask": {0: batch}},
    )


def test_dims_and_ranges_are_the_programs() -> None:
    made = burnish.export(traced(2, 64))
    assert [(spec.name, spec.shape) for spec in made.manifest.inputs] == [
        ("x", ("batch", 4)),
        ("mask", ("batch",)),
    ]
    assert [spec.name for spec in made.manifest.outputs] == ["y", "seen"]
    assert (made.manifest.dims["batch"].min, made.manifest.dims["batch"].max) == (2, 64)
    assert {"batch": 64} in made.manifest.receipts[0].assignments
    assert set(made.model.graph.initializers) >= {"layer.weight", "layer.bias", "shift"}


def test_dims_can_be_named() -> None:
    made = burnish.export(traced(), dynamic={"x": {0: "rows"}, "mask": {0: "rows"}})
    assert made.manifest.inputs[0].shape == ("rows", 4)


def test_dims_of_different_places_have_names_of_their_own() -> None:
    class Two(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a.sum(1) + b.sum(1)

    first, second = torch.export.Dim("first"), torch.export.Dim("second")
    program = torch.export.export(
        Two(), (torch.ones(3, 5), torch.ones(3, 7)), dynamic_shapes={"a": {1: first}, "b": {1: second}}
    )
    assert [spec.shape for spec in burnish.export(program).manifest.inputs] == [
        (3, "a_dim_1"),
        (3, "b_dim_1"),
    ]


def test_it_runs_as_the_module_does() -> None:
    net = Net().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        net, (torch.ones(3, 4), torch.ones(3)), dynamic_shapes=({0: batch}, {0: batch})
    )
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with burnish.load(burnish.export(program)) as session:
        found = session(x=x, mask=np.ones(5, np.float32))["y"]
    np.testing.assert_allclose(
        found, net(torch.from_numpy(x), torch.ones(5))["y"].detach().numpy(), atol=1e-5
    )


def test_without_example_inputs() -> None:
    program = traced()
    program.example_inputs = None
    with pytest.raises(ExportError, match="holds no example inputs") as caught:
        burnish.export(program)
    assert caught.value.code == "EXPORT_INPUTS"
    made = burnish.export(program, {"x": torch.ones(3, 4), "mask": torch.ones(3)})
    assert made.manifest.inputs[0].shape == ("batch", 4)


def test_a_dim_that_the_program_has_not_is_the_programs_fault() -> None:
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(2, 3),))
    with pytest.raises(ExportError, match=r"'batch' .* became the constant 2") as caught:
        burnish.export(program, dynamic={"input": {0: "batch"}})
    assert caught.value.code == "EXPORT_SPECIALISED"
    assert "dynamic_shapes" in caught.value.hint
