import numpy as np
import onnx_ir as ir
import pytest

from burnish.passes.fusion.polynomial import read_polynomial
from burnish.passes.matching import (
    MADE_BY,
    close,
    obstacle,
    remove_dead_constants,
    same_shape,
    scalar,
    scopes,
)
from burnish.testing import parse, text_of

NESTED = """
    <ir_version: 10, opset_import: ["": 20, "f": 1]>
    g (bool c, float[N] x) => (float[M] y) {
        h = f.twice (x)
        y = If (c) <
            then_branch = t () => (float[M] p) { p = Relu (h) },
            else_branch = e () => (float[M] q) { q = Neg (h) }
        >
    }
    <domain: "f", opset_import: ["": 18]>
    twice (x) => (y) { y = Add (x, x) }
"""


def value(model: ir.Model, name: str) -> ir.Value:
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    return next(v for v in values if v.name == name)


def test_scopes_know_their_opset_and_kind() -> None:
    found = [(scope.graph.name, scope.opset, scope.in_function) for scope in scopes(parse(NESTED))]
    assert [(opset, inside) for _, opset, inside in found] == [
        (20, False), (20, False), (20, False), (18, True),
    ]  # fmt: skip
    assert [name for name, _, inside in found if not inside] == ["g", "t", "e"]


def test_fresh_names_are_free_in_bodies_too() -> None:
    main, then_branch, *_ = scopes(parse(NESTED))
    assert main.fresh("p") == "p_1"
    assert then_branch.fresh("p") == "p_2"
    assert main.fresh("new") == "new"


def test_constants_are_initializers_but_nodes_in_functions() -> None:
    model = parse(NESTED)
    for scope in scopes(model):
        node = scope.graph.node(0)
        assert scope.constant(node, "k", np.zeros(2, np.float32)).shape == (2,)
    assert sorted(model.graph.initializers) == ["k", "k_1", "k_2"]
    function = next(iter(model.functions.values()))
    assert [node.op_type for node in function] == ["Constant", "Add"]


def test_replace_moves_names_metadata_and_graph_outputs() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { a = Mul (x, k)  y = Relu (a) }",
        weights={"k": np.ones(2, np.float32)},
    )
    (scope,) = scopes(model)
    old = list(model.graph)
    old[0].metadata_props["from"], old[1].metadata_props["from"] = "a", "y"
    old[0].metadata_props["only"], old[1].name = "a", "last"
    new = ir.node("Neg", [model.graph.inputs[0]])
    scope.replace(old, [new], {old[1].outputs[0]: new.outputs[0]}, "some-pass")
    assert text_of(model).strip() == "[last] y = Neg (x)"
    assert dict(new.metadata_props) == {"from": "y", "only": "a", MADE_BY: "some-pass"}
    assert not model.graph.initializers
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_obstacle_names_the_reason() -> None:
    model = parse("g (float[2] x) => (float[2] y, float[2] b) { a = Abs (x)  b = Neg (a)  y = Relu (b) }")
    first, second, third = model.graph
    assert obstacle([first, second], second.outputs) is None
    assert obstacle([second, third], third.outputs) == "the Neg inside is used elsewhere too"
    inner = next(iter(list(scopes(parse(NESTED)))[1].graph))
    assert obstacle([inner, third], [*third.outputs, *inner.outputs]) == (
        "the Relu inside is in another graph"
    )


def test_shapes_are_the_same_only_where_proven() -> None:
    model = parse(
        "g (float[N, 2] a, float[N, 2] b, float[M, 2] c, float[?, 2] d) => (float[N, 2] y) { y = Add (a, b) }"
    )
    a, b, c, d = model.graph.inputs
    assert same_shape(a, b)
    assert not same_shape(a, c)
    assert not same_shape(d, d)


@pytest.mark.parametrize(
    ("array", "expected"),
    [(np.float32(2.5), 2.5), (np.array([3], np.int64), 3.0), (np.ones((1, 1), np.float32), None),
     (np.ones(2, np.float32), None), (np.array(True), None)],
)  # fmt: skip
def test_scalar(array: np.ndarray, expected: float | None) -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg (x) }", weights={"k": np.asarray(array)})
    assert scalar(value(model, "k")) == expected


def test_close_is_as_strict_as_the_type_allows() -> None:
    assert close(1.41421, 2**0.5)
    assert not close(1.4142 * 1.001, 2**0.5, ir.DataType.FLOAT)
    assert close(1.41, 2**0.5, ir.DataType.BFLOAT16)
    assert not close(None, 1.0)


def test_dead_constants_go_but_inputs_with_defaults_stay() -> None:
    model = parse("g (float[2] x) => (float[2] y) <float[2] k = {1.0, 2.0}> { y = Neg (x) }")
    default = ir.Value(name="d", const_value=ir.tensor(np.zeros(2, np.float32), name="d"))
    model.graph.inputs.append(default)
    model.graph.register_initializer(default)
    remove_dead_constants([*model.graph.initializers.values(), None])
    assert list(model.graph.initializers) == ["d"]


def test_polynomials_are_read_however_they_are_written() -> None:
    model = parse(
        """
        g (float[2] x) => (float[2] y) <float two = {2.0}, float half = {0.5}> {
            a = Pow (x, two)  b = Sub (a, half)  c = Neg (b)  d = Div (c, half)  y = Mul (d, x)
        }
        """
    )
    found = read_polynomial(value(model, "y"), [value(model, "x")])
    assert found is not None
    assert found.is_close({(3,): -2.0, (1,): 1.0}, None)
    assert [node.op_type for node in found.nodes] == ["Pow", "Sub", "Neg", "Div", "Mul"]


@pytest.mark.parametrize("nodes", ["y = Exp (x)", "y = Mul (x, z)", "y = Div (z, x)", "y = Pow (x, x)"])
def test_other_expressions_are_no_polynomials(nodes: str) -> None:
    model = parse(f"g (float[2] x, float[2] z) => (float[2] y) {{ {nodes} }}")
    assert read_polynomial(value(model, "y"), [value(model, "x")]) is None
