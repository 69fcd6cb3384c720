"""A product of several matrices at once, and its parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from burnish.passes.matching import Scope


def split_columns(value: ir.Value, like: Sequence[ir.Value], widths: Sequence[int], names: Sequence[str],
                  scope: Scope, before: ir.Node) -> ir.Node:  # fmt: skip
    """A Split of `value` along its last axis, as the opset has it.

    Args:
        value: [..., sum of the widths].
        like: of which type, and which shape but for the last dim, the parts are.
        widths: of the parts.
        names: of the parts; made unique.
        scope: where they are to be.
        before: a node of the graph before which a constant may stand.
    """
    if scope.opset < 13:
        split = ir.node("Split", [value], {"axis": -1, "split": list(widths)}, num_outputs=len(widths))
    else:
        sizes = scope.constant(before, f"{value.name}_sizes", np.array(widths, np.int64))
        split = ir.node("Split", [value, sizes], {"axis": -1}, num_outputs=len(widths))
    for part, each, width, name in zip(split.outputs, like, widths, names, strict=True):
        describe(part, each, width, scope.fresh(name))
    return split


def qkv_widths(node: ir.Node, total: int) -> list[int] | None:
    """Features of query, key and value in the packed matrix of onnxruntime's Attention.

    Args:
        node: the Attention; it may name them.
        total: columns of the matrix; 0: not known. A third is for each where they are not named.
    """
    sizes = node.attributes.get_ints("qkv_hidden_sizes", None)
    if sizes:
        return list(sizes)
    return [total // 3] * 3 if total and total % 3 == 0 else None


def describe(value: ir.Value, like: ir.Value, width: int, name: str) -> None:
    """Name a new value; it has the type and shape of `like`, but for the size of its last dim."""
    value.name, value.type = name, like.type
    if like.shape is not None and len(like.shape):
        value.shape = ir.Shape([*like.shape[:-1], width])
