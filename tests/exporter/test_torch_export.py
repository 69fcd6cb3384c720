"""What torch's exporter gets wrong when it is left alone, and what comes out here instead."""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from burnish.difference import worst
from burnish.errors import ExportError
from burnish.exporter.parity import check_parity
from burnish.exporter.torch_export import Exported, export_module
from burnish.manifest import DimRange
from burnish.model import signature, to_bytes
from burnish.provenance import origins
from burnish.runtime.reference import Reference

pytestmark = pytest.mark.torch


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.second = torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.second(torch.nn.functional.gelu(self.first(x)))


class ConvNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        found = torch.relu(self.norm(self.conv(image)))
        return {"logits": self.head(self.drop(found.mean((2, 3)))), "features": found}


class Seeded(torch.nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function  # type: ignore[method-assign]


def equal(exported: Exported, feeds: Mapping[str, np.ndarray]) -> bool:
    run = Reference(to_bytes(exported.model))
    return worst(exported.reference(feeds), run(feeds)).within(1e-5)


@pytest.fixture(scope="module")
def mlp() -> Exported:
    torch.manual_seed(0)
    return export_module(Mlp(), torch.randn(1, 4), dynamic={"x": {0: ("batch", 1, 32)}})


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_conv_net_with_two_named_outputs(opset: int) -> None:
    torch.manual_seed(0)
    net = ConvNet()
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}}
    exported = export_module(net, torch.randn(2, 3, 8, 8), dynamic=dynamic, opset=opset)
    assert exported.model.opset_imports[""] == opset
    assert [o.name for o in exported.signature.outputs] == ["logits", "features"]
    assert exported.signature.outputs[1].shape == ("batch", 8, "height", "width")
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error < 1e-5
    assert {a["batch"] for a in receipt.assignments} >= {1, 2, 3}


def test_interface(mlp: Exported) -> None:
    (given,), (made,) = mlp.signature.inputs, mlp.signature.outputs
    assert (given.name, given.dtype, given.shape) == ("x", "float32", ("batch", 4))
    assert (made.name, made.shape) == ("output", ("batch", 3))
    assert mlp.signature.dims == {"batch": DimRange(1, 32)}


def test_example_of_size_one_is_not_specialised(mlp: Exported) -> None:
    assert mlp.example["x"].shape == (2, 4)
    for batch in (1, 2, 5):
        assert equal(mlp, {"x": np.ones((batch, 4), np.float32)})


def test_parameters_keep_their_names(mlp: Exported) -> None:
    assert set(mlp.model.graph.initializers) >= {"first.weight", "first.bias", "second.weight"}


def test_model_is_valid_and_has_its_module_paths_but_no_paths_of_this_machine(mlp: Exported) -> None:
    data = to_bytes(mlp.model)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for secret in (str(Path(__file__).parent), str(Path(torch.__file__).parent), "stack_trace"):
        assert secret.encode() not in data
    node = next(node for node in mlp.model.graph if node.op_type in ("Gemm", "MatMul"))
    assert [origin.module for origin in origins(node.metadata_props)] == ["first"]


def test_stack_traces_on_request() -> None:
    exported = export_module(Mlp(), torch.randn(2, 4), keep_metadata=True)
    assert Path(__file__).name.encode() in to_bytes(exported.model)


def test_same_module_gives_the_same_bytes() -> None:
    torch.manual_seed(0)
    net, x = Mlp(), torch.randn(2, 4)
    first, second = (export_module(net, x, dynamic={"x": {0: "batch"}}) for _ in range(2))
    assert to_bytes(first.model) == to_bytes(second.model)


def test_weights_are_copied() -> None:
    net = Mlp()
    exported = export_module(net, torch.ones(2, 4))
    before = to_bytes(exported.model)
    with torch.no_grad():
        net.first.weight.fill_(7)
    assert to_bytes(exported.model) == before


def test_module_is_exported_in_eval_mode_and_put_back() -> None:
    net = ConvNet().train()
    net.norm.eval()  # frozen on purpose by the user
    running = net.norm.running_mean.clone()
    exported = export_module(net, torch.randn(2, 3, 4, 4))
    assert net.training
    assert net.drop.training
    assert not net.norm.training
    assert torch.equal(net.norm.running_mean, running)
    assert equal(exported, exported.example)
    assert "Dropout" not in {node.op_type for node in exported.model.graph}


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str]) -> None:
    export_module(Mlp(), torch.randn(2, 4))
    with pytest.raises(ExportError):
        export_module(Seeded(lambda x: x + 1 if x.sum() > 3 else x), (torch.randn(2, 4),))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch").handlers[0].filters == []


