"""The elements of small integer tensors, where they are sizes: what shape arithmetic is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx_ir as ir

from burnish.passes.base import is_op, tensor_of
from burnish.passes.dims import Dim, product
from burnish.passes.shapes import MAX_CONTENT, Call, Shape

Content = Callable[[Call], Shape | None]
Bounds = dict[int, tuple[Dim, Dim, int]]
"""axis -> start, end, step"""

_REARRANGING: Final = ("Reshape", "Squeeze", "Unsqueeze")
_INTEGERS: Final = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)


def slice_bounds(call: Call) -> Bounds | None:
    """What a Slice takes of each axis that it names; None when that is not known."""
    rank = call.input(0).rank
    starts, ends = _operand(call, "starts", 1), _operand(call, "ends", 2)
    if rank is None or starts is None or ends is None or len(starts) != len(ends):
        return None
    axes, steps = call.ints("axes", 3), call.ints("steps", 4)
    if (axes is None and call.has(3)) or (steps is None and call.has(4)):
        return None
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if len(axes) != len(starts) or len(steps) != len(starts) or 0 in steps:
        return None
    if any(not -rank <= axis < rank for axis in axes):
        return None
    each = zip(axes, starts, ends, steps, strict=True)
    return {axis % rank: (start, end, step) for axis, start, end, step in each}


def _operand(call: Call, name: str, index: int) -> Shape | None:
    if name in call.node.attributes:
        return tuple(Dim.of(x) for x in call.node.attributes[name].as_ints())
    return call.input(index).content


def _same(call: Call) -> Shape | None:
    return call.input(0).content


def _rearranged(call: Call) -> Shape | None:
    """The same elements, also where a higher rank was between, at which no content is known."""
    value: ir.Value | None = call.node.inputs[0]
    while value is not None and call.shapes[value].content is None:
        maker = value.producer()
        value = maker.inputs[0] if maker and any(is_op(maker, op) for op in _REARRANGING) else None
    return None if value is None else call.shapes[value].content


def _cast(call: Call) -> Shape | None:
    source = call.input(0)
    target = call.input(1).dtype if call.has(1) else ir.DataType(call.node.attributes["to"].as_int())
    if source.dtype not in _INTEGERS or target not in _INTEGERS or source.content is None:
        return None
    if target == ir.DataType.BOOL and source.dtype != target:
        known = source.ints
        return None if known is None else tuple(Dim.of(bool(x)) for x in known)
    return source.content


def _constant(call: Call) -> Shape | None:
    tensor = tensor_of(call.node.outputs[0])
    if tensor is None or tensor.dtype not in _INTEGERS or tensor.size > MAX_CONTENT:
        return None
    return tuple(Dim.of(int(x)) for x in tensor.numpy().reshape(-1))


def _shape(call: Call) -> Shape | None:
    shape, node = call.input(0).shape, call.node
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end")
    return None if shape is None else shape[start:end]


def _size(call: Call) -> Shape | None:
    shape = call.input(0).shape
    return None if shape is None else (product(shape),)


def _concat(call: Call) -> Shape | None:
    parts = [fact.content for fact in call.inputs if fact.content is not None]
    joined = tuple(dim for part in parts for dim in part)
    return joined if len(parts) == len(call.inputs) and len(joined) <= MAX_CONTENT else None


def _gather(call: Call) -> Shape | None:
    data, indices = call.input(0).content, call.input(1).ints
    if data is None or indices is None or call.input(0).rank != 1:
        return None
    if any(not -len(data) <= index < len(data) for index in indices):
        return None
    return tuple(data[index] for index in indices)


def _slice(call: Call) -> Shape | None:
    data, bounds = call.input(0).content, slice_bounds(call)
    if data is None or bounds is None or call.input(0).rank != 1 or 0 not in bounds:
        return None
    start, end, step = bounds[0]
    if start.size is None or end.size is None:
        return None
    return data[slice(*slice(start.size, end.size, step).indices(len(data)))] if step > 0 else None


def _elementwise(operation: Callable[[Dim, Dim], Dim | None]) -> Content:
    def content(call: Call) -> Shape | None:
        left, right = call.input(0).content, call.input(1).content
        if left is None or right is None or len(call.inputs) != 2:
            return None
        if len(left) != len(right):
            left, right = (
                left * (len(right) if len(left) == 1 else 1),
                right * (len(left) if len(right) == 1 else 1),
            )
        if len(left) != len(right):
            return None
        results = [operation(a, b) for a, b in zip(left, right, strict=True)]
        known = tuple(result for result in results if result is not None)
        return known if len(known) == len(results) else None

    return content


def _divided(call: Call) -> Shape | None:
    return _elementwise(lambda a, b: _quotient(call, a, b))(call)


def _quotient(call: Call, a: Dim, b: Dim) -> Dim | None:
    if a.size is not None and b.size:  # ONNX divides integers towards zero
        quotient = abs(a.size) // abs(b.size)
        return Dim.of(quotient if (a.size < 0) == (b.size < 0) else -quotient)
    exact = a.divided_by(b) if b.size else None
    if exact is None and b.size != 0 and a.is_at_least(0) and b.is_at_least(0):
        return call.shapes.quotient(a, b)
    return exact


def _equal(a: Dim, b: Dim) -> Dim | None:
    if a == b:
        return Dim.of(1)
    return Dim.of(0) if (a - b).is_at_least(1) or (b - a).is_at_least(1) else None


def _larger(a: Dim, b: Dim) -> Dim | None:
    if (a - b).is_at_least(0):
        return a
    return b if (b - a).is_at_least(0) else None


def _smaller(a: Dim, b: Dim) -> Dim | None:
    larger = _larger(a, b)
    return None if larger is None else (b if larger is a else a)


def _negate(call: Call) -> Shape | None:
    content = call.input(0).content
    return None if content is None else tuple(dim * Dim.of(-1) for dim in content)


def _where(call: Call) -> Shape | None:
    condition, then, other = call.input(0).ints, call.input(1).content, call.input(2).content
    if condition is None or then is None or other is None:
        return None
    length = max(len(condition), len(then), len(other)) if condition and then and other else 0
    picked = [list(part) * (length if len(part) == 1 else 1) for part in (condition, then, other)]
    if any(len(part) != length for part in picked):
        return None
    return tuple(a if yes else b for yes, a, b in zip(*picked, strict=True))


def _constant_of_shape(call: Call) -> Shape | None:
    length, value = call.input(0).ints, call.node.attributes.get("value")
    if length is None or len(length) > 1 or (length and length[0] > MAX_CONTENT) or value is None:
        return None
    tensor = value.as_tensor()
    if tensor.dtype not in _INTEGERS or tensor.size != 1:
        return None
    return (Dim.of(int(tensor.numpy().reshape(-1)[0])),) * (length[0] if length else 1)


def _expand(call: Call) -> Shape | None:
    data, target = call.input(0).content, call.input(1).ints
    if data is None or target is None or len(target) > 1:
        return None
    length = target[0] if target else 1
    if len(data) != 1:
        return data if length in (1, len(data)) else None
    return data * length if 0 <= length <= MAX_CONTENT else None


def _range(call: Call) -> Shape | None:
    bounds = [call.input(index).ints for index in range(3)]
    if any(not bound for bound in bounds) or call.input(2).ints == (0,):
        return None
    numbers = range(*(bound[0] for bound in bounds if bound))
    return tuple(map(Dim.of, numbers)) if len(numbers) <= MAX_CONTENT else None


def _reduce_product(call: Call) -> Shape | None:
    content, data = call.input(0).content, call.input(0)
    axes = call.ints("axes", 1)
    if content is None or data.rank != 1 or (axes is None and call.has(1)):
        return None
    if not axes and call.node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return content
    return (product(content),)


CONTENTS: Final[dict[str, Content]] = {
    "Add": _elementwise(lambda a, b: a + b), "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b), "Div": _divided, "Equal": _elementwise(_equal),
    "Max": _elementwise(_larger), "Min": _elementwise(_smaller), "Neg": _negate, "Where": _where,
    "Cast": _cast, "CastLike": _cast, "Concat": _concat, "Constant": _constant,
    "ConstantOfShape": _constant_of_shape, "Expand": _expand, "Gather": _gather, "Identity": _same,
    "Range": _range, "ReduceProd": _reduce_product, "Reshape": _rearranged, "Shape": _shape, "Size": _size,
    "Slice": _slice, "Squeeze": _rearranged, "Unsqueeze": _rearranged,
}  # fmt: skip
