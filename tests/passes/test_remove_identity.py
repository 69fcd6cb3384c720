from burnish.passes.cleanup.remove_identity import RemoveIdentity
from burnish.testing import check_pass


def test_inner_identity_goes() -> None:
    check_pass(
        RemoveIdentity(),
        before="""
            g (float[N, 3] x) => (float[N, 3] y) {
                a = Relu (x)
                b = Identity (a)
                y = Neg (b)
            }
        """,
        after="""
            a = Relu (x)
            y = Neg (a)
        """,
        count=1,
    )


def test_output_keeps_its_name() -> None:
    check_pass(
        RemoveIdentity(),
        before="g (float[N] x) => (float[N] y) { a = Relu (x)  y = Identity (a) }",
        after="y = Relu (x)",
        count=1,
    )


def test_input_to_output_stays() -> None:
    check_pass(
        RemoveIdentity(),
        before="g (float[N] x) => (float[N] y) { y = Identity (x) }",
        after="y = Identity (x)",
        count=0,
    )


def test_inside_if() -> None:
    model = check_pass(
        RemoveIdentity(),
        before="""
            g (bool c, float[N] x) => (float[M] y) {
                y = If (c) <
                    then_branch = t () => (float[M] a) { b = Relu (x)  i = Identity (b)  a = Neg (i) },
                    else_branch = e () => (float[M] d) { d = Identity (x) }
                >
            }
        """,
        count=1,
    )
    assert [node.op_type for node in model.graph.all_nodes()] == ["If", "Relu", "Neg", "Identity"]
