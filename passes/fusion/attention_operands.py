"""Where query, key and value of an attention come from, and in which form a fused operator can read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import is_op
from burnish.passes.dims import Dim
from burnish.passes.fusion.axes import Factor, View, columns, sources
from burnish.passes.matching import either_way, made_by
from burnish.passes.shapes import Shapes, tensor_of

ROWS: Final = ("B", "S", "N D")
"""Axes of a tensor [batch, positions, heads * features], as fused operators read it."""
CHANNELS: Final = ("B", "N D", "S")
"""A convolution's: one Transpose makes rows of it."""
SPLIT: Final = ("B", "S", "N", "D")
"""Heads split off: one Reshape makes rows of it."""


@final
@dataclasses.dataclass(frozen=True)
class Linear:
    """rows = scale * (x @ weight[:, columns] + bias[columns])."""

    x: ir.Value
    """[batch, positions, features], or with `swapped` [positions, batch, features]."""
    swapped: bool
    weight: ir.Value
    transposed: bool
    """`weight` is [out, in] instead of [in, out]."""
    bias: ir.Value | None
    columns: np.ndarray
    node: ir.Node
    """The MatMul or Gemm."""
    scale: float

    def weights(self) -> Callable[[], np.ndarray]:
        """A function that reads the weight [in, columns]; it holds the tensor, not the graph."""
        tensor, chosen = _tensor(self.weight), _span(self.columns)
        if self.transposed:
            return lambda: np.asarray(tensor.numpy()[chosen].T)
        return lambda: np.asarray(tensor.numpy()[:, chosen])

    def identity(self) -> tuple[object, ...]:
        """Equal for those that read the same elements of one tensor, as long as that is there."""
        return id(_tensor(self.weight)), self.transposed, self.columns.tobytes()

    def biases(self) -> np.ndarray:
        """[columns]; zeros without a bias."""
        if self.bias is None:
            return np.zeros(len(self.columns), _tensor(self.weight).dtype.numpy())
        return np.asarray(_tensor(self.bias).numpy()[self.columns])


@final
@dataclasses.dataclass(frozen=True)
class Operand:
    """The forms in which query, key or value is there."""

    heads: View
    """As the attention reads it: an axis for batch, heads, positions and features, in some order."""
    rows: View | None
    near: View | None
    """What one node makes rows of."""
    linear: Linear | None

    @property
    def sizes(self) -> dict[str, Dim]:
        """Sizes by label: B, N, S, D."""
        return {factor.label: factor.size for factor in self.heads.factors}


def trace(view: View, shapes: Shapes, *, scaled: bool = True) -> Operand:
    """Follow an operand back; `scaled`: factors on the way may be moved into the scale of the scores."""
    rows, near, last, heads = None, None, view, view
    for step in sources(view, shapes):
        if step.scale != 1.0 and not scaled:
            break
        if step.labels == ROWS:
            rows = step
        if step.labels in (CHANNELS, SPLIT):
            near = step
        if step.labels == ("B", "N", "S", "D"):
            heads = step
        last = step
    return Operand(heads, rows, near, _linear(last, shapes))


def repeated(view: View, shapes: Shapes) -> View | None:
    """The keys or values [B, n, S, D] that [B, N, S, D] repeats for N / n queries' heads each."""
    reshape = made_by(view.value, "Reshape")
    expand = made_by(reshape.inputs[0], "Expand") if reshape else None
    unsqueeze = made_by(expand.inputs[0], "Unsqueeze") if expand else None
    if expand is None or unsqueeze is None or view.labels != ("B", "N", "S", "D"):
        return None
    batch, heads, positions, features = (factor.size for factor in view.factors)
    source, wide = unsqueeze.inputs[0], shapes[expand.outputs[0]].shape
    few = shapes[source].shape
    if source is None or wide is None or few is None or len(wide) != 5 or len(few) != 4:
        return None
    narrow = shapes[unsqueeze.outputs[0]].shape
    if narrow != (*few[:2], Dim.of(1), *few[2:]) or wide != (*few[:2], wide[2], *few[2:]):
        return None
    if few[1] * wide[2] != heads or (few[0], *few[2:]) != (batch, positions, features):
        return None
    factors = (Factor(label, size) for label, size in zip("BNSD", few, strict=True))
    return View(source, tuple((factor,) for factor in factors), view.scale)


