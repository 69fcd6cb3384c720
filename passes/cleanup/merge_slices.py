"""Slice(x, 0, 2), Slice(x, 2, 5), Slice(x, 5, 8)  ->  Split(x, [2, 3, 3])"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, all_graphs, is_op
from burnish.passes.editing import Round, is_templated
from burnish.passes.shape_contents import slice_bounds

_SIZES_AS_INPUT: Final = 13  # from this opset on Split reads its sizes from an input
_Piece = tuple[int, int, ir.Node]
"""First index, last one (excluded), and the Slice."""


@final
@dataclasses.dataclass(frozen=True)
class MergeSlices(Pass):
    """Let Slices that cut a tensor along one axis into all of its pieces be one Split.

    Kept: pieces that overlap or leave something out, steps other than 1, and axes whose size is not known.
    """

    name: ClassVar[str] = "merge-slices"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    looks_for: ClassVar[frozenset[str]] = frozenset({"Slice"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many Splits were made."""
        before, round_ = len(context.rewrites), Round(model, context)
        for graph in all_graphs(model):
            together: defaultdict[tuple[ir.Value, int], list[_Piece]] = defaultdict(list)
            found = [node for node in graph if is_op(node, "Slice") and _has_sibling(node)]
            for node in found:
                _sort_in(node, round_, together)
            for (value, axis), pieces in together.items():
                _merge(value, axis, pieces, round_)
        return len(context.rewrites) - before


def _has_sibling(node: ir.Node) -> bool:
    value = node.inputs[0]
    if value is None or is_templated(node):
        return False
    return any(is_op(user, "Slice") and user is not node for user in value.consumers())


def _sort_in(node: ir.Node, round_: Round, together: dict[tuple[ir.Value, int], list[_Piece]]) -> None:
    value, shape = node.inputs[0], round_.shapes[node.inputs[0]].shape
    bounds = None if shape is None else slice_bounds(round_.call(node))
    if value is None or shape is None or bounds is None or len(bounds) != 1:
        return
    [(axis, (start, end, step))] = bounds.items()
    whole = shape[axis].size
    if start.size is None or end.size is None or step != 1 or whole is None:
        return
    first, last, _ = slice(start.size, end.size).indices(whole)
    if first < last:
        together[value, axis].append((first, last, node))


def _merge(value: ir.Value, axis: int, pieces: list[_Piece], round_: Round) -> None:
    shape, first = round_.shapes[value].shape, pieces[0][2]
    order = sorted(pieces, key=lambda piece: piece[:2])
    edges = [0, *(last for _, last, _ in order)]
    whole = None if shape is None else shape[axis].size
    if len(order) < 2 or edges[-1] != whole or [start for start, _, _ in order] != edges[:-1]:
        return
    editor, opset = round_.editor, round_.shapes.opset(first)
    if not round_.context.permit(first):
        return
    sizes = [last - start for start, last, _ in order]
    inputs, attributes = [value], {"axis": axis}
    if opset >= _SIZES_AS_INPUT:
        inputs.append(round_.numbers(first, f"{value.name}_sizes", sizes))
    split = ir.node(
        "Split",
        inputs,
        attributes if opset >= _SIZES_AS_INPUT else {**attributes, "split": sizes},
        num_outputs=len(order),
    )
    split.metadata_props.update(first.metadata_props)
    split.name = f"node_{editor.fresh(f'{value.name}_split')}"
    if first.graph is not None:
        first.graph.insert_before(first, split)
    for result, (_, _, node) in zip(split.outputs, order, strict=True):
        old = node.outputs[0]
        result.name = editor.fresh(f"{old.name}_piece")
        result.type, result.shape = old.type, old.shape
        result.metadata_props.update(old.metadata_props)
        round_.shapes[result] = round_.shapes[old]
        editor.replace(old, result)
