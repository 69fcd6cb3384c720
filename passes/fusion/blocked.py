"""Which values onnxruntime's CPU keeps with channels in blocks (NCHWc) from one convolution to the next.

A FusedConv whose sum is not in blocks stays out of that layout as a whole, and is then slower than a Conv in
blocks and an Add (measured on onnxruntime 1.31.1: all of PoolFormer takes 1.1 × the time). So does one that
has a sum and no bias, until it is given one of zeros: onnxruntime's NchwcTransformer looks for a constant in
the place of the bias (all of DETR takes 1.04 × the time).
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from burnish.passes.base import is_op, tensor_of
from burnish.passes.matching import CONTRIB
from burnish.passes.shapes import Shapes

_KEEPING: Final = frozenset(
    {
        "Add",
        "Concat",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Mul",
        "QuickGelu",
        "Relu",
        "Sigmoid",
        "Sum",
        "Tanh",
    }
)
"""Read and made in blocks, where all they read is."""
_POOLS: Final = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_IMAGES: Final = 4  # batch, channels, height, width: the only rank that there are blocks for
_FAR: Final = 8  # nodes looked at; what keeps blocks over more of them is rare


def is_in_blocks(value: ir.Value, shapes: Shapes) -> bool:
    """True when a value is made in blocks: by a convolution of images or a pool, or step by step of such."""
    todo, seen = [value], 0
    while todo:
        node, seen = todo.pop().producer(), seen + 1
        if node is None or seen > _FAR:
            return False
        if is_image_conv(node) or node.op_type in _POOLS:
            continue
        if node.op_type not in _KEEPING:
            return False
        read = [each for each in node.inputs if each is not None and tensor_of(each) is None]
        if node.op_type != "Concat" and any(
            shapes[each].shape != shapes[node.outputs[0]].shape for each in read
        ):
            return False
        todo += read
    return True


def is_image_conv(node: ir.Node) -> bool:
    """True for a convolution of images with constant weights, which onnxruntime runs in blocks if it can."""
    if not (is_op(node, "Conv") or is_op(node, "FusedConv", CONTRIB)) or len(node.inputs) < 2:
        return False
    weight = None if node.inputs[1] is None else tensor_of(node.inputs[1])
    return weight is not None and len(weight.shape) == _IMAGES
