"""A pass of your own, tested as burnish tests its own: Neg(Neg(x)) -> x."""

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op
from burnish.passes.editing import Editor
from burnish.testing import check_pass


@final
@dataclasses.dataclass(frozen=True)
class CancelNegations(Pass):
    """Remove pairs of Neg."""

    name: ClassVar[str] = "cancel-negations"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many pairs were removed."""
        editor, count = Editor(model), 0
        for outer in [node for graph in all_graphs(model) for node in graph if is_op(node, "Neg")]:
            inner = outer.inputs[0].producer() if outer.graph and outer.inputs[0] else None
            if inner is None or not is_op(inner, "Neg") or inner.inputs[0] is None:
                continue
            if editor.can_replace(outer.outputs[0], inner.inputs[0]) and context.permit(outer):
                editor.replace(outer.outputs[0], inner.inputs[0])
                count += 1
        return count


if __name__ == "__main__":
    check_pass(
        CancelNegations(),
        before="g (float[N] x) => (float[N] y) { a = Relu (x)  b = Neg (a)  c = Neg (b)  y = Exp (c) }",
        after="a = Relu (x)\ny = Exp (a)",
        count=1,
    )
    print("right")
