"""Constant targets for Reshape: numbers, 0 for a copied dim, -1 for the one that is left."""

from __future__ import annotations

from burnish.passes.shapes import Shape


def constant_target(
    source: Shape | None, result: Shape, free_axis: int | None = None
) -> tuple[int, ...] | None:
    """The target (with allowzero=0) that reshapes `source` into `result`; None when there is none.

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
