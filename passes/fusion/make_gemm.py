"""Add(MatMul(x, w), b)  ->  Gemm(x, w, b);   MatMul(Transpose(x), w)  ->  Gemm(x, w), which transposes"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.dims import Dim
from burnish.passes.editing import Round, feeds_only, until_stable
from burnish.passes.fusion.quantised import reads_quantised
from burnish.passes.matching import MADE_BY
from burnish.passes.shapes import Shape

_DTYPES: Final = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_FIRST_OPSET: Final = 11  # from where on the third input is optional


@final
@dataclasses.dataclass(frozen=True)
class MakeGemm(Pass):
    """Write a MatMul of two matrices, with what is added to it or the transposes before it, as one Gemm.

    It comes last: quantisation and the fusions look for MatMul and Add. Kept: operands of other ranks than
    2, for which Gemm is not defined; half precision and integers, for which few runtimes have a Gemm; a
    product, or a Transpose, that is used elsewhere too, as there would be no node fewer; a sum that has
    another shape than the product.
    """

    name: ClassVar[str] = "make-gemm"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Gemm", "MatMul"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many Gemms were made."""
        return until_stable(model, context, lambda round_: _Maker(round_).visit)


@final
class _Maker:
    def __init__(self, round_: Round) -> None:
        self._round = round_

    def visit(self, node: ir.Node) -> None:
        """Make a Gemm of an Add, or of a MatMul that reads a Transpose."""
        if is_op(node, "Add"):
            self._add(node)
        elif is_op(node, "MatMul") and any(map(_transposed, node.inputs)) and self._is_matrix_product(node):
            self._transpose(node)

    def _add(self, node: ir.Node) -> None:
        for place in (0, 1):
            product, bias = node.inputs[place], node.inputs[1 - place]
            matmul = None if product is None else product.producer()
            if matmul is None or bias is None or matmul.graph is not node.graph or not _is_product(matmul):
                continue
            if not self._is_matrix_product(matmul):
                return
            why = self._refusal(node, matmul, bias)
            if self._round.context.permit_unless(why, node):
                inputs, flips = _operands(matmul)
                own = matmul.attributes.items()  # its beta scaled nothing, and would scale the bias
                kept = {name: attribute.value for name, attribute in own if name != "beta"}
                self._make(node, [*inputs, bias], **kept, **flips)
            return

    def _is_matrix_product(self, matmul: ir.Node) -> bool:
        if reads_quantised(matmul):  # which runtimes run on integers, but not with a float bias
            return False
        shapes = self._round.shapes
        facts = [shapes[value] for value in matmul.inputs]
        return shapes.opset(matmul) >= _FIRST_OPSET and all(
            fact.rank == 2 and fact.dtype in _DTYPES for fact in facts
        )

    def _refusal(self, node: ir.Node, matmul: ir.Node, bias: ir.Value) -> str | None:
        if not feeds_only(matmul, node) or bias is matmul.outputs[0]:
            return "the product is used elsewhere too"
        shapes = self._round.shapes
        product, added = shapes[matmul.outputs[0]].shape, shapes[bias].shape
        if product is None or added is None or not _broadcasts(added, product):
            return "what is added is not proved to have the shape of the product, or one that spreads to it"
        return None

    def _transpose(self, node: ir.Node) -> None:
        inputs, flips = _operands(node)
        if flips and self._round.context.permit(node):
            self._make(node, inputs, **flips)

    def _make(self, node: ir.Node, inputs: list[ir.Value | None], **attributes: object) -> None:
        gemm = self._round.renew(node, "Gemm", inputs, **attributes)
        gemm.metadata_props[MADE_BY] = MakeGemm.name


def _is_product(node: ir.Node) -> bool:
    """A MatMul, or a Gemm that adds nothing."""
    return is_op(node, "MatMul") or (is_op(node, "Gemm") and len(node.inputs) == 2)


def _operands(matmul: ir.Node) -> tuple[list[ir.Value | None], dict[str, int]]:
    """What to read instead of transposes that nothing else reads, and the attributes that make up for it."""
    inputs, flips = list(matmul.inputs), dict[str, int]()
    if not is_op(matmul, "MatMul"):
        return inputs, flips
    for index, name in enumerate(("transA", "transB")):
        before = _transposed(inputs[index])
        alone = before is not None and feeds_only(before, matmul) and len(before.outputs[0].uses()) == 1
        if before is not None and alone and before.graph is matmul.graph:
            inputs[index], flips[name] = before.inputs[0], 1
    return inputs, flips


def _transposed(value: ir.Value | None) -> ir.Node | None:
    """The Transpose of a matrix that makes a value."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Transpose") or node.inputs[0] is None:
        return None
    return node if list(node.attributes.get_ints("perm", [1, 0]) or ()) == [1, 0] else None


def _broadcasts(added: Shape, product: Shape) -> bool:
    """True when a tensor spreads to the product's shape, and not the other way round."""
    if len(added) > len(product):
        return False
    return all(a in (Dim.of(1), b) for a, b in zip(added[::-1], product[::-1], strict=False))
