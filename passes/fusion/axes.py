"""Where a tensor's elements come from: through Transpose, Reshape, Split, Gather and the like, axis by axis.

An axis is written as a product of factors (batch, head, position, feature). Heads that are split off by
Reshape and Transpose are `[B], [N], [S], [D]`; the tensor before is `[B], [S], [N D]`, whichever way the
exporter went. Walking back keeps track of the factors and never guesses: a step that cannot be proved for
every size of the dynamic dims ends the walk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.dims import Dim, product
from burnish.passes.fusion.scalars import number
from burnish.passes.shape_rules import transpose_perm
from burnish.passes.shapes import Shapes

ONE: Final = Dim.of(1)


@final
@dataclasses.dataclass(frozen=True)
class Factor:
    """A part of an axis: what it counts, and how many there are."""

    label: str
    size: Dim
    fixed: int | None = None
    """Only this index of it is seen (a Gather or Split chose it); None: all."""


Axis = tuple[Factor, ...]
"""Outer factor first; the empty product is an axis of size 1."""


@final
@dataclasses.dataclass(frozen=True)
class View:
    """A tensor that is `scale * value`, with the meaning of each of the value's axes."""

    value: ir.Value
    axes: tuple[Axis, ...]
    scale: float = 1.0

    @property
    def labels(self) -> tuple[str, ...]:
        """One text an axis, such as ("B", "S", "N D"); a fixed factor is `=`."""
        return tuple(" ".join(f.label if f.fixed is None else "=" for f in axis) for axis in self.axes)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors, in the order of the elements in memory."""
        return tuple(factor for axis in self.axes for factor in axis)


def sources(view: View, shapes: Shapes) -> Iterator[View]:
    """The view itself, then the same elements further and further back in the graph."""
    step: View | None = view
    while step is not None:
        yield step
        step = _back(step, shapes)


def regroup(factors: Sequence[Factor], dims: Sequence[Dim]) -> tuple[Axis, ...] | None:
    """Deal factors out to dims of the same elements in the same order; None where that is not certain.

    Dims that are products of consecutive factors are matched from both ends; at most one dim may be left,
    and it gets what is left.
    """
    front, used = _deal(factors, dims)
    if len(front) == len(dims):
        return tuple(front) if used == len(factors) else None
    rest, open_dims = factors[used:], dims[len(front) :]
    back, used = _deal(rest[::-1], open_dims[::-1])
    if len(back) == len(open_dims):
        return None  # factors are left, but no dim
    if len(back) != len(open_dims) - 1:
        return None
    back = [axis[::-1] for axis in back[::-1]]
    return (*front, tuple(rest[: len(rest) - used]), *back)


def _deal(factors: Sequence[Factor], dims: Sequence[Dim]) -> tuple[list[Axis], int]:
    axes: list[Axis] = []
    at = 0
    for dim in dims:
        end = _end(factors, at, dim)
        if end is None:
            break
        axes.append(tuple(factors[at:end]))
        at = end
    return axes, at


def _end(factors: Sequence[Factor], at: int, dim: Dim) -> int | None:
    """Where the factors from `at` on have come to the product `dim`."""
    if dim == ONE:
        return at + 1 if at < len(factors) and factors[at].size == ONE else at
    size = ONE
    for end in range(at, len(factors)):
        size = size * factors[end].size
        if size == dim:
            return end + 1
    return None


def _back(view: View, shapes: Shapes) -> View | None:
    node = view.value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    step = _STEPS.get(node.op_type)
    return None if step is None else step(view, node, shapes)


def _same(view: View, node: ir.Node, _: Shapes) -> View | None:
    source = node.inputs[0]
    return None if source is None else View(source, view.axes, view.scale)


def _scaled(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    a, b = node.inputs
    factor = number(b, shapes, max_rank=len(view.axes))
    if factor is None and node.op_type == "Mul":
        a, factor = b, number(a, shapes, max_rank=len(view.axes))
    if a is None or not factor or shapes[a].rank != len(view.axes):
        return None
    return View(a, view.axes, view.scale * factor if node.op_type == "Mul" else view.scale / factor)


def _transpose(view: View, node: ir.Node, _: Shapes) -> View | None:
    order = transpose_perm(node, len(view.axes))
    axes = [view.axes[order.index(axis)] for axis in range(len(order))]
    return _moved(view, node, tuple(axes))


def _reshape(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    before = shapes[node.inputs[0]].shape
    return None if before is None else _moved(view, node, regroup(view.factors, before))


def _unsqueeze(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    axes = _named_axes(node, shapes)
    if axes is None:
        return None
    gone = {axis % len(view.axes) for axis in axes}
    if any(view.axes[axis] for axis in gone):
        return None
    return _moved(view, node, tuple(axis for i, axis in enumerate(view.axes) if i not in gone))


def _squeeze(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    axes = _named_axes(node, shapes)
    if axes is None:
        return None
    rank = len(view.axes) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(view.axes)
    return _moved(view, node, tuple(() if axis in new else next(rest) for axis in range(rank)))


def _named_axes(node: ir.Node, shapes: Shapes) -> tuple[int, ...] | None:
    """The `axes` of Unsqueeze or Squeeze: an attribute before opset 13, then an input."""
    if "axes" in node.attributes:
        return tuple(node.attributes["axes"].as_ints())
    return shapes[node.inputs[1]].ints if len(node.inputs) > 1 else None


def _expand(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    """An axis of size 1 was repeated: whatever ran along it sees the same element."""
    before = shapes[node.inputs[0]].shape
    if before is None:
        return None
    kept = view.axes[len(view.axes) - len(before) :]
    known = all(
        dim == ONE or dim == product(f.size for f in axis) for axis, dim in zip(kept, before, strict=True)
    )
    axes = tuple(() if dim == ONE else axis for axis, dim in zip(kept, before, strict=True))
    return _moved(view, node, axes) if known else None


def _gather(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    index, before = node.inputs[1], shapes[node.inputs[0]].shape
    number = shapes[index].ints
    if number is None or shapes[index].rank != 0 or before is None or len(before) != len(view.axes) + 1:
        return None
    axis = node.attributes.get_int("axis", 0) % len(before)
    size = before[axis].size
    if size is None:
        return None
    chosen = (Factor("", before[axis], number[0] % size),)
    return _moved(view, node, (*view.axes[:axis], chosen, *view.axes[axis:]))


def _split(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    before = shapes[node.inputs[0]].shape
    if before is None:
        return None
    axis, place = node.attributes.get_int("axis", 0) % len(before), node.outputs.index(view.value)
    total = before[axis].size
    lengths = shapes[node.inputs[1]].ints if len(node.inputs) > 1 else None
    if "split" in node.attributes:
        lengths = tuple(node.attributes["split"].as_ints())
    if lengths is None and total is not None and total % len(node.outputs) == 0:
        lengths = (total // len(node.outputs),) * len(node.outputs)
    if lengths is None or total is None:
        return None
    return _block(view, node, axis, (sum(lengths[:place]), lengths[place], total))


def _slice(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    before = shapes[node.inputs[0]].shape
    numbers = [shapes[value].ints for value in node.inputs[1:]]
    if before is None or len(numbers) < 3 or any(x is None or len(x) != 1 for x in numbers):
        return None
    start, end, axis, *step = (x[0] for x in numbers if x is not None)
    total = before[axis].size if axis < len(before) else None
    if total is None or (step and step[0] != 1):
        return None
    start, end, _ = slice(start, end).indices(total)
    return _block(view, node, axis % len(before), (start, end - start, total))


def _block(view: View, node: ir.Node, axis: int, block: tuple[int, int, int]) -> View | None:
    """One of several equally long blocks of an axis: a fixed factor in front."""
    start, length, total = block
    if length <= 0 or start % length or total % length:
        return None
    chosen = Factor("", Dim.of(total // length), start // length)
    axes = (*view.axes[:axis], (chosen, *view.axes[axis]), *view.axes[axis + 1 :])
    return _moved(view, node, axes)


def _moved(view: View, node: ir.Node, axes: tuple[Axis, ...] | None) -> View | None:
    source = node.inputs[0]
    return None if source is None or axes is None else View(source, axes, view.scale)


_STEPS: Final[dict[str, Callable[[View, ir.Node, Shapes], View | None]]] = {
    "Identity": _same, "Mul": _scaled, "Div": _scaled, "Transpose": _transpose, "Reshape": _reshape,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Expand": _expand, "Gather": _gather,
    "Split": _split, "Slice": _slice,
}  # fmt: skip


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value as its first input, if nothing else uses it."""
    uses = list(value.uses())
    alone = len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output()
    return uses[0].node if alone else None


