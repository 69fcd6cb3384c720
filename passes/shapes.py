"""What is known of every value before the model runs: dtype, symbolic shape, and small integer contents.

Only inputs, initializers and operators are believed. Shapes written on inner values are ignored: they are
often stale (somebody made the batch of the inputs dynamic) and a rewrite that trusts them is wrong.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, final

import onnx_ir as ir

from burnish.dim_sums import parts_of
from burnish.passes.base import bodies, is_templated
from burnish.passes.base import tensor_of as tensor_of
from burnish.passes.dims import Dim, DimOverflowError, total
from burnish.weights import dims_of

MAX_CONTENT: Final = 64
"""Elements of an integer tensor up to which its content is followed; shapes have fewer."""
_COUNTING: Final = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_OLDEST_OPSET: Final = 7  # before it, Add and its like broadcast by attributes
_NEVER: Final = -1  # no opset: of what is looked at in every walk

_ONE: Final = Dim.of(1)

Shape = tuple[Dim, ...]


@final
class Fact(NamedTuple):
    """What is known of one value; None: not known."""

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    content: Shape | None = None
    """The elements of an int64, int32 or bool tensor of rank 0 or 1."""

    @property
    def rank(self) -> int | None:
        """How many dims it has."""
        return None if self.shape is None else len(self.shape)

    @property
    def ints(self) -> tuple[int, ...] | None:
        """The content, when every element is a known number."""
        sizes = tuple(dim.size for dim in self.content or ())
        return None if self.content is None or None in sizes else tuple(s for s in sizes if s is not None)

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape, when every dim is a known number."""
        sizes = tuple(dim.size for dim in self.shape or ())
        return None if self.shape is None or None in sizes else tuple(s for s in sizes if s is not None)


UNKNOWN: Final = Fact()


