"""Only what is measured to be faster becomes int8."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from burnish.costs import Ratio
from burnish.errors import ModelError
from burnish.model import expose, to_bytes
from burnish.passes.base import Context, Range
from burnish.passes.quantize.gate import cut_out, speedups
from burnish.passes.quantize.quantize_dynamic import QuantizeDynamic
from burnish.passes.quantize.quantize_static import QuantizeStatic
from burnish.runtime.reference import Reference
from burnish.testing import parse

RNG = np.random.default_rng(0)
NET = """
    g (float[2, 16] x) => (float[2, 8] y) {
        a = MatMul (x, w1)
        b = Relu (a)
        c = MatMul (b, w2)
        d = Relu (c)
        y = MatMul (d, w3)
    }
"""
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"w1": (16, 16), "w2": (16, 16), "w3": (16, 8)}.items()
}


class Bench:
    """A made-up clock: int8 is faster where the product is wide."""

    def __init__(self, wide: int) -> None:
        self.wide, self.asked = wide, 0

    def probe(self, model: ir.Model, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        feeds = {
            value.name: np.ones([size if isinstance(size, int) else 2 for size in value.shape], np.float32)
            for value in model.graph.inputs
        }
        return Reference(to_bytes(expose(model, names)))(feeds | {}, None) | feeds

    def compare(self, a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        self.asked += 1
        before, after = Reference(to_bytes(a))(feeds), Reference(to_bytes(b))(feeds)
        assert before.keys() == after.keys()
        (width,) = {array.shape[-1] for array in before.values()}
        return Ratio.exactly(2.0 if width >= self.wide else 0.5)

    def context(self) -> Context:
        return Context(
            calibrate=lambda model, names: {name: Range(-9.0, 9.0) for name in names},
            probe=self.probe,
            compare_speed=self.compare,
        )


@pytest.mark.parametrize("pass_", [QuantizeStatic(), QuantizeDynamic()], ids=lambda p: p.name)
def test_slow_shapes_stay_float_and_are_said(pass_: QuantizeStatic | QuantizeDynamic) -> None:
    bench = Bench(wide=16)
    model, seen = parse(NET, weights=WEIGHTS), bench.context()
    assert pass_.rewrite(model, seen) == 2
    assert "w3" in model.graph.initializers
    assert ["measured below 1 ×" in miss.why for miss in seen.misses] == [True]
    assert seen.measured == [
        "MatMul [2, 16]: int8 2.00 × as fast as float",
        "MatMul [2, 16]: int8 0.50 × as fast as float",
    ]


@pytest.mark.parametrize("pass_", [QuantizeStatic(), QuantizeDynamic()], ids=lambda p: p.name)
def test_equal_shapes_are_timed_once(pass_: QuantizeStatic | QuantizeDynamic) -> None:
    bench = Bench(wide=1)
    assert pass_.rewrite(parse(NET, weights=WEIGHTS), bench.context()) == 3
    assert bench.asked == 2


def test_threshold_is_an_option() -> None:
    bench = Bench(wide=1)
    assert QuantizeStatic(min_speedup=2.5).rewrite(parse(NET, weights=WEIGHTS), bench.context()) == 0


def test_plan_says_why_a_node_is_float() -> None:
    plan = QuantizeStatic().plan(parse(NET, weights=WEIGHTS), Bench(wide=16).context())
    assert {node.value: node.mode for node in plan.nodes} == {"a": "static", "c": "static", "y": "float"}
    assert "measured below" in plan.nodes[2].why


CONVS = """
    g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 4] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        r = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (r, w2)
        y = Add (b, r)
        m = ReduceMean <keepdims = 0> (y, axes)
        z = MatMul (m, w3)
    }
"""


def convs() -> ir.Model:
    weights = {f"w{i}": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32) * 0.3 for i in (1, 2)}
    weights["w3"] = RNG.standard_normal((4, 4)).astype(np.float32)
    return parse(CONVS, weights=weights | {"axes": np.array([2, 3])})


def test_convs_that_hand_on_int8_are_one_region() -> None:
    sizes = []

    def compare(a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        sizes.append([node.op_type for node in a.graph])
        assert Reference(to_bytes(b))(feeds).keys() == Reference(to_bytes(a))(feeds).keys()
        return Ratio.exactly(2.0)

    context = Bench(wide=1).context()
    context.compare_speed = compare
    assert QuantizeStatic().rewrite(convs(), context) == 3
    assert sizes == [["Conv", "Relu", "Conv"], ["MatMul"]]


def test_slow_region_is_float_as_a_whole() -> None:
    context = Bench(wide=1).context()
    context.compare_speed = lambda a, b, feeds: Ratio.exactly(
        0.5 if len(feeds["x"].shape if "x" in feeds else ()) == 4 else 2.0
    )
    model = convs()
    assert QuantizeStatic().rewrite(model, context) == 1
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1


def test_cut_out_computes_the_same() -> None:
    model = convs()
    region = [node for node in model.graph if node.op_type in ("Conv", "Relu", "Add")]
    cut = cut_out(model, region)
    assert cut is not None
    x = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
    whole = Reference(to_bytes(model))({"x": x})
    np.testing.assert_array_equal(Reference(to_bytes(cut))({"x": x})["y"], whole["y"])


def test_region_that_does_not_run_alone_is_said() -> None:
    def refuse(a: ir.Model, b: ir.Model, feeds: Mapping[str, np.ndarray]) -> Ratio:
        raise ModelError("It does not load.", "Look at it.")

    context = Bench(wide=1).context()
    context.compare_speed = refuse
    assert QuantizeStatic().rewrite(parse(NET, weights=WEIGHTS), context) == 3
    assert context.misses[0].why == "not measured: It does not load."


def test_inputs_without_a_type_are_timed() -> None:
    model = parse(NET, weights=WEIGHTS)
    for node in model.graph:
        node.outputs[0].type = node.outputs[0].shape = None
    model.graph.outputs[0].dtype, model.graph.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([2, 8])
    bench = Bench(wide=1)
    assert QuantizeStatic().rewrite(model, bench.context()) == 3
    assert bench.asked == 2


def test_nobody_can_time() -> None:
    model = convs()
    assert speedups(model, [[model.graph[0]]], lambda region: None, Context()) == [None]


def test_region_in_a_body_is_not_timed() -> None:
    model = parse(
        """
        g (bool c, float[2, 16] x) => (float[2, 16] y) {
            y = If (c) <
                then_branch = t () => (float[2, 16] a) { a = MatMul (x, w) },
                else_branch = e () => (float[2, 16] d) { d = Identity (x) }
            >
        }
        """,
        weights={"w": WEIGHTS["w1"]},
    )
    context = Bench(wide=99).context()
    context.probe = lambda model, names: {name: np.ones((2, 16), np.float32) for name in names}
    assert QuantizeDynamic().rewrite(model, context) == 1
