"""SequenceAt(SplitToSequence(x, sizes), i)  ->  Split(x, sizes)[i];   without sizes  ->  Gather(x, i)

torch's exporter writes every split and chunk so when its own optimiser is off. Runtimes keep sequences out of
their optimisers, and no rewrite sees through them.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.editing import Editor
from burnish.passes.matching import MADE_BY, Scope, scopes
from burnish.passes.shapes import Shapes


@final
@dataclasses.dataclass(frozen=True)
class RemoveSequences(Pass):
    """Replace a sequence that is only made by splitting and read at known places.

    Kept: sequences that are read at a computed place, or used otherwise; splits of computed sizes.
    """

    name: ClassVar[str] = "remove-sequences"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"SplitToSequence"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many sequences were removed."""
        shapes, editor = context.shapes(model), Editor(model)
        return sum(
            _remove(node, scope, context, shapes, editor)
            for scope in scopes(model)
            for node in list(scope.graph)
            if is_op(node, "SplitToSequence")
        )


def _remove(node: ir.Node, scope: Scope, context: Context, shapes: Shapes, editor: Editor) -> bool:
    places = _places(node, shapes)
    if places and (len(node.inputs) < 2 or node.inputs[1] is None):
        return _pick(node, places, context, editor)
    sizes, why = _sizes(node, shapes), None
    if places is None:
        why = "the sequence is not only read at known places"
    elif sizes is None:
        why = "the sizes of the parts are not known"
    elif any(not -len(sizes) <= place < len(sizes) for place in places.values()):
        why = "the sequence is read where it ends"
    if why is not None:
        context.miss(node, why)
    if why is not None or sizes is None or not places or not context.permit(node):
        return False
    split = _split(node, sizes, scope)
    scope.graph.insert_after(node, [split])
    for reader, place in places.items():
        value, part = reader.outputs[0], split.outputs[place]
        part.shape, part.type = part.shape or value.shape, part.type or value.type
        editor.replace(value, part)
    return True


def _pick(node: ir.Node, places: dict[ir.Node, int], context: Context, editor: Editor) -> bool:
    """Read from the tensor what would be a part of one index; both fail where there is no such part."""
    if not context.permit(node):
        return False
    kept = node.attributes.get_int("keepdims", 1)
    for reader, place in places.items():
        name = f"{reader.outputs[0].name}_place"
        index = editor.constant(reader, name, np.array([place] if kept else place, np.int64))
        made = editor.renew(
            reader, "Gather", [node.inputs[0], index], axis=node.attributes.get_int("axis", 0)
        )
        made.metadata_props[MADE_BY] = RemoveSequences.name
    return True


def _sizes(node: ir.Node, shapes: Shapes) -> tuple[int, ...] | None:
    """Lengths of the parts."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    sizes, shape = shapes[given].ints, shapes[node.inputs[0]].shape
    if given is None or sizes is None or shapes[given].rank == 1:
        return sizes if given is not None else None
    axis = node.attributes.get_int("axis", 0)
    total = shape[axis].size if shape is not None and -len(shape) <= axis < len(shape) else None
    if total is None or not sizes or sizes[0] <= 0:
        return None
    whole, rest = divmod(total, sizes[0])
    return (sizes[0],) * whole + ((rest,) if rest else ())


def _places(node: ir.Node, shapes: Shapes) -> dict[ir.Node, int] | None:
    """The nodes that read the sequence, and where."""
    sequence = node.outputs[0]
    if sequence.is_graph_output():
        return None
    places: dict[ir.Node, int] = {}
    named: list[int] = []
    for reader in sequence.consumers():
        index = shapes[reader.inputs[1]].ints if is_op(reader, "SequenceAt") else None
        if index is None or reader.graph is not node.graph:
            return None
        places[reader] = index[0]
        named.extend(index if reader.outputs[0].is_graph_output() else ())
    return places if len(set(named)) == len(named) else None  # a part has one name


def _split(node: ir.Node, sizes: tuple[int, ...], scope: Scope) -> ir.Node:
    axis = node.attributes.get_int("axis", 0)
    if scope.opset < 13:
        split = ir.node(
            "Split", [node.inputs[0]], {"axis": axis, "split": list(sizes)}, num_outputs=len(sizes)
        )
    else:
        lengths = scope.constant(node, f"{node.outputs[0].name}_sizes", np.array(sizes, np.int64))
        split = ir.node("Split", [node.inputs[0], lengths], {"axis": axis}, num_outputs=len(sizes))
    for output in split.outputs:
        output.name = scope.fresh(f"{node.outputs[0].name}_part")
    split.name = node.name
    split.metadata_props.update(node.metadata_props | {MADE_BY: RemoveSequences.name})
    return split
