import onnx_ir as ir
import pytest

from burnish.manifest import DimRange
from burnish.passes.base import Context
from burnish.passes.cleanup.simplify_shapes import SimplifyShapes
from burnish.testing import check_pass, parse


def target_of(model: ir.Model, output: str) -> list[int]:
    node = next(node for node in model.graph if node.outputs[0].name == output)
    tensor = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    assert tensor is not None
    return tensor.numpy().tolist()


def test_shape_gather_concat_reshape() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence, 8] x) => (float[batch, sequence, 2, 4] y)
            <int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] rest = {-1, 4}>
            {
                h = Relu (x)
                s = Shape (h)
                b0 = Gather <axis = 0> (s, zero)
                b = Unsqueeze (b0, first)
                s0 = Gather <axis = 0> (s, one)
                q = Unsqueeze (s0, first)
                t = Concat <axis = 0> (b, q, rest)
                y = Reshape (h, t)
            }
        """,
        after="h = Relu (x)\ny = Reshape (h, y_shape)",
        count=4,
    )
    assert target_of(model, "y") == [0, 0, 2, 4]


def test_known_sizes_become_constants() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, 6] x) => (float[batch, 6] y, int64[1] n)
            <int64[1] two = {2}>
            {
                s = Shape <start = 1> (x)
                n = Div (s, two)
                c = Cast <to = 1> (n)
                y = Mul (x, c)
            }
        """,
        after=["Constant", "Cast", "Mul"],  # an output stays in the graph
        count=2,
    )
    assert model.graph.outputs[1].name == "n"


def test_equal_sizes_are_computed_once() -> None:
    check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence] x, int64[1] k) => (int64[1] y)
            <int64[1] one = {1}, int64[1] two = {2}>
            {
                h = Neg (x)
                s = Shape (h)
                a = Slice (s, one, two)
                m = Relu (h)
                b = Shape <start = 1, end = 2> (m)
                c = Mul (a, k)
                y = Add (c, b)
            }
        """,
        after=["Shape", "Mul", "Add"],
        count=3,
    )


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_no_minus_one_beside_a_dim_that_may_be_empty(batch: int) -> None:
    """[batch, 4, sequence, 2] cannot be written without -1, which is not defined where the batch is 0."""
    check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence, 8] x) => (float[batch, 4, sequence, 2] y)
            <int64[1] four = {4}, int64[1] two = {2}>
            {
                b = Shape <start = 0, end = 1> (x)
                s = Shape <start = 1, end = 2> (x)
                t = Concat <axis = 0> (b, four, s, two)
                y = Reshape <allowzero = 1> (x, t)
            }
        """,
        count=0,
        dims={"batch": DimRange(batch, batch)},
    )


def test_minus_one_where_every_other_dim_is_a_number() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence, 8] x) => (float[rows, 8] y)
            <int64[1] eight = {8}>
            {
                b = Shape <start = 0, end = 1> (x)
                s = Shape <start = 1, end = 2> (x)
                r = Mul (b, s)
                t = Concat <axis = 0> (r, eight)
                y = Reshape <allowzero = 1> (x, t)
            }
        """,
        after="y = Reshape (x, y_shape)",
        count=1,
        dims={"batch": DimRange(0, 2)},
    )
    assert target_of(model, "y") == [-1, 8]


def test_a_minus_one_that_is_there_may_stay() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence, 8] x) => (float[batch, r, 4] y)
            <int64[2] rest = {-1, 4}>
            {
                b = Shape <start = 0, end = 1> (x)
                t = Concat <axis = 0> (b, rest)
                y = Reshape (x, t)
            }
        """,
        count=1,
    )
    assert target_of(model, "y") == [0, -1, 4]


