from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from burnish.model import load_model, save_model, signature
from burnish.passes.base import Context
from burnish.passes.cleanup.deduplicate_initializers import DeduplicateInitializers
from burnish.passes.matching import MADE_OF
from burnish.testing import check_pass, parse

TWO = "g (float[N, 2] x) => (float[N, 2] y) { a = Mul (x, w)  y = Add (a, v) }"
W = np.array([[1.0, 2.0]], np.float32)


def test_equal_bytes_become_one() -> None:
    model = check_pass(
        DeduplicateInitializers(),
        TWO,
        "a = Mul (x, w)\ny = Add (a, w)",
        weights={"w": W, "v": W.copy()},
        count=1,
    )
    assert list(model.graph.initializers) == ["w"]


def test_another_shape_or_dtype_stays() -> None:
    model = parse(TWO, weights={"w": W, "v": W.reshape(2)})
    assert DeduplicateInitializers().rewrite(model, Context()) == 0
    text = "g (float[N] x, int32[N] i) => (float[N] y, int32[N] j) { y = Add (x, w)  j = Add (i, v) }"
    zeros = {"w": np.zeros(1, np.float32), "v": np.zeros(1, np.int32)}
    check_pass(DeduplicateInitializers(), text, weights=zeros, count=0)


def test_zero_and_minus_zero_differ() -> None:
    weights = {"w": np.zeros((1, 2), np.float32), "v": -np.zeros((1, 2), np.float32)}
    check_pass(DeduplicateInitializers(), TWO, weights=weights, count=0)


def test_large_weights_that_differ_in_places_nobody_samples_stay() -> None:
    large = np.zeros((1, 40_000), np.float32)
    other = large.copy()
    other[0, 777] = 1.0
    text = "g (float[N, 40000] x) => (float[N, 40000] y) { a = Mul (x, w)  y = Add (a, v) }"
    check_pass(DeduplicateInitializers(), text, weights={"w": large, "v": other}, count=0)
    check_pass(DeduplicateInitializers(), text, weights={"w": large, "v": large.copy()}, count=1)


@pytest.mark.parametrize(("place", "merged"), [(None, 2), (0, 1), (777, 1), (-1, 1)])
def test_weights_in_a_data_file_are_compared_with_each_other_and_with_others(
    tmp_path: Path, place: int | None, merged: int
) -> None:
    weights = {name: np.arange(10_000, dtype=np.float32).reshape(1, -1) for name in "wv"}
    if place is not None:
        weights["v"][0, place] = 5.5
    text = "g (float[N, 10000] x) => (float[N, 10000] y) { a = Mul (x, w)  b = Add (a, v) y = Mul (b, u) }"
    written = parse(text, weights={**weights, "u": weights["w"] + 1})
    save_model(written, tmp_path / "m.onnx", signature(written), external_threshold=0)
    model = load_model(tmp_path / "m.onnx")
    inside = model.graph.initializers["u"]
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    inside.const_value = ir.tensor(weights["v"], name="u")
    assert DeduplicateInitializers().rewrite(model, Context()) == merged


def test_weights_that_are_put_together_when_read_are_compared_by_what_of() -> None:
    text = "g (float[N, 10000] x) => (float[N, 10000] y) { a = Mul (x, w)  b = Add (a, v) y = Mul (b, u) }"
    model = parse(text, weights={name: np.zeros((1, 10_000), np.float32) for name in "wvu"})
    for name, made_of in (("w", ("q", 1)), ("v", ("q", 2)), ("u", ("q", 1))):
        tensor = ir.LazyTensor(unread, ir.DataType.FLOAT, ir.Shape([1, 10_000]), name=name)
        tensor.meta[MADE_OF] = made_of
        model.graph.initializers[name].const_value = tensor
    assert DeduplicateInitializers().rewrite(model, Context()) == 1
    assert set(model.graph.initializers) == {"w", "v"}


def unread() -> ir.Tensor:
    raise AssertionError("It was read.")


def test_inputs_with_a_default_stay() -> None:
    text = "g (float[N, 2] x, float[1, 2] v) => (float[N, 2] y) { a = Mul (x, w)  y = Add (a, v) }"
    check_pass(DeduplicateInitializers(), text, weights={"w": W, "v": W}, count=0)


def test_outputs_stay() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y, float[1, 2] v) { y = Mul (x, w) }"
    check_pass(DeduplicateInitializers(), text, weights={"w": W, "v": W}, count=0)


def test_tied_weights_of_three_users() -> None:
    text = "g (float[N, 2] x) => (float[N, 2] y) { a = Mul (x, u)  b = Mul (a, v)  y = Mul (b, w) }"
    weights = {"u": W, "v": W, "w": W}
    model = check_pass(DeduplicateInitializers(), text, weights=weights, count=2)
    assert len(model.graph.initializers) == 1


def test_a_branch_uses_the_outer_one() -> None:
    model = check_pass(
        DeduplicateInitializers(),
        before="""
            g (bool c, float[N] x) => (float[N] y)
            <float[1] w = {2.0}>
            {
                a = Mul (x, w)
                y = If (c) <
                    then_branch = t () => (float[N] p) <float[1] v = {2.0}> { p = Add (a, v) },
                    else_branch = e () => (float[N] q) <float[1] u = {2.0}> { q = Sub (a, u) }
                >
            }
        """,
        count=2,
    )
    assert {value.name for node in model.graph.all_nodes() for value in node.inputs if value} >= {"w"}


def test_two_branches_do_not_see_each_other() -> None:
    check_pass(
        DeduplicateInitializers(),
        before="""
            g (bool c, float[N] x) => (float[N] y) {
                y = If (c) <
                    then_branch = t () => (float[N] p) <float[1] v = {2.0}> { p = Add (x, v) },
                    else_branch = e () => (float[N] q) <float[1] u = {2.0}> { q = Sub (x, u) }
                >
            }
        """,
        count=0,
    )


def test_strings_are_compared_as_strings() -> None:
    text = "g (string[N] x) => (bool[N] y, bool[N] z) { y = Equal (x, u)  z = Equal (x, v) }"
    same = {"u": np.array(["ab"], object), "v": np.array(["ab"], object)}
    model = parse(text, weights=same)
    assert DeduplicateInitializers().rewrite(model, Context()) == 1
    other = {"u": np.array(["a", "bc"], object), "v": np.array(["ab", "c"], object)}
    model = parse(text, weights=other)
    assert DeduplicateInitializers().rewrite(model, Context()) == 0
