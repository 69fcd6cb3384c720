"""Transpose(Relu(Transpose(x)))  ->  Relu(x)"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, is_op
from burnish.passes.cleanup.reshape_target import RESHAPES, constant_target, express
from burnish.passes.cleanup.transposed_region import Region, perm_of
from burnish.passes.editing import Round, feeds_only, until_stable


@final
@dataclasses.dataclass(frozen=True)
class MergeTransposes(Pass):
    """Let Transposes meet, cancel, or go into what reads them.

    - Transposes move through operators that do not care about the order of axes (elementwise ones with
      scalars, constants or operands that are transposed alike), or that name the axes they work on (Softmax,
      ReduceMean ..., Concat, Split, Slice, Pad, Squeeze, Unsqueeze), to where they meet others;
    - a Transpose that only moves axes of size 1 becomes a Reshape, or part of the one behind it;
    - a Transpose of an operand of Gemm becomes its transA or transB.

    Kept: a Transpose that has no other to meet: nothing moves unless there are fewer Transposes afterwards.
    Constants are transposed now, up to 64 KiB where something else reads them too.
    """

    name: ClassVar[str] = "merge-transposes"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING  # a sum over other axes is added up in another order
    looks_for: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many groups of Transposes were merged, and how many went into something else."""
        return until_stable(model, context, lambda round_: _Merger(round_).visit)


@final
class _Merger:
    def __init__(self, round_: Round) -> None:
        self._round, self._context = round_, round_.context
        self._settled: set[ir.Node] = set()  # what starts at one of these stays, as was found at another

    def visit(self, node: ir.Node) -> None:
        """Move a Transpose, or take those that a Gemm reads into it."""
        if is_op(node, "Gemm"):
            for index, name in enumerate(("transA", "transB")):
                self._absorb(node, index, name)
        elif is_op(node, "Transpose") and not self._move(node):
            self._to_reshape(node)

    def _absorb(self, gemm: ir.Node, index: int, name: str) -> None:
        value = gemm.inputs[index]
        maker = None if value is None else value.producer()
        if value is None or maker is None or not is_op(maker, "Transpose") or value.is_graph_output():
            return
        alone = all(user is gemm for user in value.consumers()) and len(value.uses()) == 1
        if not alone or maker.inputs[0] is None or maker.graph is not gemm.graph:
            return
        if perm_of(maker, self._round) == (1, 0) and self._context.permit(gemm):
            flipped = 1 - (gemm.attributes.get_int(name, 0) or 0)
            gemm.attributes[name] = ir.AttrInt64(name, flipped)
            self._round.editor.set_input(gemm, index, maker.inputs[0])

    def _move(self, node: ir.Node) -> bool:
        if node in self._settled:
            return False
        region = Region(self._round, node.graph)
        region.grow(node)
        if region.saved <= 0 or not self._context.permit(node):
            self._settled.update(region.starts)
            return False
        region.move()
        return True

    def _to_reshape(self, node: ir.Node) -> None:
        """A Transpose that leaves the elements where they are."""
        source, perm = self._round.shapes[node.inputs[0]].shape, perm_of(node, self._round)
        if node.inputs[0] is None or source is None or perm is None:
            return
        long = [axis for axis in perm if source[axis].size != 1]
        result = tuple(source[axis] for axis in perm)
        if long != sorted(long):
            return
        if result == source:
            self._round.replace(node.outputs[0], node.inputs[0])
            return
        user = next(iter(node.outputs[0].consumers()), node)
        behind = user.domain == "" and user.op_type in RESHAPES and feeds_only(node, user)
        if behind and user.graph is node.graph and express(user, node.inputs[0], self._round):
            return
        target = constant_target(source, result)
        if target is not None and self._context.permit(node):
            vector = self._round.numbers(node, f"{node.outputs[0].name}_shape", target)
            self._round.renew(node, "Reshape", [node.inputs[0], vector])
