"""quantize-dynamic: structure, bodies and functions, numbers."""

import numpy as np
import pytest

from burnish.model import copy_model, to_bytes
from burnish.passes.base import Context
from burnish.passes.quantize.quantize_dynamic import QuantizeDynamic
from burnish.runtime.reference import Reference
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 24)).astype(np.float32) * 0.2
B = RNG.standard_normal(24).astype(np.float32)
LINEAR = "g (float[N, S, 16] x) => (float[N, S, 24] y) { m = MatMul (x, w)  y = Add (m, b) }"


def test_linear_with_bias() -> None:
    check_pass(
        QuantizeDynamic(),
        LINEAR,
        after='y = com.microsoft.DynamicQuantizeMatMul (x, w_s8, w_scale, "", w_bias)',
        count=1,
        weights={"w": W, "b": B},
    )


def test_portable_form() -> None:
    check_pass(
        QuantizeDynamic(portable=True),
        LINEAR,
        after=["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"],
        count=1,
        weights={"w": W, "b": B},
    )


def test_portable_form_rounds_a_shared_input_once() -> None:
    check_pass(
        QuantizeDynamic(portable=True),
        """
            g (float[N, 16] x) => (float[N, 24] p, float[N, 24] q) {
                p = MatMul (x, w)
                q = MatMul (x, v)
            }
        """,
        after=[
            "DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul",
            "MatMulInteger", "Cast", "Mul", "Mul",
        ],
        count=2,
        weights={"w": W, "v": -W},
    )  # fmt: skip


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("portable", [False, True])
def test_gemm(trans_b: int, portable: bool) -> None:
    check_pass(
        QuantizeDynamic(portable=portable),
        f"""
            g (float[N, 16] x) => (float[N, 24] y) {{
                y = Gemm <alpha = -0.5, beta = 2.0, transB = {trans_b}> (x, w, b)
            }}
        """,
        count=1,
        weights={"w": W.T.copy() if trans_b else W, "b": B},
    )


def test_scale_per_tensor() -> None:
    model = check_pass(QuantizeDynamic(weights="tensor"), LINEAR, count=1, weights={"w": W, "b": B})
    assert model.graph.initializers["w_scale"].const_value.numpy().shape == ()


@pytest.mark.parametrize("portable", [False, True])
def test_inside_if(portable: bool) -> None:
    model = check_pass(
        QuantizeDynamic(portable=portable),
        """
            g (bool c, float[N, 16] x) => (float[N, 24] y) {
                y = If (c) <
                    then_branch = t () => (float[N, 24] a) { m = MatMul (x, w)  a = Add (m, b) },
                    else_branch = e () => (float[N, 24] d) { d = MatMul (x, w) }
                >
            }
        """,
        count=2,
        weights={"w": W, "b": B},
    )
    assert "w" not in model.graph.initializers


def test_inside_function() -> None:
    numbers = ", ".join(f"{number:.3f}" for number in W.ravel())
    model = parse(
        f"""
        <ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (float[N, 16] x) => (float[N, 24] y) {{ y = local.linear (x) }}
        <domain: "local", opset_import: ["": 20]>
        linear (x) => (y) {{
            w = Constant <value = float[16, 24] {{{numbers}}}> ()
            y = MatMul (x, w)
        }}
        """
    )
    after = check_pass(QuantizeDynamic(), model, count=1)
    (function,) = after.functions.values()
    assert [n.op_type for n in function] == ["Constant", "Constant", "DynamicQuantizeMatMul"]
    assert function.opset_imports["com.microsoft"] == 1


def test_output_of_the_product_that_is_read_elsewhere() -> None:
    check_pass(
        QuantizeDynamic(),
        """
            g (float[N, 16] x) => (float[N, 24] m, float[N, 24] y) {
                m = MatMul (x, w)
                y = Add (m, b)
            }
        """,
        after=["DynamicQuantizeMatMul", "Add"],
        count=1,
        weights={"w": W, "b": B},
    )


def test_table_and_linear() -> None:
    check_pass(
        QuantizeDynamic(),
        "g (int64[N, S] ids) => (float[N, S, 24] y) { e = Gather (t, ids)  y = MatMul (e, w) }",
        after=["Gather", "DequantizeLinear", "DynamicQuantizeMatMul"],
        count=2,
        weights={"t": RNG.standard_normal((4096, 16)).astype(np.float32), "w": W},
    )


@pytest.mark.parametrize(
    ("pass_", "target", "opset", "why"),
    [
        (QuantizeDynamic(), "tensorrt", 20, "no dynamic int8"),
        (QuantizeDynamic(portable=True), "cpu", 10, "Opset 10"),
    ],
)
def test_refused_with_a_reason(pass_: QuantizeDynamic, target: str, opset: int, why: str) -> None:
    seen = Context(target=TARGETS[target])
    check_pass(pass_, LINEAR, count=0, context=seen, opset=opset, weights={"w": W, "b": B})
    assert why in seen.misses[0].why


def test_excluded_by_name() -> None:
    model = parse(LINEAR, weights={"w": W, "b": B})
    model.graph[0].name = "/head/MatMul"
    check_pass(QuantizeDynamic(exclude="/head/.*"), model, count=0)


@pytest.mark.parametrize("portable", [False, True])
def test_signal_to_noise(portable: bool) -> None:
    model = parse(LINEAR, weights={"w": W, "b": B})
    feeds = {"x": np.random.default_rng(1).standard_normal((4, 64, 16)).astype(np.float32)}
    exact = Reference(to_bytes(model))(feeds)["y"]
    rounded = copy_model(model)
    QuantizeDynamic(portable=portable).rewrite(rounded, Context())
    error = Reference(to_bytes(rounded))(feeds)["y"] - exact
    assert 10 * np.log10(np.sum(exact**2) / np.sum(error**2)) > 38.0
