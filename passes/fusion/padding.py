"""Pad with zeros before an operator that can pad itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, constant_of, is_op
from burnish.passes.matching import MADE_BY, Scope, made_by, obstacle
from burnish.passes.shapes import Call, Shapes

_TAKERS: Final = frozenset({"AveragePool", "Conv", "MaxPool"})
_NOT_NEGATIVE: Final = frozenset({"Relu", "Sigmoid", "Softmax", "Softplus", "Abs", "Exp"})


def takes_padding(node: ir.Node) -> bool:
    """True for an operator that pads itself, behind a Pad."""
    return node.domain == "" and node.op_type in _TAKERS and made_by(node.inputs[0], "Pad") is not None


def absorb_padding(node: ir.Node, scope: Scope, context: Context, shapes: Callable[[], Shapes]) -> None:
    """Let the node do what the Pad before it does, where that is the same."""
    pad = made_by(node.inputs[0], "Pad")
    if pad is None:
        return
    found = shapes()
    pads = _spatial(Call(pad, [found[value] for value in pad.inputs], scope.opset, found))
    why = "it pads other axes than those of the image, or by a computed amount" if pads is None else None
    own = None if pads is None else _own(node, len(pads) // 2)
    if why is None and own is None:
        why = f"the {node.op_type} behind it does not say by how much it pads"
    why = why or _refusal(node, pad, pads or (), own or ()) or obstacle([pad, node], node.outputs)
    if why is not None or pads is None or own is None:
        context.miss(pad, why or "")
    elif context.permit(pad):
        _absorb(node, pad, [a + b for a, b in zip(own, pads, strict=True)])


def _spatial(call: Call) -> tuple[int, ...] | None:
    """Begins, then ends, of the axes behind batch and channels; None when anything else is padded."""
    pads, rank = call.ints("pads", 1), call.input(0).rank
    axes = call.ints("axes", 3) if call.has(3) else None
    if pads is None or rank is None or (call.has(3) and axes is None) or min(pads, default=0) < 0:
        return None
    axes = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    count = len(axes)
    if len(pads) != 2 * count:
        return None
    each = dict(zip(axes, zip(pads[:count], pads[count:], strict=True), strict=True))
    if any(each.get(axis, (0, 0)) != (0, 0) for axis in (0, 1)):
        return None
    columns = [each.get(axis, (0, 0)) for axis in range(2, rank)]
    return (*(begin for begin, _ in columns), *(end for _, end in columns))


def _own(node: ir.Node, axes: int) -> tuple[int, ...] | None:
    if (node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET") not in ("NOTSET", "VALID"):
        return None
    return tuple(node.attributes.get_ints("pads", [0] * (2 * axes)) or ())


def _refusal(node: ir.Node, pad: ir.Node, pads: tuple[int, ...], own: tuple[int, ...]) -> str | None:
    if (pad.attributes.get_string("mode", "constant") or "constant") != "constant":
        return "it does not pad with a constant"
    kernel = node.attributes.get_ints("kernel_shape", []) or []
    if len(pads) != len(own) or (node.op_type != "Conv" and 2 * len(kernel) != len(pads)):
        return "it pads another number of axes"
    filler = _filler(pad)
    if node.op_type != "MaxPool" and filler != 0:
        return "it does not pad with 0"
    if node.op_type == "Conv":
        return None
    if any(a + b >= size for a, b, size in zip(own, pads, (*kernel, *kernel), strict=True)):
        return "a pool cannot pad by as much as its window"
    if node.attributes.get_int("ceil_mode", 0) or any(
        d != 1 for d in node.attributes.get_ints("dilations", []) or []
    ):
        return "windows that go over the edge count their elements otherwise"
    return _pool_refusal(node, pad, own, filler)


def _pool_refusal(node: ir.Node, pad: ir.Node, own: tuple[int, ...], filler: float | None) -> str | None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return "the places of the maxima are used"
    if node.op_type == "AveragePool":
        counted = node.attributes.get_int("count_include_pad", 0)
        return "the pool pads too, and does not count that" if any(own) and not counted else None
    source = None if pad.inputs[0] is None else pad.inputs[0].producer()
    positive = source is not None and source.domain == "" and source.op_type in _NOT_NEGATIVE
    if filler == -np.inf or (filler == 0 and positive):
        return None
    return "a maximum with the padding is not one without, unless nothing is less than 0"


def _filler(pad: ir.Node) -> float | None:
    if "value" in pad.attributes or len(pad.inputs) < 3 or pad.inputs[2] is None:
        return pad.attributes.get_float("value", 0.0)
    value = constant_of(pad.inputs[2], max_bytes=16)
    return None if value is None or value.size != 1 else float(value.reshape(())[()])


def _absorb(node: ir.Node, pad: ir.Node, pads: list[int]) -> None:
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    node.attributes.pop("auto_pad", None)
    if is_op(node, "AveragePool"):
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    node.metadata_props[MADE_BY] = "fold-into-conv"
    node.replace_input_with(0, pad.inputs[0])
    if pad.graph is not None:
        pad.graph.remove(pad, safe=True)
