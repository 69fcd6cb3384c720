"""The shapes that Reshape and Flatten give."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.passes.dims import Dim, product
from burnish.passes.shapes import MAX_CONTENT, Call, Fact, Shape


def reshape(call: Call) -> Sequence[Fact]:
    """As the target says, where its content is known."""
    data, target = call.input(0), call.input(1)
    if target.content is None:
        rank = target.shape[0].size if target.shape else None
        return [Fact(data.dtype, None if rank is None or rank > MAX_CONTENT else _blank(call, rank))]
    zero_copies = not call.node.attributes.get_int("allowzero", 0)
    dims: list[Dim | None] = []
    for axis, dim in enumerate(target.content):
        if dim.size == 0 and zero_copies:
            dims.append(_dim_of(call, data, axis))
        elif zero_copies and dim.size is None and _may_be_copied(data, target.content, axis):
            dims.append(call.shapes.fresh())
        else:
            dims.append(None if dim.size == -1 else dim)
    return [Fact(data.dtype, _resolve(call, data.shape, dims))]


def flatten(call: Call) -> Sequence[Fact]:
    """Two axes: the product of those before `axis`, and of the others."""
    data, axis = call.input(0), call.node.attributes.get_int("axis", 1) or 0
    if data.shape is None or not -len(data.shape) <= axis <= len(data.shape):
        return [Fact(data.dtype, _blank(call, 2))]
    axis += len(data.shape) if axis < 0 else 0
    return [Fact(data.dtype, (product(data.shape[:axis]), product(data.shape[axis:])))]


def _may_be_copied(data: Fact, target: Shape, axis: int) -> bool:
    """True where a symbolic size may be 0, and another size of the input, which is then copied, stands there.

    That makes the element count wrong, so the model fails, unless another axis of the result is empty, too.
    Two sizes that the model names are not taken to be 0 at once: a model promises nothing there
    (`DimRange.min` is 1). Nor is a -1 taken to be. Exporters write the first behind every linear layer, the
    other for the keys of every attention, and nothing would be known of what follows.
    """
    dim = target[axis]
    if dim.is_at_least(1) or (data.shape is not None and not _differs(data.shape, axis, dim)):
        return False
    return any(
        (_is_unnamed(dim) or _is_unnamed(each) or not _names(dim).isdisjoint(_names(each)))
        and _may_be_empty(data, target, other)
        for other, each in enumerate(target)
        if other != axis
    )


def _differs(shape: Shape, axis: int, dim: Dim) -> bool:
    """True where a size may stand at an axis that is not 0 when `dim` is; without such an axis a 0 fails."""
    if axis >= len(shape) or shape[axis] == dim:
        return False
    factors = _names(dim)
    return len(dim.terms) != 1 or not all(factors.issubset(names) for names, _ in shape[axis].terms)


def _may_be_empty(data: Fact, target: Shape, axis: int) -> bool:
    """True where the result of a Reshape may have no elements along an axis; a -1 is left out."""
    dim = target[axis]
    if dim.size == -1 or dim.is_at_least(1):
        return False
    return data.shape is None or (axis < len(data.shape) and not data.shape[axis].is_at_least(1))


def _names(dim: Dim) -> set[str]:
    return {name for names, _ in dim.terms for name in names}


def _is_unnamed(dim: Dim) -> bool:
    """True where a size is in it that the model does not name: what is found while it runs, or was 0."""
    return any(name.startswith("?") and name[1:].isdecimal() for name in _names(dim))


def _blank(call: Call, rank: int) -> Shape:
    return tuple(call.shapes.fresh() for _ in range(rank))


def _dim_of(call: Call, fact: Fact, axis: int) -> Dim:
    return fact.shape[axis] if fact.shape is not None and axis < len(fact.shape) else call.shapes.fresh()


def _resolve(call: Call, shape: Shape | None, dims: list[Dim | None]) -> Shape:
    left = None if shape is None else _quotient(shape, [dim for dim in dims if dim is not None])
    return tuple(dim if dim is not None else left or call.shapes.fresh() for dim in dims)


def _quotient(shape: Shape, known: list[Dim]) -> Dim | None:
    """The elements of `shape` for each element of `known`; sums cancel as a whole only."""
    own, rest = list(shape), []
    for dim in known:
        if dim in own:
            own.remove(dim)
        else:
            rest.append(dim)
    return product(own).divided_by(product(rest))
