"""Tables, bodies and other targets."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.base import Context, Range
from burnish.passes.quantize.quantize_static import QuantizeStatic
from burnish.target import TARGETS
from burnish.testing import check_pass, parse

RNG = np.random.default_rng(0)
W = RNG.standard_normal((16, 24)).astype(np.float32) * 0.2
B = RNG.standard_normal(24).astype(np.float32)


def context(bound: float = 4.0, **fields: object) -> Context:
    return Context(calibrate=lambda model, names: {name: Range(-bound, bound) for name in names}, **fields)


def test_large_table_is_looked_up_in_int8() -> None:
    table = RNG.standard_normal((1024, 64)).astype(np.float32)
    model = check_pass(
        QuantizeStatic(),
        "g (int64[N, S] ids) => (float[N, S, 64] y) { y = Gather (t, ids) }",
        after="""
            y_float = Gather (t_s8, ids)
            [y_float_dq] y = DequantizeLinear <axis: int = -1> (y_float, t_scale, zeros_s8)
        """,
        count=1,
        context=context(),
        weights={"t": table},
    )
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    assert stored < table.nbytes / 3.9


@pytest.mark.parametrize(
    ("pass_", "table", "text"),
    [
        (QuantizeStatic(embeddings=False), (1024, 64), "y = Gather (t, ids)"),
        (QuantizeStatic(), (8, 64), "y = Gather (t, ids)"),
        (QuantizeStatic(), (1024, 64), "y = Gather <axis = 1> (t, ids)"),
        (
            QuantizeStatic(),
            (1024, 64),
            "z = Gather (t, ids)  u = ReduceSum <keepdims = 0> (t)  y = Add (z, u)",
        ),
    ],
    ids=["switched off", "small", "columns", "read by others"],
)
def test_table_stays_float(pass_: QuantizeStatic, table: tuple[int, int], text: str) -> None:
    weights = {"t": RNG.standard_normal(table).astype(np.float32)}
    dims = "M, S, K" if "axis = 1" in text else "N, S, 64"
    before = f"g (int64[N, S] ids) => (float[{dims}] y) {{ {text} }}"
    model = parse(before, weights=weights)
    made = pass_.rewrite(model, context())
    assert made == 0


def test_attention_products_on_request() -> None:
    before = """
        g (float[N, 4, 8] q, float[N, 8, 4] k) => (float[N, 4, 4] y) { y = MatMul (q, k) }
    """
    check_pass(QuantizeStatic(), before, count=0, context=context())
    check_pass(
        QuantizeStatic(attention=True),
        before,
        after=["QuantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMul"],
        count=1,
        context=context(),
    )


def test_bodies_stay_float_and_are_said() -> None:
    seen = context()
    check_pass(
        QuantizeStatic(),
        before="""
            g (bool c, float[N, 16] x) => (float[N, 24] y) {
                y = If (c) <
                    then_branch = t () => (float[N, 24] a) { a = MatMul (x, w) },
                    else_branch = e () => (float[N, 24] d) { d = MatMul (x, w) }
                >
            }
        """,
        count=0,
        context=seen,
        weights={"w": W},
    )
    assert [miss.why for miss in seen.misses] == [
        "Only the main graph is calibrated; quantize-dynamic is for bodies."
    ] * 2


def test_packed_attention_is_said() -> None:
    seen = context()
    model = parse(
        """
        <ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
        g (float[N, S, 16] x) => (float[N, S, 16] y) {
            y = com.microsoft.Attention <num_heads = 2> (x, w, b)
        }
        """,
        weights={"w": np.concatenate([W[:, :16]] * 3, axis=1), "b": np.zeros(48, np.float32)},
    )
    assert QuantizeStatic().rewrite(model, seen) == 0
    assert "unpack-attention" in seen.misses[0].why


def test_target_without_int8_leaves_all_float() -> None:
    seen = context(target=TARGETS["cuda"])
    text = "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }"
    check_pass(QuantizeStatic(), text, count=0, context=seen, weights={"w": W})
    assert "int8" in seen.misses[0].why


def test_symmetric_target_with_float_bias() -> None:
    model = check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        after=["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add"],
        count=1,
        context=context(target=TARGETS["tensorrt"]),
        weights={"w": W, "b": B},
    )
    assert model.graph.initializers["zero_int8"].const_value.numpy() == 0


def test_output_of_linear_is_rounded_where_the_target_wants_it() -> None:
    rules = dataclasses.replace(TARGETS["cpu"].qdq, linear_output=True)
    check_pass(
        QuantizeStatic(),
        "g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }",
        after="""
            [x_q] x_q = QuantizeLinear (x, x_scale, zero_uint8)
            [x_dq] x_dq = DequantizeLinear (x_q, x_scale, zero_uint8)
            [w_s8_dq] w_s8_dq = DequantizeLinear <axis: int = 1> (w_s8, w_scale, zeros_s8)
            y_float = MatMul (x_dq, w_s8_dq)
            [y_float_q] y_float_q = QuantizeLinear (y_float, y_scale, zero_uint8)
            [y_float_dq] y = DequantizeLinear (y_float_q, y_scale, zero_uint8)
        """,
        count=1,
        context=context(target=dataclasses.replace(TARGETS["cpu"], qdq=rules)),
        weights={"w": W},
    )


def test_metadata_and_names_of_nodes_stay() -> None:
    model = parse("g (float[N, 16] x) => (float[N, 24] y) { y = MatMul (x, w) }", weights={"w": W})
    node = model.graph[0]
    node.name, node.metadata_props["pkg.torch.onnx.stack_trace"] = "/encoder/query", "here"
    check_pass(QuantizeStatic(), model, count=1, context=context())
    kept = next(node for node in model.graph if isinstance(node, ir.Node) and node.op_type == "MatMul")
    assert (kept.name, kept.metadata_props["pkg.torch.onnx.stack_trace"]) == ("/encoder/query", "here")


def test_signal_to_noise_of_a_linear() -> None:
    from burnish.model import copy_model, to_bytes
    from burnish.runtime.reference import Reference

    model = parse(
        "g (float[N, 16] x) => (float[N, 24] y) { m = MatMul (x, w)  y = Add (m, b) }",
        weights={"w": W, "b": B},
    )
    feeds = {"x": np.random.default_rng(1).standard_normal((512, 16)).astype(np.float32)}
    exact = Reference(to_bytes(model))(feeds)["y"]
    rounded = copy_model(model)
    QuantizeStatic().rewrite(rounded, context(float(np.abs(feeds["x"]).max())))
    error = Reference(to_bytes(rounded))(feeds)["y"] - exact
    decibels = 10 * np.log10(np.sum(exact**2) / np.sum(error**2))
    assert decibels > 38.0