def test_input_with_the_name_of_a_parameter() -> None:
    class Weighted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(4.0))

        def forward(self, x: Any, weight: Any) -> Any:
            return x * weight + self.weight

    exported = export_module(Weighted(), {"x": torch.randn(2, 4), "weight": torch.randn(2, 4)})
    assert [i.name for i in exported.signature.inputs] == ["x", "weight"]
    assert "weight" not in exported.model.graph.initializers
    assert exported.notes
    assert equal(exported, exported.example)


def test_outputs_that_are_inputs_weights_and_twins_of_each_other() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([2.0]))

        def forward(self, x: Any) -> Any:
            y = x * self.scale
            return {"a": y, "b": y, "x": x, "scale": self.scale, "none": None, "more": (y + 1, [y + 2])}

    exported = export_module(Odd(), torch.randn(2, 4))
    names = [o.name for o in exported.signature.outputs]
    assert names == ["a", "b", "x_output", "scale", "more.0", "more.1.0"]
    onnx.checker.check_model(ir.to_proto(exported.model))
    assert equal(exported, exported.example)


def test_numbers_and_none_become_constants_and_dims_keep_their_names() -> None:
    def forward(x: Any, times: int, mask: Any = None) -> Any:
        return x * times if mask is None else x

    exported = export_module(
        Seeded(forward), {"mask": None, "times": 3, "x": torch.ones(2, 4)}, dynamic={"x": {0: "rows"}}
    )
    assert [i.shape for i in exported.signature.inputs] == [("rows", 4)]
    assert exported.reference({"x": np.ones((5, 4), np.float32)})["output"].max() == 3
    assert equal(exported, {"x": np.ones((5, 4), np.float32)})


def test_tuples_bind_to_parameters_in_order_and_output_names_may_be_given() -> None:
    exported = export_module(
        Seeded(lambda left, right: (left - right, right)), (torch.ones(2), torch.zeros(2)),
        output_names=["difference", "copy"],
    )  # fmt: skip
    assert [i.name for i in exported.signature.inputs] == ["left", "right"]
    feeds = {"left": np.array([5.0, 6.0], np.float32), "right": np.array([1.0, 2.0], np.float32)}
    assert list(exported.reference(feeds)) == ["difference", "copy"]
    assert equal(exported, feeds)


def test_bfloat16_runs_through_the_reference() -> None:
    exported = export_module(Mlp().to(torch.bfloat16), torch.ones(2, 4, dtype=torch.bfloat16))
    made = exported.reference(exported.example)["output"]
    assert made.dtype.name == "bfloat16"
    assert exported.signature.inputs[0].dtype == "bfloat16"


def test_expression_dims_speak_of_the_given_names() -> None:
    exported = export_module(Seeded(lambda x: x.flatten()), (torch.ones(3, 4),), dynamic={"x": {0: "rows"}})
    assert exported.signature.outputs[0].shape == ("4*rows",)
    assert exported.signature.dims == {"rows": DimRange(1)}, "4*rows follows from it, and has no range"
    assert signature(exported.model, exported.signature).dims == {"rows": DimRange(1)}
    assert equal(exported, {"x": np.ones((5, 4), np.float32)})


def test_dims_that_depend_on_each_other() -> None:
    doubled = Seeded(lambda x, y: torch.cat([x, x]) + y)
    exported = export_module(
        doubled, (torch.ones(1, 4), torch.ones(2, 4)), dynamic={"x": {0: "n"}, "y": {0: "twice"}}
    )
    assert exported.example["y"].shape == (2, 4), "at 2 and 3 the module fails, so it is not widened"
    assert any("kept as given" in note for note in exported.notes)
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert {"n": 2, "twice": 4} in receipt.assignments
    assert all(a["twice"] == 2 * a["n"] for a in receipt.assignments)


