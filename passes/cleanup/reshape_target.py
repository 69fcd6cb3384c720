"""How one shape is made of another: by Squeeze, Unsqueeze, or Reshape to a constant target."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from burnish.passes.editing import Round
from burnish.passes.shapes import Shape

RESHAPES: Final = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_FIRST_OPSET_WITH_AXES_INPUT: Final = 13


def constant_target(
    source: Shape | None, result: Shape, free_axis: int | None = None
) -> tuple[int, ...] | None:
    """The target (with allowzero=0) that reshapes `source` into `result`; None when there is none.

    It has numbers, 0 for a copied dim, -1 for the one that is left.

    A -1 is used only where it cannot fail: when every other dim is a number, because it is not defined beside
    a dim that is 0 when the model runs; or at `free_axis`, where the target that it replaces has one too.
    """
    numbers: list[int] = []
    for axis, dim in enumerate(result):
        if dim.size is not None:
            numbers.append(dim.size)
        elif source is not None and axis < len(source) and source[axis] == dim:
            numbers.append(0)
        else:
            numbers.append(-1)
    if any(dim.size == 0 for dim in result) or numbers.count(-1) > 1:
        return None
    safe = all(number > 0 for number in numbers if number != -1)
    if -1 in numbers and not safe and numbers.index(-1) != free_axis:
        return None
    return tuple(numbers)


def express(node: ir.Node, root: ir.Value, round_: Round) -> bool:
    """Compute the result of a chain of reshapes, which `node` ends, from `root` if one operator can."""
    source, result = round_.shapes[root].shape, round_.shapes[node.outputs[0]].shape
    if source is None or result is None:
        return False
    if source == result:
        return round_.replace(node.outputs[0], root)
    added, dropped = added_ones(source, result), added_ones(result, source)
    target = constant_target(source, result)
    if (added is None and dropped is None and target is None) or not round_.context.permit(node):
        return False
    if added is not None or dropped is not None:
        _set_axes(node, root, added, dropped, round_)
    else:
        vector = round_.numbers(node, f"{node.outputs[0].name}_shape", target or ())
        round_.renew(node, "Reshape", [root, vector])
    return True


def _set_axes(
    node: ir.Node, root: ir.Value, added: list[int] | None, dropped: list[int] | None, round_: Round
) -> None:
    op_type, axes = ("Unsqueeze", added) if added is not None else ("Squeeze", dropped)
    if round_.shapes.opset(node) < _FIRST_OPSET_WITH_AXES_INPUT:
        round_.renew(node, op_type, [root], axes=axes)
        return
    vector = round_.numbers(node, f"{node.outputs[0].name}_axes", axes or ())
    round_.renew(node, op_type, [root, vector])


def added_ones(source: Shape, result: Shape) -> list[int] | None:
    """The axes at which dims of 1 make `result` out of `source`; None when it takes more."""
    axes, at = [], 0
    for axis, dim in enumerate(result):
        if at < len(source) and source[at] == dim:
            at += 1
        elif dim.size == 1:
            axes.append(axis)
        else:
            return None
    return axes if at == len(source) else None
