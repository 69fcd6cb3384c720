"""Values on the way: where a model is cut, what is kept, and that a check started there is no weaker."""

import numpy as np
import onnx_ir as ir
import pytest

from burnish import waypoints as module
from burnish.checking import DifferentialChecker
from burnish.feeds import make_feeds
from burnish.model import copy_model, expose, signature
from burnish.numbering import Side
from burnish.passes.base import Numerics
from burnish.runtime.reference import Reference
from burnish.serialising import serialise
from burnish.testing import parse
from burnish.waypoints import Waypoints, fitting, waypoints

LAYERS = 24
RNG = np.random.default_rng(0)
WEIGHTS = {f"w{n}": RNG.standard_normal((32, 32)).astype(np.float32) / 4 for n in range(LAYERS)}


def layers() -> ir.Model:
    """Residual layers, so that one value goes across between two of them and several inside of one."""
    lines = []
    for n in range(LAYERS):
        value = "x" if n == 0 else f"x{n - 1}"
        out = "y" if n == LAYERS - 1 else f"x{n}"
        lines += [
            f"p{n} = MatMul ({value}, w{n})", f"s{n} = Sigmoid (p{n})", f"m{n} = Mul (p{n}, s{n})",
            f"{out} = Add ({value}, m{n})",
        ]  # fmt: skip
    text = "\n".join(lines)
    model = parse(f"g (float[batch, 32] x) => (float[batch, 32] y) {{ {text} }}", opset=20, weights=WEIGHTS)
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["batch", 32]), ir.DataType.FLOAT
    return model


def node_of(model: ir.Model, value: str) -> ir.Node:
    return next(node for node in model.graph if node.outputs[0].name == value)


def halved(model: ir.Model, layer: int, factor: float) -> ir.Model:
    """Mul(p, s) of one layer written as Mul(p + p, s * factor): right where that is a half."""
    after = copy_model(model)
    product = node_of(after, f"m{layer}")
    p, s = product.inputs
    half = ir.Value(name=f"half{layer}", const_value=ir.tensor(np.float32(factor), name=f"half{layer}"))
    after.graph.register_initializer(half)
    twice, less = ir.node("Add", [p, p]), ir.node("Mul", [s, half])
    for node, name in ((twice, f"twice{layer}"), (less, f"less{layer}")):
        node.outputs[0].name = name
    after.graph.insert_before(product, [twice, less])
    product.replace_input_with(0, twice.outputs[0])
    product.replace_input_with(1, less.outputs[0])
    return after


def test_cuts_are_where_few_values_go_across() -> None:
    first, *others = waypoints(layers())  # nothing that is computed goes around p0
    assert first == "p0"
    assert len(others) > 10
    assert all(name.startswith("x") for name in others)


def test_what_goes_across_a_cut_is_all_that_is_needed_behind_it() -> None:
    model = layers()
    feeds = make_feeds(signature(model).inputs, {"batch": 3}, seed=0)
    results = Reference(serialise(expose(model, waypoints(model))))(feeds)
    side = Side(model)
    known = Waypoints([({"batch": 3}, feeds)], model, [results]).of(side)[0]
    assert set(known) == {*waypoints(model), "y"}
    np.testing.assert_array_equal(known["y"], results["y"])


def test_there_is_room_for_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: np.zeros(size, np.uint8) for name, size in {"a": 40, "b": 10, "c": 30}.items()}
    monkeypatch.setattr(module, "_ROOM", 80)
    assert sorted(fitting(values, 2)) == ["b", "c"]
    assert fitting({"s": [np.zeros(3)]}, 1) == {}  # type: ignore[dict-item]  # a sequence


@pytest.fixture
def nodes_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many nodes each part that is made of a model has."""
    from burnish import region_check

    counts: list[int] = []
    open_part = region_check._Part.open

    def counted(part: object, nodes: list[ir.Node], *rest: object) -> Reference:
        counts.append(len(nodes))
        return open_part(part, nodes, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(region_check._Part, "open", counted)
    return counts


def test_a_check_runs_on_from_the_nearest_cut(nodes_run: list[int]) -> None:
    model = layers()
    check = DifferentialChecker(signature(model), by_region=True)
    current = model
    for layer in (LAYERS - 1, LAYERS - 2, 3):
        after = halved(current, layer, 0.5)
        verdict = check(copy_model(current), after, Numerics.ROUNDING)
        assert verdict.places
        assert verdict.difference.within(Numerics.ROUNDING.tolerance)
        current = after
    assert max(nodes_run) < 24  # of 96: from a cut on, not from the input


@pytest.mark.parametrize("layer", [0, LAYERS // 2, LAYERS - 1])
def test_what_is_wrong_after_something_right_is_found(layer: int) -> None:
    model = layers()
    check = DifferentialChecker(signature(model), by_region=True)
    right = halved(model, layer, 0.5)
    assert check(model, right, Numerics.ROUNDING).difference.within(Numerics.ROUNDING.tolerance)
    wrong = copy_model(right)
    node_of(wrong, f"s{layer}").op_type = "Tanh"
    assert not check(right, wrong, Numerics.ROUNDING).difference.within(Numerics.ROUNDING.tolerance)
    # and once more on the same model, which has stayed what it was
    assert check(right, copy_model(right), Numerics.ROUNDING).difference.within(1e-6)


def test_a_wrong_small_change_between_is_not_hidden_by_what_is_known() -> None:
    """The second model starts from a wrong one: what is known of the first must not be taken for it."""
    model = layers()
    check = DifferentialChecker(signature(model), by_region=True)
    wrong = halved(model, 0, 0.7)
    assert not check(model, wrong, Numerics.ROUNDING).difference.within(1e-3)
    again = halved(wrong, 1, 0.5)
    assert check(wrong, again, Numerics.ROUNDING).difference.within(Numerics.ROUNDING.tolerance)
    worse = halved(wrong, 2, 0.7)
    assert not check(wrong, worse, Numerics.ROUNDING).difference.within(1e-3)
