"""x * cos + Concat(-x[d/2:], x[:d/2]) * sin  ->  RotaryEmbedding(x, cos, sin)

Source: Su et al., "RoFormer" (2021), in the form that rotates halves (GPT-NeoX, Llama).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Final, final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import Context, Numerics, Pass, constant_of, is_op
from burnish.passes.matching import (
    CONTRIB,
    Scope,
    dim,
    either_way,
    made_by,
    obstacle,
    rank,
    scopes,
    shape_of,
    users,
)

_OPSET: Final = 23  # RotaryEmbedding is standard from here on
_OLDEST: Final = 15  # from here on Shape reads some sizes only, and Reshape takes a size of 0
_HEADS_BACK: Final = (0, 2, 1, 3)
_ELEMENTWISE: Final = ("Cast", "Cos", "Identity", "Sin")


@final
@dataclasses.dataclass(frozen=True)
class _Match:
    x: ir.Value
    """[batch, heads, sequence, size of a head]"""
    cos: ir.Value
    """[batch, sequence, size of a head], both halves alike."""
    sin: ir.Value
    nodes: tuple[ir.Node, ...]
    """All nodes of the pattern; the last one makes the result."""
    turned: int | None = None
    """How many features of a head are turned, from the first on; None: all."""

    @property
    def shared(self) -> bool:
        """Several sentences may have the same cosines: [1, sequence, size of a head]."""
        return dim(self.cos, 0) == dim(self.sin, 0) == 1 != dim(self.x, 0)


@final
@dataclasses.dataclass(frozen=True)
class FuseRotary(Pass):
    """Fuse the arithmetic of rotary position embedding into RotaryEmbedding.

    Known is the form that rotates halves, cut by Slice or Split, of whole heads or of their first features.
    The op is the standard one; in graphs of an opset below 23 onnxruntime's, which gets the cosines of all
    tokens as its table. Where heads are split and joined again around it, it works on [batch, sequence,
    hidden], and their Transposes go; where they are split only, it comes before that.

    Cosines and sines must provably have the sequence of what they are multiplied with, and its batch, for the
    kernels do not broadcast. Those of batch 1 are the table of onnxruntime's op, at any opset, whose tokens
    are then counted from 0 in every sentence. onnxruntime's op refuses an empty batch (it fails and computes
    nothing wrong).
    """

    name: ClassVar[str] = "fuse-rotary"
    numerics: ClassVar[Numerics] = Numerics.ROUNDING
    looks_for: ClassVar[frozenset[str]] = frozenset({"Neg"})

    def rewrite(self, model: ir.Model, context: Context) -> int:
        """Return how many embeddings were fused."""
        count = 0
        for scope in scopes(model):
            tables = _Tables(scope)
            for node in list(scope.graph):
                if node.graph is not None and is_op(node, "Neg"):
                    count += _fuse(node, scope, tables, context)
        return count


def _fuse(neg: ir.Node, scope: Scope, tables: _Tables, context: Context) -> bool:
    found = next(_matches(neg), None)
    if found is None:
        return False
    result = found.nodes[-1].outputs[0]
    why = _refusal(found, scope, context) or obstacle(found.nodes, [result])
    if not context.permit_unless(why, found.nodes[-1]):
        return False
    behind = _joined(result, found.x)
    rows = None if behind else _rows(found)
    old = (*found.nodes, *behind)
    before, x = _flat(found.x, old[-1], scope) if behind else ([], rows or found.x)
    joined = bool(behind) or rows is not None
    heads: dict[str, int] = {"num_heads": dim(found.x, 1) or 0} if joined or found.turned else {}
    if found.turned is not None:
        heads["rotary_embedding_dim"] = found.turned
    domain = _domain(found, scope)
    new = ir.node("RotaryEmbedding", tables.operands(found, x, domain), heads, domain=domain)
    after = [] if rows is None else _apart(new, found.x, old[-1], scope)
    last = after[-1] if after else new
    scope.replace(old, [*before, new, *after], {old[-1].outputs[0]: last.outputs[0]}, FuseRotary.name)
    return True


def _domain(found: _Match, scope: Scope) -> str:
    return "" if scope.opset >= _OPSET and not found.shared else CONTRIB


def _refusal(found: _Match, scope: Scope, context: Context) -> str | None:
    domain = _domain(found, scope)
    if not context.target.has_kernel(domain, "RotaryEmbedding"):
        return f"target {context.target.name} has no kernel for {domain or 'ai.onnx'}::RotaryEmbedding"
    if scope.opset < _OLDEST:
        return f"numbering the tokens needs opset {_OLDEST}; this graph has {scope.opset}"
    if found.x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"RotaryEmbedding takes float32 or float16, not {found.x.dtype}"
    if {found.cos.dtype, found.sin.dtype} != {found.x.dtype}:
        return "cosines have another type than what they are multiplied with"
    if not isinstance(dim(found.x, 1), int) or not isinstance(dim(found.x, 3), int):
        return "the number of heads and their size must be known"
    for table in (found.cos, found.sin):
        if not _same_dims(table, found):
            return "cosines do not provably have the batch and sequence of what they are multiplied with"
        if not _halves_alike(table):
            return "the halves of the cosines are not provably alike"
    return None


def _same_dims(table: ir.Value, found: _Match) -> bool:
    a, b = shape_of(table), shape_of(found.x)
    if a is None or b is None or len(a) != 3 or len(b) != 4 or a[2] != (found.turned or b[3]):
        return False
    return _alike(a[1], b[2]) and (found.shared or _alike(a[0], b[0]))


def _alike(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """True when two dims are provably one size."""
    return one == other and (isinstance(one, int) or one.value is not None)


def _halves_alike(table: ir.Value | None) -> bool:
    """True for what is made, element by element, of one value joined with itself."""
    node = None if table is None else table.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "Concat":
        return (
            node.attributes.get_int("axis") in (-1, 2)
            and len(node.inputs) == 2
            and len(set(node.inputs)) == 1
        )
    if node.op_type in _ELEMENTWISE:
        return _halves_alike(node.inputs[0])
    if node.op_type != "Mul":
        return False
    return any(
        _halves_alike(one) and (array := constant_of(other, max_bytes=16)) is not None and array.size == 1
        for one, other in either_way(node)
    )


def _matches(neg: ir.Node) -> Iterator[_Match]:
    for turned in users(neg.outputs[0], "Concat", only=True):
        halves = _halves(neg, turned)
        if halves is None:
            continue
        x, cuts = halves
        for product in users(turned.outputs[0], "Mul", only=True):
            sin = next(other for one, other in either_way(product) if one is turned.outputs[0])
            for total in users(product.outputs[0], "Add", only=True):
                straight = next(other for one, other in either_way(total) if one is product.outputs[0])
                yield from _whole(x, sin, straight, (*cuts, neg, turned, product), total)


def _whole(
    x: ir.Value, sin: ir.Value, straight: ir.Value, nodes: tuple[ir.Node, ...], total: ir.Node
) -> Iterator[_Match]:
    product = made_by(straight, "Mul")
    for one, cos in () if product is None else either_way(product):
        tables = _table(cos), _table(sin)
        if one is x and product is not None and tables[0] is not None and tables[1] is not None:
            found = _Match(x, tables[0], tables[1], (*nodes, product, total))
            yield _partial(found) or found


def _partial(found: _Match) -> _Match | None:
    """With the features that are not turned: Concat(turned(x[:r]), x[r:])."""
    cut, result = made_by(found.x, "Slice"), found.nodes[-1].outputs[0]
    x, turned = None if cut is None else cut.inputs[0], dim(found.x, 3)
    size = dim(x, 3)
    if cut is None or x is None or turned is None or size is None or _bounds(cut, size) != (0, turned):
        return None
    for join in users(result, "Concat", only=True):
        rest = made_by(join.inputs[1], "Slice") if len(join.inputs) == 2 else None
        along = join.attributes.get_int("axis") in (-1, 3) and join.inputs[0] is result
        if along and rest is not None and rest.inputs[0] is x and _bounds(rest, size) == (turned, size):
            nodes = (cut, *found.nodes, rest, join)
            return dataclasses.replace(found, x=x, nodes=nodes, turned=turned)
    return None


def _table(value: ir.Value) -> ir.Value | None:
    """Cosines without the axis of the heads; it is an attribute where the opset is too old anyway."""
    node = made_by(value, "Unsqueeze")
    axes = constant_of(node.inputs[1]) if node is not None and len(node.inputs) > 1 else None
    return (
        node.inputs[0] if node is not None and axes is not None and axes.reshape(-1).tolist() == [1] else None
    )


def _halves(neg: ir.Node, turned: ir.Node) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """What is cut into halves, of which the second, negated, comes first; and what cuts it."""
    upper, lower = neg.inputs[0], turned.inputs[1] if len(turned.inputs) == 2 else None
    if turned.inputs[0] is not neg.outputs[0] or upper is None or lower is None:
        return None
    if turned.attributes.get_int("axis") not in (-1, 3):
        return None
    split = made_by(upper, "Split")
    if split is not None:
        halves = len(split.outputs) == 2 and list(split.outputs) == [lower, upper]
        x = split.inputs[0]
        along = split.attributes.get_int("axis", 0) in (-1, 3) and dim(lower, 3) == dim(upper, 3) is not None
        return (x, (split,)) if halves and along and x is not None else None
    first, second = made_by(lower, "Slice"), made_by(upper, "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    x = first.inputs[0]
    size = dim(x, 3)
    if x is None or size is None or rank(x) != 4:
        return None
    bounds = _bounds(first, size), _bounds(second, size)
    return (x, (first, second)) if bounds == ((0, size // 2), (size // 2, size)) else None


def _bounds(node: ir.Node, size: int) -> tuple[int, int] | None:
    """Start and end of a Slice along the last of four axes, by ones."""
    numbers = [constant_of(value) for value in node.inputs[1:]]
    if len(numbers) < 3 or any(array is None or array.size != 1 for array in numbers):
        return None
    start, end, axis, *step = (int(array.reshape(-1)[0]) for array in numbers if array is not None)
    if axis not in (-1, 3) or step not in ([], [1]):
        return None
    start, end, _ = slice(start, end).indices(size)
    return start, end


def _joined(result: ir.Value, x: ir.Value) -> tuple[ir.Node, ...]:
    """The Transpose and Reshape behind it that join the heads again; none where something else follows."""
    back = users(result, "Transpose", only=True)
    if len(back) != 1 or not _swaps_heads(back[0]) or _split(x) is None:
        return ()
    join = users(back[0].outputs[0], "Reshape", only=True)
    hidden = (dim(x, 1) or 0) * (dim(x, 3) or 0)
    return (back[0], join[0]) if len(join) == 1 and _joins(join[0], hidden) else ()


def _joins(node: ir.Node, hidden: int) -> bool:
    """True where the last two of four axes become one."""
    if rank(node.outputs[0]) == 3 and dim(node.outputs[0], 2) == hidden:
        return True
    target = constant_of(node.inputs[1])
    kept = node.attributes.get_int("allowzero", 0) == 0
    return target is not None and kept and target.tolist() in ([0, 0, -1], [0, 0, hidden])


def _split(x: ir.Value) -> ir.Value | None:
    """[batch, sequence, heads, size], where `x` is that transposed."""
    node = made_by(x, "Transpose")
    return node.inputs[0] if node is not None and _swaps_heads(node) else None


def _swaps_heads(node: ir.Node) -> bool:
    return tuple(node.attributes.get_ints("perm", ())) == _HEADS_BACK


def _flat(x: ir.Value, before: ir.Node, scope: Scope) -> tuple[list[ir.Node], ir.Value]:
    """`x` as [batch, sequence, hidden], and the nodes that are needed for that."""
    split = _split(x)
    hidden = (dim(x, 1) or 0) * (dim(x, 3) or 0)
    reshape = made_by(split, "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    if source is not None and rank(source) == 3 and dim(source, 2) == hidden:
        return [], source
    target = scope.constant(before, f"{x.name}_joined_shape", np.array([0, 0, hidden], np.int64))
    node = ir.node("Reshape", [split, target])
    node.outputs[0].name = scope.fresh(f"{x.name}_joined")
    node.outputs[0].type = x.type
    return [node], node.outputs[0]


def _rows(found: _Match) -> ir.Value | None:
    """[batch, sequence, hidden], of which nothing but the pattern reads the heads."""
    split = _split(found.x)
    reshape = made_by(split, "Reshape")
    rows = None if reshape is None else reshape.inputs[0]
    apart, joined = shape_of(split), shape_of(rows)
    if split is None or rows is None or apart is None or joined is None or len(joined) != 3:
        return None
    own = set(found.x.consumers()) <= set(found.nodes) and len(split.consumers()) == 1
    kept = not found.x.is_graph_output() and not split.is_graph_output()
    hidden = (dim(found.x, 1) or 0) * (dim(found.x, 3) or 0)
    fits = _alike(joined[0], apart[0]) and _alike(joined[1], apart[1]) and joined[2] == hidden
    return rows if own and kept and fits else None


def _apart(new: ir.Node, x: ir.Value, before: ir.Node, scope: Scope) -> list[ir.Node]:
    """The nodes that split the heads of [batch, sequence, hidden] like those of `x`."""
    sizes = np.array([0, 0, dim(x, 1) or 0, dim(x, 3) or 0], np.int64)
    rows = new.outputs[0]
    rows.name, rows.type = scope.fresh(f"{x.name}_rotated"), x.type
    split = ir.node("Reshape", [rows, scope.constant(before, f"{x.name}_split_shape", sizes)])
    split.outputs[0].name, split.outputs[0].type = scope.fresh(f"{x.name}_split"), x.type
    return [split, ir.node("Transpose", split.outputs, {"perm": _HEADS_BACK})]


@final
class _Tables:
    """The halves of cosines and sines of one graph, each made once, where it is first known."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._made: dict[ir.Value, ir.Value] = {}
        self._positions: dict[ir.Value, ir.Value] = {}
        self._start: ir.Value | None = None

    def operands(self, found: _Match, x: ir.Value, domain: str) -> list[ir.Value]:
        """The inputs of the op, in its order."""
        if not domain:
            return [x, self._half(found.cos), self._half(found.sin)]
        numbers = self._first(found.cos) if found.shared else self._numbered(found.cos)
        return [x, numbers, self._flat_half(found.cos), self._flat_half(found.sin)]

    def _first(self, table: ir.Value) -> ir.Value:
        """[1]: tokens are counted from 0."""
        if self._start is None or self._scope.in_function:
            (self._start,) = self._ints(table, [0])
        return self._start

    def _half(self, table: ir.Value) -> ir.Value:
        """The first half of its last axis."""
        if table not in self._made:
            size = (dim(table, 2) or 0) // 2
            made = self._after(table, "Slice", [table, *self._ints(table, [0], [size], [-1])], "half")
            made.type, shape = table.type, shape_of(table)
            made.shape = None if shape is None else ir.Shape([*list(shape)[:2], size])
            self._made[table] = made
        return self._made[table]

    def _flat_half(self, table: ir.Value) -> ir.Value:
        """The same with all tokens in one axis."""
        half = self._half(table)
        if half not in self._made:
            (target,) = self._ints(table, [-1, (dim(table, 2) or 0) // 2])
            self._made[half] = self._after(half, "Reshape", [half, target], "rows")
            self._made[half].type = table.type
        return self._made[half]

    def _numbered(self, table: ir.Value) -> ir.Value:
        """[batch, sequence]: which row of the flat table belongs to which token."""
        if table not in self._positions:
            sizes = self._after(table, "Shape", [table], "sizes", start=0, end=2)
            count = self._after(sizes, "ReduceProd", [sizes], "count", keepdims=0)
            zero, one = (self._number(table, number) for number in (0, 1))
            numbers = self._after(count, "Range", [zero, count, one], "numbers")
            self._positions[table] = self._after(
                numbers, "Reshape", [numbers, sizes], "rows_of_tokens", allowzero=1
            )
            for value in (sizes, count, numbers, self._positions[table]):
                value.dtype = ir.DataType.INT64
        return self._positions[table]

    def _ints(self, table: ir.Value, *lists: list[int]) -> list[ir.Value]:
        made = (np.array(numbers, np.int64) for numbers in lists)
        return [self._scope.constant(self._maker(table), f"{table.name}_ints", array) for array in made]

    def _number(self, table: ir.Value, number: int) -> ir.Value:
        return self._scope.constant(self._maker(table), f"{table.name}_number", np.array(number, np.int64))

    def _after(
        self, value: ir.Value, op_type: str, inputs: list[ir.Value], name: str, **attributes: int
    ) -> ir.Value:
        """A node right behind the one that makes `value`, with its metadata."""
        node, maker = ir.node(op_type, inputs, attributes), self._maker(value)
        node.metadata_props.update(maker.metadata_props)
        node.outputs[0].name = self._scope.fresh(f"{value.name}_{name}")
        node.name = f"node_{node.outputs[0].name}"
        self._scope.graph.insert_after(maker, node)
        return node.outputs[0]

    @staticmethod
    def _maker(value: ir.Value) -> ir.Node:
        node = value.producer()
        if node is None:
            raise TypeError(f"{value.name!r} is made by no node.")
        return node
