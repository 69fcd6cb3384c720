"""x  ->  x, with its dtype and shape written down"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, bodies
from burnish.passes.cleanup.remove_expand import as_ir_shape
from burnish.passes.dims import Dim
from burnish.passes.shapes import Fact, Shapes


@final
@dataclasses.dataclass(frozen=True)
class InferShapes(Pass):
    """Write dtypes and shapes of inner values down, for later passes and for people who read the graph.

    Shapes follow from the inputs and the operators. Where they say more than what is written, or contradict
    it (somebody made the batch of the inputs dynamic), they replace it. Inputs and outputs stay as they are;
    functions, which serve any shape, have none.
    """

    name: ClassVar[str] = "infer-shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return for how many values something was written."""
        return _visit(model.graph, context.shapes(model), context)


def _visit(graph: ir.Graph, shapes: Shapes, context: Context) -> int:
    written = 0
    for node in graph:
        written += sum(_visit(body, shapes, context) for body in bodies(node))
        written += sum(_write(value, shapes[value], context) for value in node.outputs)
    return written


def _write(value: ir.Value, fact: Fact, context: Context) -> bool:
    if value.is_graph_output() or fact.dtype is None or not isinstance(value.type, ir.TensorType | None):
        return False
    if value.dtype == fact.dtype and (fact.shape is None or _says(value.shape, fact.shape)):
        return False
    shape = value.shape if fact.shape is None else _merged(value.shape, as_ir_shape(fact.shape))
    if (value.dtype == fact.dtype and value.shape == shape) or not context.permit(value):
        return False
    value.type, value.shape = ir.TensorType(fact.dtype), shape
    return True


def _says(written: ir.Shape | None, found: Sequence[Dim]) -> bool:
    """True where the found sizes are all numbers, and are written down."""
    return (
        written is not None
        and len(written) == len(found)
        and all(new.size is not None and new.size == old for new, old in zip(found, written, strict=True))
    )


def _merged(written: ir.Shape | None, found: ir.Shape) -> ir.Shape:
    """The found shape; a dim that it cannot name keeps the name that was written."""
    if written is None or len(written) != len(found):
        return found
    pairs = zip(written, found, strict=True)
    return ir.Shape(
        [old if isinstance(new, ir.SymbolicDim) and new.value is None else new for old, new in pairs]
    )
