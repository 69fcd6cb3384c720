"""Weights that stay as the GGUF file quantised them: `com.microsoft::MatMulNBits` and `GatherBlockQuantized`.

    MatMul(x, Transpose(w))  ->  MatMulNBits(x, part) + ... + MatMul(sums of x over each block, minima)
    Gather(w, ids)           ->  Reshape(GatherBlockQuantized(part, ids) + ... + minima of the rows)

A weight is replaced only where what is written, dequantised, is its float32 value bit for bit. A table that
is both embedding and head is written once. `accuracy_level` is 0: activations stay float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final

import numpy as np
import onnx_ir as ir

from burnish.exporter.gguf_parts import BLOCK, Parts, split
from burnish.exporter.gguf_weights import StoredTensor
from burnish.passes.editing import Editor

_DOMAIN: Final = "com.microsoft"
_BITS: Final = 4


class Kept(NamedTuple):
    """What was done."""

    weights: int
    """How many are written as they were stored."""
    notes: tuple[str, ...]
    """How many of each type, and how many matrices stay float32, with the reasons."""


def keep_blocks(model: ir.Model, stored: Mapping[str, StoredTensor]) -> Kept:
    """Write the weights of a model as its GGUF file stored them, in place, where that is exact.

    Args:
        model: as exported: float32 weights under their state-dict names.
        stored: what the file stores, by state-dict name.
    """
    writer = _Writer(model)
    kept: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for name, value in list(model.graph.initializers.items()):
        source = stored.get(name)
        if source is None or len(source.shape) != 2:
            continue
        why = writer.keep(value, source)
        if why is None:
            kept[source.type_name] += 1
        else:
            left[why] += 1
    if kept:
        model.graph.opset_imports.setdefault(_DOMAIN, 1)
    return Kept(
        kept.total(), (_said(kept), *(f"{count} matrices stay float32: {why}" for why, count in left.items()))
    )


def _said(kept: Counter[str]) -> str:
    types = ", ".join(f"{kind} ({count})" for kind, count in kept.most_common())
    return f"kept as the file stores them, exactly: {types or 'no weights'}"


@final
class _Table(NamedTuple):
    """A weight as initializers."""

    rows: int
    blocks: int
    parts: tuple[tuple[ir.Value, ir.Value, int], ...]
    """Packed nibbles `[rows, blocks, 16]`, scales `[rows, blocks]`, zero point."""
    minima: np.ndarray | None


@final
class _Writer:
    """Replaces weights of one graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._editor = model.graph, Editor(model)
        self._shared: dict[str, ir.Value] = {}
        self._sums: dict[tuple[int, int], ir.Value] = {}

    def keep(self, value: ir.Value, source: StoredTensor) -> str | None:
        """Replace every use of a weight; return why that cannot be, or None."""
        uses, turned = self._uses(value)
        if uses is None:
            return "used otherwise than by a matrix product or as a table"
        parts = split(source)
        if parts is None:
            return f"{source.type_name} has no exact kernel"
        if value.const_value is None or not parts.equal(_as_stored(value.const_value, turned=turned)):
            return f"{source.type_name} that its parts do not make up bit for bit"
        table = self._table(value.name or "weight", parts)
        for node in uses:
            self._replace(node, table)
        if not value.uses():
            del self._graph.initializers[str(value.name)]
        return None

    def _uses(self, value: ir.Value) -> tuple[list[ir.Node] | None, bool]:
        """The products and look-ups that a weight is used in, None where it has another use; and whether it
        is `[in, out]`, as products take it and files do not store it.
        """
        turned = any(_is_product(node, index) for node, index in value.uses())
        found: list[ir.Node] = []
        values = [(value, turned)]
        for node, _ in value.uses():
            if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) in ([], [1, 0]):
                values.append((node.outputs[0], not turned))
        for each, fits_product in values:
            if each.is_graph_output():
                return None, turned
            for node, index in each.uses():
                if node.op_type == "Transpose" and each is value:
                    continue
                if not (_is_product(node, index) if fits_product else _is_look_up(node, index)):
                    return None, turned
                found.append(node)
        plain = all(node.graph is self._graph and _rank(node) is not None for node in found)
        return (found if plain else None), turned

    def _table(self, name: str, parts: Parts) -> _Table:
        written = []
        for number, part in enumerate(parts.parts):
            packed = self._constant(f"{name}_nibbles{number}", part.packed)
            written.append((packed, self._constant(f"{name}_scales{number}", part.scales), part.zero))
        return _Table(parts.rows, parts.blocks, tuple(written), parts.minima)

    def _replace(self, node: ir.Node, table: _Table) -> None:
        made = self._product(node, table) if node.op_type == "MatMul" else self._rows(node, table)
        old = node.outputs[0]
        made.shape, made.type = old.shape, old.type
        self._editor.replace(old, made)

    def _product(self, node: ir.Node, table: _Table) -> ir.Value:
        x: Any = node.inputs[0]
        size = {"K": table.blocks * BLOCK, "N": table.rows, "bits": _BITS, "block_size": BLOCK}
        terms = []
        for packed, scales, zero in table.parts:
            zeros = [] if zero else [self._zeros(table.rows, -(-table.blocks // 2))]
            terms.append(self._node(node, "MatMulNBits", [x, packed, scales, *zeros], size))
        if table.minima is not None:
            minima = self._constant("minima", np.ascontiguousarray(table.minima.T))
            terms.append(self._node(node, "MatMul", [self._block_sums(node, x, table.blocks), minima]))
        return self._added(node, terms)

    def _block_sums(self, node: ir.Node, x: ir.Value, blocks: int) -> ir.Value:
        """`[..., blocks]`: the sum of x over each block of its last axis; made once for each x."""
        key = (id(x), blocks)
        if key not in self._sums:
            shape = self._numbers([0] * ((_rank(node) or 1) - 1) + [blocks, BLOCK])
            in_blocks = self._made(node, "Reshape", [x, shape])
            sums = self._made(node, "ReduceSum", [in_blocks.outputs[0], self._numbers([-1])], {"keepdims": 0})
            # Right where x is made: other products of it may stand before this one.
            maker = x.producer()
            if maker is None:
                self._graph.insert_before(self._graph[0], [in_blocks, sums])
            else:
                self._graph.insert_after(maker, [in_blocks, sums])
            self._sums[key] = sums.outputs[0]
        return self._sums[key]

    def _rows(self, node: ir.Node, table: _Table) -> ir.Value:
        ids: Any = node.inputs[1]
        last = self._numbers([-1])
        how = {"bits": _BITS, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 2}
        terms = []
        for packed, scales, zero in table.parts:
            zeros = [] if zero else [self._zeros(table.rows, table.blocks, 1)]
            wide = self._node(node, "Unsqueeze", [scales, last])
            terms.append(self._node(node, "GatherBlockQuantized", [packed, ids, wide, *zeros], how))
        if table.minima is not None:
            chosen = self._node(node, "Gather", [self._constant("minima", table.minima), ids])
            terms.append(self._node(node, "Unsqueeze", [chosen, last]))
        shape = self._numbers([0] * (_rank(node) or 1) + [table.blocks * BLOCK])
        return self._node(node, "Reshape", [self._added(node, terms), shape])

    def _added(self, node: ir.Node, terms: list[ir.Value]) -> ir.Value:
        total = terms[0]
        for term in terms[1:]:
            total = self._node(node, "Add", [total, term])
        return total

    def _node(
        self,
        replaced: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        """The output of a new node ahead of the one it replaces."""
        node = self._made(replaced, op_type, inputs, attributes)
        self._graph.insert_before(replaced, node)
        return node.outputs[0]

    def _made(
        self,
        replaced: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, int] | None = None,
    ) -> ir.Node:
        """A new node, not in the graph yet, with the origins of the one it replaces."""
        domain = _DOMAIN if op_type in ("MatMulNBits", "GatherBlockQuantized") else ""
        node = ir.node(op_type, inputs, attributes=attributes or {}, domain=domain)
        node.metadata_props.update(replaced.metadata_props)
        node.outputs[0].name = self._editor.fresh(f"{replaced.outputs[0].name}_{op_type.lower()}")
        node.name = f"node_{node.outputs[0].name}"
        return node

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self._editor.initializer(self._editor.fresh(name), ir.tensor(np.ascontiguousarray(array)))

    def _numbers(self, numbers: list[int]) -> ir.Value:
        return self._once("int64", np.array(numbers, np.int64), *numbers)

    def _zeros(self, *shape: int) -> ir.Value:
        """Zero points of 0, shared by all weights of one shape."""
        return self._once("zero_points", np.zeros(shape, np.uint8), *shape)

    def _once(self, kind: str, array: np.ndarray, *parts: int) -> ir.Value:
        name = "_".join([kind, *(str(part).replace("-", "minus") for part in parts)])
        if name not in self._shared:
            self._shared[name] = self._constant(name, array)
        return self._shared[name]


def _as_stored(tensor: ir.TensorProtocol, *, turned: bool) -> np.ndarray:
    array: np.ndarray = tensor.numpy()
    return array.T if turned else array


def _is_product(node: ir.Node, index: int) -> bool:
    return node.op_type == "MatMul" and index == 1


def _is_look_up(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0 and not node.attributes.get_int("axis", 0)


def _rank(node: ir.Node) -> int | None:
    """Of the input that is not the weight."""
    given = node.inputs[1 if node.op_type == "Gather" else 0]
    return None if given is None or given.shape is None else len(given.shape)
