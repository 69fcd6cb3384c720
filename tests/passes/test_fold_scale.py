import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fold_scale import FoldScale
from burnish.testing import check_pass, parse

_RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": _RNG.standard_normal((3, 4)), "b": _RNG.standard_normal(4), "g": _RNG.standard_normal(4),
    "half": np.array(0.5), "one": np.array([2.0]), "wide": _RNG.standard_normal((1, 1, 4)),
    "large": _RNG.standard_normal((3, 1 << 13)), "large_b": _RNG.standard_normal(1 << 13),
    "large_g": _RNG.standard_normal(1 << 13),
}  # fmt: skip
LINEAR = "m = MatMul (x, w)  a = Add (m, b)  "


def graph(nodes: str, outputs: str = "float[B, S, 4] y", dtype: str = "float") -> str:
    return f"g ({dtype}[B, S, 3] x) => ({outputs.replace('float', dtype)}) {{ {nodes} }}"


def weights(nodes: str, dtype: type[np.floating] = np.float32) -> dict[str, np.ndarray]:
    named = {name for name in WEIGHTS if any(f", {name}{end}" in nodes for end in ",)")}
    named |= {name for name in WEIGHTS if f"({name}, " in nodes}
    return {name: WEIGHTS[name].astype(dtype) for name in named}


@pytest.mark.parametrize("scale", ["Mul (a, g)", "Mul (g, a)", "Mul (a, half)", "Mul (a, one)"])
def test_a_scale_of_features(scale: str) -> None:
    nodes = f"{LINEAR} y = {scale}"
    model = check_pass(FoldScale(), graph(nodes), ["MatMul", "Add"], count=1, weights=weights(nodes))
    assert sorted(model.graph.initializers) == ["b_scaled", "w_scaled"]


def test_float64() -> None:
    nodes = f"{LINEAR} y = Mul (a, g)"
    given = weights(nodes, np.float64)
    check_pass(FoldScale(), graph(nodes, dtype="double"), ["MatMul", "Add"], count=1, weights=given)


def test_the_weight_is_put_together_when_it_is_read() -> None:
    nodes = f"{LINEAR} y = Mul (a, g)"
    model = parse(graph(nodes), weights=weights(nodes))
    assert FoldScale().rewrite(model, Context()) == 1
    assert isinstance(model.graph.initializers["w_scaled"].const_value, ir.LazyTensor)


def test_a_small_shared_weight_is_written_once_more() -> None:
    nodes = f"{LINEAR} y = Mul (a, g)  z = MatMul (x, w)"
    text = graph(nodes, "float[B, S, 4] y, float[B, S, 4] z")
    made = ["MatMul", "Add", "MatMul"]
    model = check_pass(FoldScale(), text, count=1, weights=weights(nodes))
    assert sorted(node.op_type for node in model.graph) == sorted(made)


LARGE = "m = MatMul (x, large)  a = Add (m, large_b)  y = Mul (a, large_g)"
REFUSED = {
    "the sum is a result": (
        f"{LINEAR} y = Mul (a, g)", "float[B, S, 4] y, float[B, S, 4] a",
        "the Add inside is used elsewhere too"),
    "the product is a result": (
        f"{LINEAR} y = Mul (a, g)", "float[B, S, 4] y, float[B, S, 4] m",
        "the MatMul inside is used elsewhere too"),
    "another rank": (
        f"{LINEAR} y = Mul (a, wide)", "float[B, S, 4] y", "the scale is not one number for each feature"),
    "a large weight that is shared": (
        f"{LARGE}  z = MatMul (x, large)", "float[B, S, N] y, float[B, S, N] z",
        "its weight is used elsewhere too, and would be there twice"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "outputs", "why"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_said(nodes: str, outputs: str, why: str) -> None:
    context = Context()
    text = graph(nodes, outputs)
    check_pass(FoldScale(), text, count=0, weights=weights(nodes), context=context)
    assert [miss.why for miss in context.misses] == [why]


def test_half_precision_and_what_is_not_finite_stay() -> None:
    nodes = f"{LINEAR} y = Mul (a, g)"
    for dtype, name, scale in (("float16", np.float16, 1.0), ("float", np.float32, 1e38)):
        given = weights(nodes, name)  # type: ignore[arg-type]
        given["g"] = (given["g"].astype(np.float64) * scale).astype(name)
        given["w"] = (given["w"].astype(np.float64) * scale**0.5).astype(name)
        context = Context()
        assert FoldScale().rewrite(parse(graph(nodes, dtype=dtype), weights=given), context) == 0
        assert len(context.misses) == 1


def test_a_scale_that_is_computed_stays() -> None:
    nodes = f"{LINEAR} y = Mul (a, k)"
    text = graph(nodes).replace("] x)", "] x, float[4] k)")
    check_pass(FoldScale(), text, count=0, weights=weights(nodes))
