import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context
from burnish.passes.cleanup.remove_unused import RemoveUnused
from burnish.testing import check_pass, parse

HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'


def test_a_dead_chain_goes() -> None:
    check_pass(
        RemoveUnused(),
        before=HEADER + "g (float[N] x) => (float[N] y) { a = Relu (x)  b = Neg (a)  y = Abs (x) }",
        after="y = Abs (x)",
        count=2,
    )


def test_what_is_used_stays() -> None:
    check_pass(
        RemoveUnused(),
        before=HEADER + "g (float[N] x, float[N] unused) => (float[N] y) { y = Abs (x) }",
        after="y = Abs (x)",
        count=0,
    )


def test_initializers_go_unless_they_are_inputs_or_outputs() -> None:
    model = check_pass(
        RemoveUnused(),
        before=HEADER + "g (float[N] x, float[1] d) => (float[N] y, float[1] out) { y = Abs (x) }",
        weights={name: np.ones(1, np.float32) for name in ("dead", "d", "out")},
        count=1,
    )
    assert list(model.graph.initializers) == ["d", "out"]


def test_inside_a_branch_and_what_only_it_used() -> None:
    check_pass(
        RemoveUnused(),
        before=HEADER
        + """
            g (bool c, float[N] x) => (float[N] y) {
                a = Relu (x)
                y = If (c) <
                    then_branch = t () => (float[N] p) { dead = Neg (a)  p = Abs (x) },
                    else_branch = e () => (float[N] q) { q = Relu (x) }
                >
            }
        """,
        after=["If"],
        count=2,
    )


def test_functions_and_imports() -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["": 20, "local": 1, "other": 1]>
        g (float[N] x) => (float[N] y) { dead = local.f (x)  y = local.h (x) }
        <domain: "local", opset_import: ["": 20, "local": 1]> f (x) => (y) { y = local.k (x) }
        <domain: "local", opset_import: ["": 20]> k (x) => (y) { y = Neg (x) }
        <domain: "local", opset_import: ["": 20, "far": 3]> h (x) => (y) { a = Neg (x)  y = Relu (x) }
        """
    )
    context = Context()
    # nodes: the call of f, Neg in h; functions: f, k; imports: other, and far in h
    assert RemoveUnused().rewrite(model, context) == 6
    assert [name for _, name, _ in model.functions] == ["h"]
    assert dict(model.graph.opset_imports) == {"": 20, "local": 1}
    assert [dict(f.opset_imports) for f in model.functions.values()] == [{"": 20}]
    assert "local::f" in {rewrite.node for rewrite in context.rewrites}
    assert RemoveUnused().rewrite(model, Context()) == 0


def test_a_dead_if_goes_with_everything_in_it() -> None:
    check_pass(
        RemoveUnused(),
        before=HEADER
        + """
            g (bool c, float[N] x) => (float[N] y) {
                a = Relu (x)
                dead = If (c) <
                    then_branch = t () => (float[N] p) { p = Neg (a) },
                    else_branch = e () => (float[N] q) { q = Abs (a) }
                >
                y = Abs (x)
            }
        """,
        after="y = Abs (x)",
        count=2,
    )


def test_metadata_of_what_stays_is_kept() -> None:
    model = parse(HEADER + "g (float[N] x) => (float[N] y) { a = Relu (x)  y = Abs (x) }")
    model.graph.node(1).metadata_props["namespace"] = "layer.0"
    model.metadata_props["author"] = "someone"
    RemoveUnused().rewrite(model, Context())
    assert model.graph.node(0).metadata_props == {"namespace": "layer.0"}
    assert model.metadata_props == {"author": "someone"}


def test_an_unused_optional_output_is_not_a_reason_to_stay() -> None:
    model = parse(HEADER + "g (float[N] x) => (float[N] y) { d, mask = Dropout (x)  y = Abs (x) }")
    assert RemoveUnused().rewrite(model, Context()) == 1
    assert [node.op_type for node in model.graph] == ["Abs"]
    assert isinstance(model, ir.Model)
