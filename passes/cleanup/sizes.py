"""Where sizes can be read from, so that shape arithmetic becomes one Shape node or a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.dims import Dim
from burnish.passes.editing import Editor
from burnish.passes.shapes import Shape, Shapes

_FIRST_OPSET_WITH_START: Final = 15  # Shape(x, start, end)


@final
class Sizes:
    """Makes vectors of sizes out of the shapes of graph inputs, which are there from the start."""

    def __init__(self, model: ir.Model, shapes: Shapes, editor: Editor) -> None:
        self._shapes, self._editor = shapes, editor
        self._sources = [value for value in model.graph.inputs if shapes[value].shape]

    def find(self, wanted: Shape, node: ir.Node) -> tuple[ir.Value, int, int] | None:
        """(input, first axis, last axis excluded) whose sizes are `wanted`, for use where `node` is."""
        if not wanted or self._shapes.opset(node) < _FIRST_OPSET_WITH_START:
            return None
        for source in self._sources:
            dims = self._shapes[source].shape or ()
            for start in range(len(dims) - len(wanted) + 1):
                if dims[start : start + len(wanted)] == wanted:
                    return source, start, start + len(wanted)
        return None

    def can_make(self, wanted: Shape, node: ir.Node) -> bool:
        """True when `vector` can make it."""
        return all(run[0].size is not None or self.find(run, node) for run in self._runs(wanted, node))

    def vector(self, wanted: Shape, before: ir.Node, name: str) -> ir.Value:
        """An int64 vector of those sizes, made ahead of a node; `can_make` has said that it can be."""
        parts = [self._part(run, before, name) for run in self._runs(wanted, before)]
        if len(parts) == 1:
            return parts[0]
        joined = self._editor.insert(before, "Concat", parts, {"axis": 0}, name=name)
        return self._added(joined)

    def _part(self, run: Shape, before: ir.Node, name: str) -> ir.Value:
        place = None if run[0].size is not None else self.find(run, before)
        if place is None:
            numbers = np.array([dim.size or 0 for dim in run], dtype=np.int64)
            return self._editor.constant(before, name, numbers)
        source, start, end = place
        return self._added(
            self._editor.insert(before, "Shape", [source], {"start": start, "end": end}, name=name)
        )

    def _added(self, node: ir.Node) -> ir.Value:
        self._shapes.add(node)
        return node.outputs[0]

    def _runs(self, wanted: Shape, node: ir.Node) -> Sequence[Shape]:
        """Split into stretches of known sizes, and of sizes that stand side by side in an input."""
        runs: list[tuple[Dim, ...]] = []
        for dim in wanted:
            last = runs[-1] if runs else None
            together = last is not None and (
                (dim.size is not None and last[0].size is not None)
                or (last[0].size is None and dim.size is None and self.find((*last, dim), node) is not None)
            )
            if together and last is not None:
                runs[-1] = (*last, dim)
            else:
                runs.append((dim,))
        return runs
