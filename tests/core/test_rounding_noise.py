"""Where a model rounds more than a pass may, its own noise decides; wrong rewrites are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import onnx_ir as ir
import pytest

import burnish.checking
from burnish.benchmarks.optimize import judge
from burnish.checking import DifferentialChecker
from burnish.model import signature, to_bytes
from burnish.passes.base import Context, Numerics, Pass
from burnish.passes.recipe import Recipe
from burnish.passes.runner import Verdict, WrongRewriteError, run_recipe
from burnish.rounding_noise import MOST, neighbours
from burnish.testing import parse

ROUNDING = Numerics.ROUNDING
RNG = np.random.default_rng(0)
W = RNG.standard_normal((64, 64)).astype(np.float32)
V = (W + 1e-3 * RNG.standard_normal((64, 64))).astype(np.float32)
TWO_PRODUCTS = "p = MatMul (x, w)  q = MatMul (x, v)"
OTHER_ORDER = """
    a, b = Split <axis = 1, num_outputs = 2> (x)  c, d = Split <axis = 0, num_outputs = 2> (w)
    r = MatMul (a, c)  s = MatMul (b, d)  p = Add (r, s)  q = MatMul (x, v)
"""
MASKED = "m = Sub (p, q)  f = Where (mask, m, zero)  y = Mul (f, factor)"


def model(
    products: str = TWO_PRODUCTS, end: str = MASKED, *, w: np.ndarray = W, mask: Any = (1, 0),
    factor: float = 200.0, second: str = "z = Relu (x)", shift: float = 0.0,
) -> ir.Model:  # fmt: skip
    """A factor times a difference of two nearly equal products: what they round to becomes large."""
    return parse(
        f"g (float[N, 64] x) => (float[N, 64] y, z) {{ {products} {end} {second} }}",
        weights={
            "w": w, "v": V, "factor": np.array(factor, np.float32), "zero": np.zeros((), np.float32),
            "mask": np.resize(np.array(mask, bool), 64), "shift": np.array(shift, np.float32),
        },
        opset=18,
    )  # fmt: skip


def verdict(after: ir.Model, before: ir.Model | None = None, numerics: Numerics = ROUNDING) -> Verdict:
    before = before or model()
    return DifferentialChecker(signature(before))(before, after, numerics)


def test_another_order_of_a_sum_is_no_mistake_where_the_model_amplifies_it() -> None:
    found = verdict(model(OTHER_ORDER))
    assert found.difference.max_rel > ROUNDING.tolerance
    assert found.keeps(ROUNDING)
    assert ROUNDING.tolerance < found.limit <= MOST
    (note,) = found.notes(ROUNDING)
    assert note.startswith("output 'y' is ")
    assert not verdict(model(OTHER_ORDER), numerics=Numerics.EXACT).keeps(Numerics.EXACT)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: model(w=W * np.float32(1.001)),
        lambda: model(OTHER_ORDER, w=W * np.float32(1.00001)),
        lambda: model(OTHER_ORDER, mask=(0, 1)),
        lambda: model(OTHER_ORDER, factor=200.5),
        lambda: model(OTHER_ORDER, second="t = Mul (x, shift)  z = Relu (t)", shift=1.0005),
        lambda: model(OTHER_ORDER, second="t = Sub (p, shift)  u = Sub (t, p)  z = Add (x, u)"),
    ],
    ids=["weight", "weight a little", "mask", "factor", "another output", "another output entirely"],
)
def test_a_wrong_rewrite_of_it_is_refused(wrong: Callable[[], ir.Model]) -> None:
    assert not verdict(wrong()).keeps(ROUNDING)


def test_the_output_that_is_wrong_is_named_beside_one_that_is_further_off() -> None:
    found = verdict(model(OTHER_ORDER, second="t = Mul (x, shift)  z = Relu (t)", shift=1.0002))
    assert found.difference.name == "z"
    assert not found.notes(ROUNDING)


def test_no_noise_excuses_more_than_ten_times_the_promise() -> None:
    before = model(factor=1e6)
    found = verdict(model(OTHER_ORDER, w=W * np.float32(1.00001), factor=1e6), before)
    assert found.difference.max_rel > MOST
    assert not found.keeps(ROUNDING)


def test_integers_are_equal_or_wrong() -> None:
    def rounded(products: str) -> ir.Model:
        return model(products, second="k = Mul (y, factor)  z = Cast <to = 7> (k)")

    found = verdict(rounded(OTHER_ORDER), rounded(TWO_PRODUCTS))
    assert found.difference.name == "z"
    assert not found.keeps(ROUNDING)


def test_noise_is_measured_only_where_the_promise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> list[dict[str, float]]:
        raise AssertionError

    monkeypatch.setattr(burnish.checking, "limits", measured)
    assert verdict(model()).keeps(ROUNDING)
    assert not verdict(model(mask=(0, 1))).keeps(ROUNDING)  # further off than any noise may be
    with pytest.raises(AssertionError):
        verdict(model(OTHER_ORDER))


@final
class Reorder(Pass):
    """Puts other products in, by text."""

    name: ClassVar[str] = "reorder"
    numerics: ClassVar[Numerics] = ROUNDING
    becomes: ClassVar[ir.Model]

    def rewrite(self, model: ir.Model, context: Context) -> int:
        if not context.permit(model.graph.node(0)):
            return 0
        model.graph = self.becomes.clone().graph
        return 1


@pytest.mark.parametrize("right", [True, False])
def test_the_receipt_says_what_noise_allowed(monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    monkeypatch.setattr(
        Reorder, "becomes", model(OTHER_ORDER, mask=(1, 0) if right else (0, 1)), raising=False
    )
    before = model()
    checker = DifferentialChecker(signature(before))
    if not right:
        with pytest.raises(WrongRewriteError):
            run_recipe(Recipe((Reorder(),)), before, Context(), checker)
        return
    (receipt,) = run_recipe(Recipe((Reorder(),)), before, Context(), checker).receipts
    assert receipt.status == "kept"
    assert receipt.max_rel_error is not None
    assert receipt.max_rel_error > ROUNDING.tolerance
    assert "is allowed by the model's own rounding noise" in receipt.notes[-1]


def test_other_tools_are_judged_by_the_same_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"source": model(), "right": model(OTHER_ORDER), "wrong": model(OTHER_ORDER, mask=(0, 1))}
    paths = {name: tmp_path / f"{name}.onnx" for name in given}
    for name, path in paths.items():
        path.write_bytes(to_bytes(given[name]))
    judge.main(*map(str, paths.values()))
    right, wrong = map(json.loads, capsys.readouterr().out.splitlines())
    assert right["valid"]
    assert right["equal"]
    assert "is allowed by the model's own rounding noise" in right["note"]
    assert wrong["valid"]
    assert not wrong["equal"]
    assert wrong["failure"].startswith("differs at y")


def test_neighbours() -> None:
    array = np.array([0.0, 1.0, -3.0, np.inf, np.nan, 0.1, -0.1, np.finfo(np.float32).min], np.float32)
    moved = neighbours(array, np.random.default_rng(0))
    np.testing.assert_array_equal(moved[[0, 1, 2, 3, 4, 7]], array[[0, 1, 2, 3, 4, 7]])
    np.testing.assert_array_max_ulp(moved[5:7], array[5:7], 1)
    assert (moved[5:7] != array[5:7]).all()
    assert neighbours(np.arange(3), np.random.default_rng(0)).tolist() == [0, 1, 2]