def test_a_target_with_two_unknown_sizes_stays_and_says_why() -> None:
    context = Context()
    check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence, 8] x) => (float[sequence, batch, 8] y)
            <int64[1] eight = {8}>
            {
                b = Shape <start = 0, end = 1> (x)
                s = Shape <start = 1, end = 2> (x)
                t = Concat <axis = 0> (s, b, eight)
                y = Reshape (x, t)
            }
        """,
        count=0,
        context=context,
    )
    assert "more than one size" in context.misses[0].why


def test_sizes_of_different_names_stay_apart() -> None:
    check_pass(
        SimplifyShapes(),
        before="""
            g (float[a, 8] x, float[b, 8] z) => (float[c, 2, 4] y)
            <int64[2] rest = {2, 4}>
            {
                s = Shape <start = 0, end = 1> (z)
                t = Concat <axis = 0> (s, rest)
                y = Reshape (x, t)
            }
        """,
        count=1,
        dims={"a": DimRange(3, 3), "b": DimRange(3, 3)},
    )  # [-1, 2, 4]: by its count, not because a is b


def test_the_stale_shape_of_an_inner_value_is_not_believed() -> None:
    model = parse(
        """
        g (float[batch, 8] x) => (float[batch, 2, 4] y)
        <int64[2] rest = {2, 4}>
        {
            h = Relu (x)
            s = Shape <start = 0, end = 1> (h)
            t = Concat <axis = 0> (s, rest)
            y = Reshape (h, t)
        }
        """
    )
    model.graph.node(0).outputs[0].shape = ir.Shape([1, 8])  # what an edited model leaves behind
    check_pass(SimplifyShapes(), model, count=2)


def test_expand_names_only_what_it_changes() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            g (bool[batch, 1, 1, sequence] x) => (bool[batch, 1, sequence, sequence] y)
            <int64[1] one = {1}>
            {
                b = Shape <start = 0, end = 1> (x)
                s = Shape <start = 3, end = 4> (x)
                t = Concat <axis = 0> (b, one, s, s)
                y = Expand (x, t)
            }
        """,
        after=["Shape", "Concat", "Expand"],
        count=1,
    )
    assert len(model.graph.node(1).inputs) == 3


def test_old_opsets_read_no_part_of_a_shape() -> None:
    check_pass(
        SimplifyShapes(),
        before="""
            g (float[batch, sequence, 8] x) => (float[batch, sequence, 2, 4] y)
            <int64 zero = {0}, int64 one = {1}, int64[2] rest = {2, 4}>
            {
                h = Relu (x)
                s = Shape (h)
                b0 = Gather <axis = 0> (s, zero)
                b = Unsqueeze <axes = [0]> (b0)
                s0 = Gather <axis = 0> (s, one)
                q = Unsqueeze <axes = [0]> (s0)
                t = Concat <axis = 0> (b, q, rest)
                y = Reshape (h, t)
            }
        """,
        after=["Relu", "Reshape"],
        opset=11,
        count=1,
    )


def test_inside_a_branch_with_outer_sizes() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            g (bool c, float[batch, 8] x) => (float[D0, D1, D2] y)
            <int64[2] rest = {2, 4}>
            {
                s = Shape <start = 0, end = 1> (x)
                y = If (c) <
                    then_branch = t () => (float[D0, D1, D2] p) {
                        k = Concat <axis = 0> (s, rest)  p = Reshape (x, k)
                    },
                    else_branch = e () => (float[D0, D1, D2] q) {
                        s2 = Shape <start = 0, end = 1> (x)  k2 = Concat <axis = 0> (s2, rest)
                        a = Neg (x)  q = Reshape (a, k2)
                    }
                >
            }
        """,
        count=2,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Reshape", "Neg", "Reshape"]


def test_inside_a_function_only_numbers_are_known() -> None:
    model = check_pass(
        SimplifyShapes(),
        before="""
            <ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N, 8] x) => (float[N, 2, 4] y) { y = local.f (x) }
            <domain: "local", opset_import: ["": 20]>
            f (x) => (y) {
                w = Constant <value = float[2, 4] {1., 2., 3., 4., 5., 6., 7., 8.}> ()
                m = Constant <value_ints = [-1]> ()
                s = Shape (w)
                t = Concat <axis = 0> (m, s)
                y = Reshape (x, t)
            }
        """,
        count=2,
    )
    function = next(iter(model.functions.values()))
    assert [node.op_type for node in function] == ["Constant", "Reshape"]


def test_without_shape_information_nothing_is_assumed() -> None:
    model = parse(
        """
        g (float[batch, 8] x) => (float[A, B, C] y)
        <int64[2] rest = {2, 4}>
        { s = Shape <start = 0, end = 1> (x)  t = Concat <axis = 0> (s, rest)  y = Reshape (x, t) }
        """
    )
    model.graph.inputs[0].shape = None
    assert SimplifyShapes().rewrite(model, Context()) == 0


def test_sizes_do_not_come_from_values_that_only_look_like_them() -> None:
    """The content of an input is no size, however small it is."""
    check_pass(
        SimplifyShapes(),
        before="""
            g (float[N, 8] x, int64[1] n) => (int64[1] y) { s = Shape <end = 1> (x)  y = Add (s, n) }
        """,
        count=0,
    )