def _linear(view: View, shapes: Shapes) -> Linear | None:
    node, bias = view.value.producer(), None
    if node is not None and is_op(node, "Add"):
        for rows, other in either_way(node):
            product = made_by(rows, "MatMul")
            if product is not None and _is_constant(other, shapes, rank=1):
                node, bias = product, other
    if node is None or not is_projection(node, shapes):
        return None
    if is_op(node, "Gemm") and len(node.inputs) > 2:
        bias = node.inputs[2]
    transposed = is_op(node, "Gemm") and bool(node.attributes.get_int("transB", 0))
    seen, x = columns(view.axes[-1]), _input(view, node, shapes)
    weight, size = node.inputs[1], _product(view)
    if seen is None or x is None or weight is None:
        return None
    widths = [(shapes[weight].static or (0, 0))[0 if transposed else 1]]
    widths.extend([] if bias is None else shapes[bias].static or (0,))
    if any(width != size for width in widths):
        return None
    return Linear(x.value, x.labels[0] == "S", weight, transposed, bias, seen, node, view.scale)


def _product(view: View) -> int:
    return int(np.prod([factor.size.size or 0 for factor in view.axes[-1]]))


def is_projection(node: ir.Node, shapes: Shapes) -> bool:
    """MatMul with a constant matrix, or a Gemm that does nothing else than x @ w + b."""
    if is_op(node, "MatMul"):
        return _is_constant(node.inputs[1], shapes, rank=2)
    if not is_op(node, "Gemm") or not _is_constant(node.inputs[1], shapes, rank=2):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
    return plain and not node.attributes.get_int("transA", 0) and (
        bias is None or _is_constant(bias, shapes, rank=1)
    )  # fmt: skip


def _is_constant(value: ir.Value | None, shapes: Shapes, *, rank: int) -> bool:
    return value is not None and tensor_of(value) is not None and shapes[value].rank == rank


def _input(view: View, node: ir.Node, shapes: Shapes) -> View | None:
    """The input of a projection whose rows may be in any order; best with the batch first."""
    shape, value = shapes[node.inputs[0]].shape, node.inputs[0]
    if value is None or shape is None or len(shape) != len(view.axes):
        return None
    found: dict[tuple[str, ...], View] = {}
    for step in sources(View(value, (*view.axes[:-1], (Factor("E", shape[-1]),))), shapes):
        if step.scale == 1.0:
            found[step.labels] = step
    return found.get(("B", "S", "E")) or found.get(("S", "B", "E"))


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = tensor_of(value)
    if tensor is None:
        raise TypeError(f"{value.name} is not constant.")
    return tensor


def _span(columns: np.ndarray) -> slice | np.ndarray:
    """The same columns; neighbours as a slice, which is read without gathering them one by one."""
    if len(columns) and np.array_equal(columns, np.arange(columns[0], columns[0] + len(columns))):
        return slice(int(columns[0]), int(columns[0]) + len(columns))
    return columns


def split_bias(rows: View, dying: Iterable[ir.Node], shapes: Shapes) -> tuple[ir.Value, ir.Value | None]:
    """The rows without the constant that is added to them, and that constant, if the Add is not needed."""
    add = made_by(rows.value, "Add")
    if add is not None and add in dying:
        for plain, bias in either_way(add):
            shape = shapes[plain].shape
            fits = (
                shape is not None and shape == shapes[rows.value].shape and shapes[bias].shape == shape[-1:]
            )
            if fits and _is_constant(bias, shapes, rank=1):
                return plain, bias
    return rows.value, None


def dying_with(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes, and all nodes before them that nothing else needs."""
    dead = set(nodes)
    todo = list(dead)
    while todo:
        for value in todo.pop().inputs:
            node = None if value is None else value.producer()
            if node is None or node in dead:
                continue
            users = {user for output in node.outputs for user in output.consumers()}
            if users <= dead and not any(output.is_graph_output() for output in node.outputs):
                dead.add(node)
                todo.append(node)
    return dead
