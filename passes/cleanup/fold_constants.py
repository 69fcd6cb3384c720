"""op(constant, ...)  ->  constant;   Constant  ->  initializer;   If(constant)  ->  its branch"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, bodies, is_op, tensor_of
from burnish.passes.cleanup.evaluation import CLOSE, EXACT, MOVING, evaluate
from burnish.passes.cleanup.inline_branch import inline_branch
from burnish.passes.editing import Editor, is_templated
from burnish.passes.shapes import Fact
from burnish.weights import byte_size

# What numpy does in one sweep; other operators are evaluated by slow reference code.
_FAST: Final = MOVING | {"Add", "Div", "Mul", "Neg", "Sqrt", "Sub"}
# What it does in a few: weights of a normalised convolution, a table of positions that each layer projects.
_QUICK: Final = frozenset(
    {"Gemm", "LayerNormalization", "MatMul", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"}
)
_QUICK_LIMIT: Final = 1 << 26
_KNOWN: Final = EXACT | CLOSE
_SLOW_LIMIT: Final = 1 << 20
_PRODUCTS: Final = frozenset({"Gemm", "MatMul"})
_HALVES: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Their result is never larger than their input, but its size depends on the values.
_DATA_DEPENDENT: Final = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


@final
@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what does not depend on the inputs; make Constant nodes initializers.

    Also: an If whose condition is constant becomes its branch, and a CastLike to a known dtype becomes a Cast
    or goes.

    Kept: what would make the model grow by more than `max_bytes`; QuantizeLinear and DequantizeLinear (the
    weights would leave int8); random operators and those that implementations disagree about, such as Resize
    and Attention; Constant nodes in functions, which cannot hold initializers, and in models older than IR
    version 4. A folded output of the graph becomes a Constant node.
    """

    name: ClassVar[str] = "fold-constants"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING  # numpy's exp is not onnxruntime's

    max_bytes: int = 65536
    """Bytes that one folded node may add to the model, after what only it used is gone."""
    max_product_bytes: int = 1 << 22
    """The same for a matrix product, which takes longest to compute, of matrices that are larger than it."""

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were folded, made initializers, inlined or made a Cast."""
        before = len(context.rewrites)
        folder = _Folder(self, model, context)
        while folder.run():  # an inlined branch may tell more of what comes after it
            folder = _Folder(self, model, context)
        folder.report()
        return len(context.rewrites) - before


@final
class _Folder:
    """One round over all graphs."""

    def __init__(self, limits: FoldConstants, model: ir.Model, context: Context) -> None:
        self._limits, self._model, self._context = limits, model, context
        self._editor, self._shapes = Editor(model), context.shapes(model)
        self._misses: list[tuple[ir.Node, str]] = []

    def report(self) -> None:
        """Tell the context what was not folded, and why."""
        for node, why in self._misses:
            self._context.miss(node, why)

    def run(self) -> bool:
        """True when something changed."""
        before = len(self._context.rewrites)
        for first in self._context.nodes(self._model):
            todo = [first]
            while todo:
                node = todo.pop()
                if node.graph is not None and not is_templated(node):
                    todo.extend(reversed(self._visit(node)))
        return len(self._context.rewrites) > before

    def _visit(self, node: ir.Node) -> Sequence[ir.Node]:
        """Rewrite a node if it can be; return the nodes that came in its place and need a visit."""
        if is_op(node, "Constant"):
            self._to_initializer(node)
        elif is_op(node, "If"):
            return inline_branch(node, self._editor, self._context)
        elif is_op(node, "CastLike"):
            return self._settle_cast_like(node)
        elif self._is_foldable(node) and self._pays(node):
            self._fold(node)
        return ()

    def _to_initializer(self, node: ir.Node) -> None:
        value, tensor = node.outputs[0], tensor_of(node.outputs[0])
        if tensor is None or value.is_graph_output() or not self._editor.holds_initializers(node.graph):
            return
        if value.name and self._context.permit(node):
            name, value.name = value.name, None
            constant = self._editor.initializer(name, tensor)
            constant.metadata_props.update(value.metadata_props)
            self._editor.replace(value, constant)

    def _settle_cast_like(self, node: ir.Node) -> Sequence[ir.Node]:
        source, like = node.inputs[0], self._shapes[node.inputs[1]].dtype
        if like is None or source is None:
            return ()
        result = node.outputs[0]
        if self._shapes[source].dtype == like and self._editor.can_replace(result, source):
            if self._context.permit(node):
                self._editor.replace(result, source)
            return ()
        if not self._context.permit(node):
            return ()
        kept = {name: attribute.value for name, attribute in node.attributes.items()}
        cast = self._editor.renew(node, "Cast", [source], to=int(like), **kept)
        self._shapes.add(cast)
        return [cast]

    def _is_foldable(self, node: ir.Node) -> bool:
        if node.domain or node.op_type not in _KNOWN or bodies(node):
            return False
        if is_op(node, "Dropout") and len(node.inputs) > 2:
            return False
        present = [value for value in node.inputs if value is not None]
        if not present or any(tensor_of(value) is None for value in present):
            return False
        return node.op_type in self._allowed(node)

    def _allowed(self, node: ir.Node) -> frozenset[str]:
        """Half precision is only moved, apart from single numbers.

        The CPU provider computes it in float32 and leaves out roundings in between, a Cast to it included.
        """
        facts = [self._shapes[value] for value in (*node.inputs, *node.outputs)]
        if not any(fact.dtype in _HALVES for fact in facts):
            return _KNOWN
        return (EXACT if all(fact.rank == 0 for fact in facts) else MOVING) - {"Cast"}

    def _pays(self, node: ir.Node) -> bool:
        """True when the result is small enough beside what goes; says why when it is not."""
        facts = [self._shapes[value] for value in node.outputs]
        read = sum(byte_size(tensor) for tensor in map(_tensor, node.inputs) if tensor is not None)
        most = _QUICK_LIMIT if node.op_type in _QUICK else _SLOW_LIMIT
        if node.op_type not in _FAST and read > most:
            self._misses.append((node, f"{read} constant bytes are too many for {node.op_type} to be folded"))
            return False
        made = None if node.op_type in _DATA_DEPENDENT else _bytes(facts)
        if made is None and node.op_type not in _DATA_DEPENDENT:
            return False
        growth = (made or 0) - sum(_freed(value, node) for value in dict.fromkeys(node.inputs))
        product = node.op_type in _PRODUCTS and (made or 0) < read
        name, limit = ("max_product_bytes" if product else "max_bytes"), self._limits.max_bytes
        limit = max(limit, self._limits.max_product_bytes) if product else limit
        if growth > limit and not self._pays_together(node):
            self._misses.append((node, f"folding adds {growth} bytes, more than {name}={limit}"))
            return False
        return True

    def _pays_together(self, node: ir.Node) -> bool:
        """True when a constant goes as soon as all that read it are folded, and is about as large as those.

        Exporters cut the weights of an LSTM into its gates, and put these together in another order.
        """
        for value in dict.fromkeys(node.inputs):
            tensor = _tensor(value)
            if value is None or tensor is None or value.is_graph_output():
                continue
            users = value.consumers()
            if all(user.op_type in _FAST and self._is_foldable(user) for user in users):
                made = [_bytes([self._shapes[result] for result in user.outputs]) for user in users]
                known = [size for size in made if size is not None]
                if len(known) == len(made) and sum(known) - tensor.nbytes <= self._limits.max_bytes:
                    return True
        return False

    def _fold(self, node: ir.Node) -> None:
        arrays = evaluate(node, self._shapes.opset(node))
        if arrays is None or not all(map(self._fits, node.outputs, arrays)):
            self._misses.append((node, f"{node.op_type} could not be evaluated"))
            return
        if not self._context.permit(node):
            return
        for value, array in zip(node.outputs, arrays, strict=True):
            if array is not None and (value.uses() or value.is_graph_output()):
                self._editor.become_constant(value, node, array)
        self._editor.sweep(node.outputs)

    def _fits(self, value: ir.Value, array: np.ndarray | None) -> bool:
        fact, used = self._shapes[value], bool(value.uses()) or value.is_graph_output()
        if array is None:
            return not used
        return fact.dtype is None or ir.DataType.from_numpy(array.dtype) == fact.dtype


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else tensor_of(value)


def _bytes(facts: Sequence[Fact]) -> int | None:
    """Bytes of outputs whose shapes and dtypes are known; None when one is not, or is no plain tensor."""
    total = 0
    for fact in facts:
        if fact.static is None or fact.dtype is None or fact.dtype == ir.DataType.STRING:
            return None
        if fact.dtype.bitwidth < 8:
            return None
        total += int(np.prod(fact.static, dtype=np.float64)) * fact.dtype.bitwidth // 8
    return total


def _freed(value: ir.Value | None, node: ir.Node) -> int:
    tensor = _tensor(value)
    if value is None or tensor is None or value.is_graph_output():
        return 0
    return byte_size(tensor) if all(user is node for user in value.consumers()) else 0
