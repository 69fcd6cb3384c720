import numpy as np
import pytest

from burnish.passes.base import Context
from burnish.passes.fusion.fuse_dynamic_quantize import FuseDynamicQuantize
from burnish.target import TARGETS
from burnish.testing import check_pass

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.integers(-90, 90, (16, 5)).astype(np.int8), "wu": RNG.integers(0, 200, (16, 5)).astype(np.uint8),
    "s": np.float32(0.02), "s1": np.array([0.03], np.float32), "row": (RNG.random(5) / 50).astype(np.float32),
    "wz": np.int8(0), "wz3": np.int8(3), "wzu": np.uint8(110), "wzr": np.arange(5, dtype=np.int8),
    "b": RNG.standard_normal(5).astype(np.float32), "b2": np.ones((1, 5), np.float32),
    "cube": np.full((1, 1, 5), 0.1, np.float32),
}  # fmt: skip
QUANTIZE = "q, k, z = DynamicQuantizeLinear (x)  "
CAST = "i = MatMulInteger (q, {}, z{})  f = Cast <to = 1> (i)  "
FORMS = {
    "a tensor": CAST.format("w", ", wz") + "m = Mul (k, s)  y = Mul (f, m)",
    "no zero point": CAST.format("w", "") + "m = Mul (s1, k)  y = Mul (m, f)",
    "columns": CAST.format("w", ", wz3") + "m = Mul (k, row)  y = Mul (f, m)",
    "unsigned": CAST.format("wu", ", wzu") + "m = Mul (k, row)  y = Mul (f, m)",
    "a zero point a column": CAST.format("w", ", wzr") + "m = Mul (k, s)  y = Mul (f, m)",
    "one scale after the other": CAST.format("w", ", wz") + "m = Mul (f, k)  y = Mul (m, row)",
    "the other one first": CAST.format("w", ", wz") + "m = Mul (f, s)  y = Mul (k, m)",
    "with bias": CAST.format("w", ", wz") + "m = Mul (k, s)  p = Mul (f, m)  y = Add (b, p)",
}


def graph(nodes: str, inputs: str = "float[N, M, 16] x", output: str = "float[N, M, 5] y") -> str:
    return f"g ({inputs}) => ({output}) {{ {QUANTIZE} {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    words = nodes.replace(",", " ").replace("(", " ").replace(")", " ").split()
    return {name: array for name, array in WEIGHTS.items() if name in words}


@pytest.mark.parametrize("nodes", FORMS.values(), ids=FORMS)
def test_every_way_to_write_it(nodes: str) -> None:
    check_pass(FuseDynamicQuantize(), graph(nodes), ["DynamicQuantizeMatMul"], count=1, weights=used(nodes))


SHARED = (
    "i = MatMulInteger (q, w, z)  f = Cast <to = 1> (i)  m = Mul (k, s)  y = Mul (f, m)  "
    "i2 = MatMulInteger (q, wu, z, wzu)  f2 = Cast <to = 1> (i2)  m2 = Mul (k, row)  "
    "p = Mul (f2, m2)  u = Add (p, b)"
)


def test_what_is_quantised_for_two_is_quantised_once() -> None:
    text = graph(SHARED, output="float[N, M, 5] y, float[N, M, 5] u")
    after = ["DynamicQuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat"]
    check_pass(FuseDynamicQuantize(), text, after, count=2, weights=used(SHARED))


KEPT = {
    "another scale": CAST.format("w", ", wz") + "m = Mul (s, s)  y = Mul (f, m)",
    "a scale by position": CAST.format("w", ", wz") + "m = Mul (k, cube)  y = Mul (f, m)",
    "no zero point of x": "i = MatMulInteger (q, w)  f = Cast <to = 1> (i)  m = Mul (k, s)  y = Mul (f, m)",
    "another type": "i = MatMulInteger (q, w, z)  d = Cast <to = 11> (i)  f = Cast <to = 1> (d)  m = Mul (k, s)  y = Mul (f, m)",  # noqa: E501
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_what_is_something_else_stays(nodes: str) -> None:
    check_pass(FuseDynamicQuantize(), graph(nodes), count=0, weights=used(nodes))


def test_a_bias_that_is_no_row_stays_outside() -> None:
    nodes = CAST.format("w", ", wz") + "m = Mul (k, s)  p = Mul (f, m)  y = Add (b2, p)"
    after = ["DynamicQuantizeMatMul", "Add"]
    check_pass(FuseDynamicQuantize(), graph(nodes), after, count=1, weights=used(nodes))


def test_a_product_that_something_else_reads_stays() -> None:
    nodes, context = FORMS["a tensor"] + "  u = Neg (m)", Context()
    text = graph(nodes, output="float[N, M, 5] y, float u")
    check_pass(FuseDynamicQuantize(), text, count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "the Mul inside is used elsewhere too"


def test_a_target_without_the_kernels_keeps_them() -> None:
    context = Context(target=TARGETS["openvino"])
    nodes = FORMS["with bias"]
    check_pass(FuseDynamicQuantize(), graph(nodes), count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "target openvino has no com.microsoft::MatMulIntegerToFloat"
