import onnx_ir as ir

from burnish.passes.base import Context
from burnish.passes.cleanup.infer_shapes import InferShapes
from burnish.testing import check_pass, parse


def bare(text: str, **options: int) -> ir.Model:
    model = parse(text, **options)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    return model


def shapes(model: ir.Model) -> dict[str | None, str]:
    return {v.name: f"{v.dtype}{v.shape}" for node in model.graph.all_nodes() for v in node.outputs}


def test_dtype_and_shape_are_written() -> None:
    model = bare(
        """
        g (float[batch, 4] x) => (int64[batch, 2, 2] y) <int64[3] k = {0, 2, 2}>
        { a = Relu (x)  b = Reshape (a, k)  y = Cast <to = 7> (b) }
        """
    )
    check_pass(InferShapes(), model, count=2)
    assert shapes(model)["a"] == "FLOAT[batch,4]"
    assert shapes(model)["b"] == "FLOAT[batch,2,2]"


def test_a_stale_shape_is_replaced() -> None:
    model = parse("g (float[batch, 4] x) => (float[batch, 4] y) { a = Relu (x)  y = Neg (a) }")
    model.graph.node(0).outputs[0].shape = ir.Shape([1, 4])
    check_pass(InferShapes(), model, count=1)
    assert shapes(model)["a"] == "FLOAT[batch,4]"


def test_the_name_of_a_dim_that_cannot_be_found_is_kept() -> None:
    model = parse(
        """
        g (float[batch, 4] x) => (float[d, 4] y) {
            i = NonZero (x)  c = Cast <to = 1> (i)  y = Transpose (c)
        }
        """
    )
    model.graph.node(0).outputs[0].shape = ir.Shape(["two", "found"])
    InferShapes().rewrite(model, Context())
    assert shapes(model)["i"] == "INT64[2,found]"


def test_outputs_and_what_is_complete_stay() -> None:
    model = parse("g (float[batch, 4] x) => (float[other, 4] y) { a = Relu (x)  y = Neg (a) }")
    check_pass(InferShapes(), model, count=0)
    assert shapes(model)["y"] == "FLOAT[other,4]"


def test_inside_a_branch() -> None:
    model = bare(
        """
        g (bool c, float[N, 4] x) => (float[M, 4] y) {
            y = If (c) <
                then_branch = t () => (float[M, 4] p) { a = Abs (x)  p = Neg (a) },
                else_branch = e () => (float[M, 4] q) { q = Relu (x) }
            >
        }
        """
    )
    check_pass(InferShapes(), model, count=1)
    assert shapes(model)["a"] == "FLOAT[N,4]"


def test_what_cannot_be_known_is_left_open() -> None:
    model = bare(
        """
        g (float[N] x, int64[k] t) => (float[M] y) {
            r = Reshape (x, t)  f = Flatten (r)  y = ReduceSum <keepdims = 0> (f)
        }
        """
    )
    InferShapes().rewrite(model, Context())
    assert shapes(model)["r"] == "FLOATNone"
    assert shapes(model)["f"] == "FLOAT[None,None]"


def test_sequences_are_left_alone() -> None:
    model = bare(
        """
        g (float[N] x) => (float[N] y) {
            s = SequenceConstruct (x)  z = Constant <value_int = 0> ()  y = SequenceAt (s, z)
        }
        """
    )
    assert InferShapes().rewrite(model, Context()) == 1
    assert model.graph.node(0).outputs[0].type is None