@final
class Call(NamedTuple):
    """A node as a rule sees it: the node, the facts of its inputs, and the version of its operator."""

    node: ir.Node
    inputs: Sequence[Fact]
    opset: int
    shapes: Shapes

    def input(self, index: int) -> Fact:
        """The fact of an input; UNKNOWN when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else UNKNOWN

    def has(self, index: int) -> bool:
        """True when the optional input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def ints(self, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that old opsets give as attribute `name` and newer ones as input `index`."""
        if name in self.node.attributes:
            return tuple(self.node.attributes[name].as_ints())
        return self.input(index).ints if self.has(index) else None

    def axis(self, rank: int | None, default: int = 0, *, name: str = "axis") -> int | None:
        """The attribute as an index that is not negative; None when it is out of range."""
        axis = self.node.attributes.get_int(name, default)
        if rank is None or axis is None or not -rank <= axis < rank:
            return None
        return axis % rank


@final
class _Found:
    """What the facts of a node's outputs were found from, beside the facts of its inputs."""

    __slots__ = ("_attributes", "_domain", "_inputs", "_op_type", "_opset", "outputs")

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._domain, self._op_type, self._opset = node.domain, node.op_type, opset
        self._attributes = tuple(node.attributes.data.values())
        self._inputs, self.outputs = node.inputs, node.outputs

    def holds(self, node: ir.Node, opset: int) -> bool:
        """True when the node is as it was: of the very same things, not only of equal ones."""
        attributes, known = node.attributes.data, self._attributes
        return (
            self._op_type == node.op_type
            and (self._inputs is node.inputs or _are(self._inputs, node.inputs))
            and (self.outputs is node.outputs or _are(self.outputs, node.outputs))
            and len(known) == len(attributes)
            and (not known or all(map(operator.is_, known, attributes.values())))
            and self._domain == node.domain
            and self._opset == opset
        )


def _are(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


@final
class Shapes:
    """Facts of every value of a model, in all graphs; found by walking it once.

    A pass that makes a new node calls `add` for it; facts of other values stay true while a pass
    keeps what they compute.

    Args:
        model: the model as it is.
        before: what was known of it before it was changed, in whatever way. A node that is as it was, and
            reads values of which the same is known, is not looked at again; what was known of others is
            forgotten. So nothing depends on what a pass said or did: the facts are those of a new walk, up to
            the names of unknown sizes, which stay.

    Example::

        shapes = Shapes(model)
        shapes[value].shape  # (Dim.named("batch"), Dim.of(384))
    """

    def __init__(self, model: ir.Model, before: Shapes | None = None) -> None:
        self._least: dict[str, tuple[Dim, Dim]] = {} if before is None else before._least
        self._quotients: dict[str, tuple[Dim, Dim]] = {} if before is None else before._quotients
        self._fresh: itertools.count[int] = itertools.count() if before is None else before._fresh
        self._opsets: dict[ir.Graph, int] = {}
        self._begin(before)
        self._walk_all(model)
        if self._is_disordered:
            self._begin(None)
            self._walk_all(model)
        self._end()

    def _begin(self, before: Shapes | None) -> None:
        """Start from what was known, or from nothing."""
        self._facts: dict[ir.Value, Fact] = {} if before is None else before._facts.copy()
        self._known: dict[ir.Node, _Found] = {} if before is None else before._found.copy()
        self._inputs: dict[ir.Value, tuple[object, ...]] = {} if before is None else before._inputs
        self._tensors: dict[ir.Value, ir.TensorProtocol] = {}
        self._found: dict[ir.Node, _Found] = {}
        self._loose: set[ir.Value] = set()  # of which nothing is known but the stated dtype
        self._changed: set[ir.Value] = set()  # of which something else was known before
        self._is_first, self._is_disordered = before is None, False
        if before is None:
            return
        for value, tensor in before._tensors.items():
            if tensor_of(value) is tensor and (value.is_initializer() or value.producer() is not None):
                self._tensors[value] = tensor
            else:
                self._forget(value)
        for value in (*before._loose, *before._changed):
            self._forget(value)

    def _forget(self, value: ir.Value) -> None:
        """Let a value, and what makes it, be looked at again, and what reads it."""
        self._facts.pop(value, None)
        self._changed.add(value)
        maker = value.producer()
        if maker is not None:
            self._known.pop(maker, None)

    def _walk_all(self, model: ir.Model) -> None:
        before, self._inputs = self._inputs, {}
        for value in model.graph.inputs:
            self._inputs[value] = annotated_dtype(value), None if value.shape is None else tuple(value.shape)
            if before.get(value) != self._inputs[value] or value not in self._facts:
                self._forget(value)
                self._facts[value] = self._declared(value)
        for value in before.keys() - self._inputs.keys():
            self._forget(value)
        self._walk(model.graph, _opset(model.graph))
        for function in model.functions.values():
            self._walk(function.graph, _opset(function))

    def _end(self) -> None:
        """Forget what is not in the model any more."""
        for node in self._known.keys() - self._found.keys():
            for value in self._known[node].outputs:
                if value.producer() not in self._found:
                    self._facts.pop(value, None)
                    self._tensors.pop(value, None)
        self._known, self._changed = {}, set()

    def __getitem__(self, value: ir.Value | None) -> Fact:
        """What is known of a value; UNKNOWN for None."""
        if value is None:
            return UNKNOWN
        fact = self._facts.get(value)
        if fact is None:
            fact = self._constant(value)
            if fact is None:
                fact = Fact(annotated_dtype(value))
                self._loose.add(value)
            self._facts[value] = fact
        return fact

    def __setitem__(self, value: ir.Value, fact: Fact) -> None:
        self._facts[value] = fact
        self._changed.add(value)
        self._tensors.pop(value, None)
        self._inputs.pop(value, None)

    def opset(self, node: ir.Node) -> int:
        """Version of the standard operators where a node is; 1 for a node that is nowhere."""
        return self._opsets.get(node.graph, 1) if isinstance(node.graph, ir.Graph) else 1

    def fresh(self) -> Dim:
        """A size that equals no other."""
        return Dim.named(f"?{next(self._fresh)}")

    def least(self, a: Dim, b: Dim) -> Dim:
        """The smaller of two sizes."""
        if a == b or (a.size is not None and b.size is not None):
            return a if a == b or (a.size or 0) < (b.size or 0) else b
        a, b = sorted((a, b), key=lambda dim: dim.terms)
        return self._called(self._least, f"min({a},{b})", (a, b))

    def quotient(self, a: Dim, b: Dim) -> Dim:
        """a / b without the remainder, for sizes (at least 0) that are not both known."""
        return self._called(self._quotients, f"?({a}//{b})", (a, b))

    def _called(self, known: dict[str, tuple[Dim, Dim]], name: str, meant: tuple[Dim, Dim]) -> Dim:
        """The size of that name, unless a dim is named like a product of others, and it means another."""
        return Dim.named(name) if known.setdefault(name, meant) == meant else self.fresh()

    def broadcast(self, *operands: Shape | None) -> Shape | None:
        """The shape that operands broadcast to; None when a rank is not known."""
        known = [shape for shape in operands if shape is not None]
        if len(known) < len(operands):
            return None
        if len(known) == 2 and (known[0] == known[1] or not all(known)):
            return known[0] or known[1]  # two equal shapes, or a number and anything
        rank = max(map(len, known), default=0)
        padded = [(Dim.of(1),) * (rank - len(shape)) + shape for shape in known]
        return tuple(self._join(column) for column in zip(*padded, strict=True))

    def add(self, node: ir.Node) -> None:
        """Find the facts of a node's outputs from those of its inputs."""
        self._infer(node, [self[value] for value in node.inputs], self.opset(node))
        self._changed.update(node.outputs)

    def _infer(self, node: ir.Node, inputs: Sequence[Fact], opset: int) -> bool:
        """True when all dtypes follow from the operator, none from what the model states."""
        outputs, facts = node.outputs, list[Fact]()
        try:
            if opset >= _OLDEST_OPSET and not is_templated(node):
                facts.extend(_infer()(Call(node, inputs, opset, self))[: len(outputs)])
        except (DimOverflowError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
            pass  # too much to follow, or a node that breaks its operator's own rules
        for value, fact in itertools.zip_longest(outputs, facts):
            self._facts[value] = _settled(value, fact or UNKNOWN)
        return len(facts) == len(outputs) and None not in [fact.dtype for fact in facts]

    def _walk(self, graph: ir.Graph, opset: int) -> None:
        self._opsets[graph] = opset
        known, changed = self._known, self._changed
        for node in graph:
            inner = bodies(node) if node.attributes.data else ()
            for body in inner:
                self._walk(body, opset)
            found = known.get(node)
            if inner or found is None or not changed.isdisjoint(node.inputs) or not found.holds(node, opset):
                self._look(node, opset)
            else:
                self._found[node] = found

    def _look(self, node: ir.Node, opset: int) -> None:
        """Find the facts of a node's outputs; say the same as before where it is equal."""
        facts, outputs = self._facts, node.outputs
        before = [facts.get(value) for value in outputs]
        inputs = [facts.get(value) or self[value] for value in node.inputs]  # type: ignore[arg-type]
        self._found[node] = _Found(node, opset if self._infer(node, inputs, opset) else _NEVER)
        for value, fact in () if self._is_first else zip(outputs, before, strict=True):
            if fact is not None and fact == facts[value]:
                facts[value] = fact
            else:
                self._changed.add(value)
                self._is_disordered |= any(user in self._found for user in value.consumers())

    def _constant(self, value: ir.Value) -> Fact | None:
        tensor = tensor_of(value)
        if tensor is None:
            return None
        self._tensors[value] = tensor
        return _of_tensor(tensor)

    def _declared(self, value: ir.Value) -> Fact:
        dims = None if value.shape is None else tuple(map(self._dim, value.shape))
        return Fact(annotated_dtype(value), dims)

    def _dim(self, dim: int | ir.SymbolicDim) -> Dim:
        if isinstance(dim, int):  # old exporters write 0 or -1 for a dynamic dim
            return Dim.of(dim) if dim > 0 else self.fresh()
        ours = not dim.value or dim.value.startswith(("?", "min("))  # names that this class makes up
        return self.fresh() if ours else _stated(str(dim.value))

    def _join(self, column: Iterable[Dim]) -> Dim:
        dims = [dim for dim in dict.fromkeys(column) if dim != _ONE]
        if len(dims) < 2:
            return dims[0] if dims else _ONE
        known = [dim for dim in dims if dim.size is not None]
        if known:
            return known[0] if len(known) == 1 else self.fresh()
        dims = [a for a in dims if not any(self._limited(a, b) for b in dims)]
        return dims[0] if len(dims) == 1 else self.fresh()

    def _limited(self, a: Dim, b: Dim) -> bool:
        """True when a = min(b, n) for an n >= 1: beside b it is b, or the operator fails."""
        x, y = self._least.get(a.name or "", (a, a))
        return (x == b and (y.size or 0) > 0) or (y == b and (x.size or 0) > 0)


def _stated(name: str) -> Dim:
    """The dim of a name, or of a sum of names such as `past + sequence`."""
    parts = parts_of(name) or (name,)
    return total(Dim.of(int(part)) if part.isdecimal() else Dim.named(part) for part in parts)


def annotated_dtype(value: ir.Value) -> ir.DataType | None:
    """The dtype that the model states; onnxruntime refuses a model that states a wrong one."""
    return value.type.dtype if isinstance(value.type, ir.TensorType) else None


def _of_tensor(tensor: ir.TensorProtocol) -> Fact:
    dtype, dims = tensor.dtype, dims_of(tensor)
    shape = tuple([Dim.of(size) for size in dims])
    if dtype not in _COUNTING or len(dims) > 1 or math.prod(dims) > MAX_CONTENT:
        return Fact(dtype, shape)
    return Fact(dtype, shape, tuple([Dim.of(x) for x in tensor.numpy().reshape(-1).tolist()]))


def _settled(value: ir.Value, fact: Fact) -> Fact:
    """A fact with the dtype that the model states where none follows, and no content that does not fit it."""
    if fact.content is None and fact.dtype is not None:
        return fact
    dtype = fact.dtype or annotated_dtype(value)
    countable = dtype in _COUNTING and fact.rank is not None and fact.rank <= 1
    fits = fact.content is not None and all(_fits(dim, dtype) for dim in fact.content)
    return Fact(dtype, fact.shape, fact.content if countable and fits else None)


@functools.cache
def _infer() -> Callable[[Call], Sequence[Fact]]:
    """The rules, which import this module."""
    from burnish.passes.shape_rules import infer

    return infer


def _fits(dim: Dim, dtype: ir.DataType | None) -> bool:
    limit = 2**31 if dtype == ir.DataType.INT32 else 2**63
    return all(-limit <= coefficient < limit for _, coefficient in dim.terms)


def _opset(graph: ir.Graph | ir.Function) -> int:
    return graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