def forward(view: View, shapes: Shapes) -> Iterator[tuple[View, ir.Node | None]]:
    """The view, then the same elements in what its only user makes of them by Transpose or Reshape."""
    node: ir.Node | None = None
    step: View | None = view
    while step is not None:
        yield step, node
        node = only_user(step.value)
        step = None if node is None else _onward(step, node, shapes)


def _onward(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    axes: tuple[Axis, ...] | None = None
    if node.op_type == "Transpose":
        axes = tuple(view.axes[axis] for axis in transpose_perm(node, len(view.axes)))
    elif node.op_type == "Reshape":
        after = shapes[node.outputs[0]].shape
        axes = None if after is None else regroup(view.factors, after)
    elif node.op_type == "Identity":
        axes = view.axes
    return None if axes is None else View(node.outputs[0], axes, view.scale)


def columns(axis: Axis) -> np.ndarray | None:
    """Which indices of an axis are seen, by head ("N"), then feature ("D"); None: not of known sizes."""
    shape = [factor.size.size for factor in axis]
    labels = [factor.label for factor in axis if factor.fixed is None]
    if None in shape or sorted(labels) != ["D", "N"]:
        return None
    sizes = [size for size in shape if size is not None]
    chosen = tuple(slice(None) if f.fixed is None else f.fixed for f in axis)
    seen = np.arange(int(np.prod(sizes))).reshape(sizes)[chosen]
    return np.asarray(seen if labels == ["N", "D"] else seen.T).reshape(-1)
