import numpy as np
import onnx_ir as ir
import pytest

from burnish.errors import ModelError
from burnish.model import load_model, to_bytes
from burnish.passes.base import Context
from burnish.passes.fusion.fuse_rms_norm import FuseRmsNorm
from burnish.passes.fusion.fuse_skip_norm import FuseSkipNorm
from burnish.target import TARGETS
from burnish.testing import check_pass, parse, text_of

WEIGHTS = {
    "two": np.float32(2.0), "eps": np.float32(1e-6), "one": np.float32(1.0),
    "half": np.float32(0.5), "minus": np.float32(-0.5),
    "scale": np.linspace(0.5, 1.5, 4, dtype=np.float32), "axes": np.array([-1], np.int64),
}  # fmt: skip
HEAD = "q = Pow (x, two)  v = ReduceMean (q, axes)  e = Add (v, eps)  r = Sqrt (e)\n"
FORMS = {
    "torch": HEAD + "i = Reciprocal (r)  n = Mul (x, i)  y = Mul (scale, n)",
    "operands swapped": HEAD.replace("(v, eps)", "(eps, v)")
    + "i = Reciprocal (r)  n = Mul (i, x)  y = Mul (n, scale)",
    "square by Mul": HEAD.replace("Pow (x, two)", "Mul (x, x)")
    + "i = Reciprocal (r)  n = Mul (x, i)  y = Mul (scale, n)",
    "division": HEAD + "n = Div (x, r)  y = Mul (n, scale)",
    "one divided": HEAD + "i = Div (one, r)  n = Mul (x, i)  y = Mul (n, scale)",
    "Pow -0.5": HEAD.replace("Sqrt (e)", "Pow (e, minus)") + "n = Mul (x, r)  y = Mul (n, scale)",
    "Pow 0.5": HEAD.replace("Sqrt (e)", "Pow (e, half)") + "n = Div (x, r)  y = Mul (n, scale)",
    "scale on the inverse": HEAD + "i = Reciprocal (r)  s = Mul (i, scale)  y = Mul (x, s)",
}
HALF = """
    g (float16[B, S, 4] h) => (float16[B, S, 4] y) {
        x = Cast <to = 1> (h)
        q = Pow (x, two)  v = ReduceMean (q, axes)  e = Add (v, eps)  r = Sqrt (e)
        i = Reciprocal (r)  n = Mul (x, i)
        c = Cast <to = 10> (n)
        y = Mul (scale, c)
    }
"""


def graph(nodes: str, x: str = "float[B, S, 4] x", y: str = "float[B, S, 4] y") -> str:
    return f"g ({x}) => ({y}) {{ {nodes} }}"


def used(nodes: str) -> dict[str, np.ndarray]:
    return {
        name: array for name, array in WEIGHTS.items()
        if any(f"{name}{end}" in nodes for end in ")," ) or f"({name}" in nodes
    }  # fmt: skip


@pytest.mark.parametrize("nodes", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("opset", "op_type"), [(20, "SimplifiedLayerNormalization"), (23, "RMSNormalization")]
)
def test_forms(nodes: str, opset: int, op_type: str) -> None:
    model = check_pass(FuseRmsNorm(), graph(nodes), [op_type], count=1, opset=opset, weights=used(nodes))
    node = model.graph.node(0)
    assert [value.name for value in node.inputs] == ["x", "scale"]
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-6)
    assert node.attributes.get_int("axis") == -1
    assert list(model.graph.initializers) == ["scale"]


def test_without_scale() -> None:
    nodes = HEAD + "i = Reciprocal (r)  y = Mul (x, i)"
    model = check_pass(
        FuseRmsNorm(), graph(nodes), ["RMSNormalization"], count=1, opset=23, weights=used(nodes)
    )
    (scale,) = model.graph.initializers.values()
    assert scale.const_value is not None
    assert scale.const_value.numpy().tolist() == [1, 1, 1, 1]


