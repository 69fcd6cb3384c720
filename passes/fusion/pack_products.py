"""x @ a, x @ b  ->  Split(x @ [a b])"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op, tensor_of
from burnish.passes.fusion.columns import describe, split_columns
from burnish.passes.matching import Scope, either_way, scopes
from burnish.passes.shapes import Shapes

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@final
@dataclasses.dataclass(frozen=True)
class PackProducts(Pass):
    """Compute the products of one input and several constant matrices as one product.

    Such are query, key and value, or gate and up of a gated feed-forward. Where each of them has a constant
    vector added to it, the vectors become one too.

    Not in the default recipe: on onnxruntime's CPU provider a product as wide as two takes 0.98 to 1.05
    times as long as the two (1 to 128 rows, 768 to 5632 columns), so that nothing pays for the Split.
    """

    name: ClassVar[str] = "pack-products"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many groups became one product each."""
        done, shapes = 0, context.shapes(model)
        for scope in scopes(model):
            order = {node: at for at, node in enumerate(scope.graph)}
            groups: dict[tuple[ir.Value, ir.DataType], list[_Product]] = {}
            for node in scope.graph:
                product = _product(node, shapes)
                if product is not None:
                    groups.setdefault((product.x, product.dtype), []).append(product)
            for group in groups.values():
                if len(group) > 1 and context.permit(group[-1].result):
                    _pack(group, scope, order)
                    done += 1
        return done


class _Product(NamedTuple):
    x: ir.Value
    node: ir.Node
    weight: ir.TensorProtocol
    """[in, out]"""
    add: ir.Node | None
    """Adds the bias, and is all that reads the product."""
    bias: ir.TensorProtocol | None

    @property
    def dtype(self) -> ir.DataType:
        return self.weight.dtype

    @property
    def result(self) -> ir.Node:
        """The node that makes what the rest of the graph reads."""
        return self.node if self.add is None else self.add


def _product(node: ir.Node, shapes: Shapes) -> _Product | None:
    if not is_op(node, "MatMul"):
        return None
    x, matrix = node.inputs
    weight = None if matrix is None else tensor_of(matrix)
    # the Split is along the last axis of a result that has at least two
    if x is None or weight is None or len(weight.shape) != 2 or (shapes[x].rank or 0) < 2:
        return None
    if weight.dtype not in _FLOATS or 0 in weight.shape:
        return None
    add, bias = _bias(node, weight.shape.numpy()[1])
    return _Product(x, node, weight, add, bias)


def _bias(product: ir.Node, width: int) -> tuple[ir.Node | None, ir.TensorProtocol | None]:
    output = product.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and is_op(uses[0].node, "Add"):
        add = uses[0].node
        for rows, other in either_way(add):
            tensor = tensor_of(other)
            inside = add.graph is product.graph
            if rows is output and inside and tensor is not None and list(tensor.shape) == [width]:
                return add, tensor
    return None, None


def _pack(group: Sequence[_Product], scope: Scope, order: Mapping[ir.Node, int]) -> None:
    biased = all(each.add is not None for each in group)
    old = [each.node for each in group]
    ends = [each.result if biased else each.node for each in group]
    last, name = ends[-1], group[0].node.outputs[0].name or "product"
    weights = [each.weight for each in group]
    shapes = [weight.shape.numpy() for weight in weights]
    widths = [shape[1] for shape in shapes]
    weight = scope.lazy(
        last, f"{name}_packed_weight", group[0].dtype, (shapes[0][0], sum(widths)),
        lambda: np.concatenate([each.numpy() for each in weights], axis=1),
        ("columns", *map(id, weights)),
    )  # fmt: skip
    new = [ir.node("MatMul", [group[0].x, weight])]
    if biased:
        old += ends
        vectors = [each.bias.numpy() for each in group if each.bias is not None]
        bias = scope.constant(last, f"{name}_packed_bias", np.concatenate(vectors))
        new.append(ir.node("Add", [new[0].outputs[0], bias]))
    values = [end.outputs[0] for end in ends]
    for node in new:
        describe(node.outputs[0], values[0], sum(widths), scope.fresh(f"{name}_packed"))
    names = [f"{value.name}_part" for value in values]
    parts = split_columns(new[-1].outputs[0], values, widths, names, scope, last)
    results = dict(zip(values, parts.outputs, strict=True))
    scope.replace(sorted(old, key=order.__getitem__), [*new, parts], results, PackProducts.name)