def test_wrong_shapes_of_a_loop_are_corrected() -> None:
    """torch 2.13 declares [batch, 2, 5] for an LSTM whose length is dynamic; the graph is right."""
    net = Seeded(torch.nn.LSTM(4, 5, batch_first=True).forward)
    dynamic = {"input": {0: "batch", 1: "length"}}
    exported = export_module(net, {"input": torch.randn(3, 2, 4)}, dynamic=dynamic)
    assert exported.signature.outputs[0].shape == ("batch", "length", 5)
    assert any("wrong shape of output 'output_0'" in note for note in exported.notes)
    assert [o.shape for o in exported.signature.outputs[1:]] == [(1, "batch", 5)] * 2
    receipt = check_parity(exported, Reference(to_bytes(exported.model)))
    assert {a["length"] for a in receipt.assignments} >= {1, 7, 16}


@pytest.mark.parametrize("opset", [17, 25])
def test_opset_outside_what_torch_writes(opset: int) -> None:
    with pytest.raises(ExportError, match="opsets 18 to 24") as caught:
        export_module(Mlp(), torch.ones(2, 4), opset=opset)
    assert caught.value.code == "EXPORT_OPSET"


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"x": 3}, "hold no tensor"),
        ({"x": [torch.ones(2, 4)]}, "is a list"),
        ((torch.ones(2, 4), torch.ones(2, 4)), "do not fit Mlp.forward"),
        ((torch.ones(2, 5),), "does not run on the example inputs"),
        ({"y": torch.ones(2, 4)}, "does not run on the example inputs"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, says: str) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        export_module(Mlp(), inputs)
    assert caught.value.code == "EXPORT_INPUTS"


def test_star_arguments_have_no_names() -> None:
    with pytest.raises(ExportError, match=r"takes \*parts"):
        export_module(Seeded(lambda *parts: parts[0]), (torch.ones(2),))


@pytest.mark.parametrize(
    ("result", "says"), [(lambda x: None, "no tensor"), (lambda x: (x, {1, 2}), "'output_1' is a set")]
)
def test_outputs_that_are_no_tensors(result: Callable[..., Any], says: str) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        export_module(Seeded(result), (torch.ones(2),))
    assert caught.value.code == "EXPORT_OUTPUTS"


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "x"]])
def test_output_names_that_do_not_fit(names: list[str]) -> None:
    with pytest.raises(ExportError) as caught:
        export_module(Seeded(lambda x: (x + 1, x + 2)), (torch.ones(2),), output_names=names)
    assert caught.value.code == "EXPORT_OUTPUTS"


def test_unsupported_operator_is_named() -> None:
    with pytest.raises(ExportError, match="bessel_j0") as caught:
        export_module(Seeded(lambda x: torch.special.bessel_j0(x)), (torch.ones(2, 4),))
    assert caught.value.code == "EXPORT_UNSUPPORTED_OP"


def test_without_torch_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from burnish.errors import MissingDependencyError
    from burnish.exporter.needs import need

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'burnish\[export\]"') as caught:
        need("transformers")
    assert caught.value.code == "DEPENDENCY_MISSING"


class Chosen(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        kept = x[x > 0]
        return kept, torch.cat([kept, x.flatten()])


def test_dims_that_values_decide_have_names_and_may_be_zero() -> None:
    exported = export_module(Chosen(), torch.randn(2, 3), dynamic={"x": {0: "batch"}})
    first, second = exported.signature.outputs
    assert (first.shape, second.shape) == (("output_0_dim_0",), ("output_1_dim_0",))
    assert exported.signature.dims == {
        "batch": DimRange(1), "output_0_dim_0": DimRange(0), "output_1_dim_0": DimRange(0)
    }  # fmt: skip
    found = Reference(to_bytes(exported.model))({"x": -np.ones((2, 3), np.float32)})
    assert found["output_0"].shape == (0,)


class Turned(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.fft.fft(x)


def test_complex_inputs_and_outputs_are_refused() -> None:
    with pytest.raises(ExportError, match="Output 'output' is complex") as caught:
        export_module(Turned(), torch.randn(2, 4))
    assert caught.value.code == "EXPORT_OUTPUTS"
    with pytest.raises(ExportError, match="input 'x' is complex") as caught:
        export_module(Turned(), torch.randn(2, 4, dtype=torch.complex64))
    assert caught.value.code == "EXPORT_INPUTS"


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x * 2


def test_buffers_that_the_module_changes_are_noted() -> None:
    exported = export_module(torch.nn.Sequential(Counter()), torch.ones(2, 3))
    assert "buffer '0.calls' is changed by the module; the graph has it as it was" in exported.notes