def test_of_heads() -> None:
    nodes = FORMS["torch"]
    text = graph(nodes, "float[B, S, 2, 4] x", "float[B, S, 2, 4] y")
    check_pass(FuseRmsNorm(), text, ["RMSNormalization"], count=1, opset=23, weights=used(nodes))


def test_half_precision_with_its_casts() -> None:
    weights = {**used(HALF), "scale": WEIGHTS["scale"].astype(np.float16)}
    model = parse(HALF, opset=23, weights=weights)
    assert FuseRmsNorm().rewrite(model, Context()) == 1
    assert text_of(model).split("=", 1)[1].split("(")[0].split("<")[0].strip() == "RMSNormalization"
    (node,) = model.graph
    assert [value.name for value in node.inputs] == ["h", "scale"]


def test_half_precision_with_a_scale_in_float32_keeps_its_casts() -> None:
    text = HALF.replace("c = Cast <to = 10> (n)", "c = Mul (scale, n)").replace(
        "y = Mul (scale, c)", "y = Cast <to = 10> (c)"
    )
    model = check_pass(
        FuseRmsNorm(), text, ["Cast", "RMSNormalization", "Cast"], count=1, opset=23, weights=used(text)
    )
    assert model.graph.node(1).inputs[0].dtype == ir.DataType.FLOAT


REFUSED = {
    "another axis": (
        FORMS["torch"], {"axes": np.array([1], np.int64)},
        "normalises over axes [1], not over the last one only",
    ),
    "used elsewhere": (FORMS["torch"] + "  z = Neg (i)", {}, "the Reciprocal inside is used elsewhere too"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights", "why"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_said(nodes: str, weights: dict[str, np.ndarray], why: str) -> None:
    outputs = "float[B, S, 4] y, float[B, S, 1] z" if "z =" in nodes else "float[B, S, 4] y"
    context = Context()
    check_pass(
        FuseRmsNorm(), graph(nodes, y=outputs), count=0, weights=used(nodes) | weights, context=context
    )
    assert [miss.why for miss in context.misses[:1]] == [why]


def test_a_target_without_the_kernel_keeps_the_arithmetic() -> None:
    nodes, context = FORMS["torch"], Context(target=TARGETS["openvino"])
    check_pass(FuseRmsNorm(), graph(nodes), count=0, weights=used(nodes), context=context)
    assert context.misses[0].why == "target openvino has no kernel for SimplifiedLayerNormalization"


def test_a_mean_of_other_squares_is_none() -> None:
    nodes = "q = Pow (s, two)  v = ReduceMean (q, axes)  e = Add (v, eps)  r = Sqrt (e)  y = Div (x, r)"
    text = graph(nodes, "float[B, S, 4] x, float[B, S, 4] s")
    check_pass(FuseRmsNorm(), text, count=0, weights=used(nodes))


def test_a_residual_sum_joins_below_opset_23() -> None:
    nodes = "x = Add (a, b)\n" + FORMS["torch"]
    model = parse(graph(nodes, "float[B, S, 4] a, float[B, S, 4] b"), weights=used(nodes))
    assert FuseRmsNorm().rewrite(model, Context()) == 1
    after = check_pass(FuseSkipNorm(), model, ["SkipSimplifiedLayerNormalization"], count=1)
    assert after.graph.node(0).domain == "com.microsoft"


def test_a_file_with_onnxruntimes_own_op_is_loaded(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "m.onnx"
    model = parse(graph(FORMS["torch"]), weights=used(FORMS["torch"]))
    FuseRmsNorm().rewrite(model, Context())
    path.write_bytes(to_bytes(model))
    assert [node.op_type for node in load_model(path).graph] == ["SimplifiedLayerNormalization"]
    path.write_bytes(
        to_bytes(model).replace(b"SimplifiedLayerNormalization", b"SimplifiedLayerNormalisation")
    )
    with pytest.raises(ModelError, match=r"is not an operator of ai\.onnx opset 20"):
        load_model(path)
