"""Writes the fused operator of a plan, and what it needs around it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import final

import numpy as np
import onnx_ir as ir

from burnish.passes.dims import Dim
from burnish.passes.fusion.attention_mask import Atom, Term
from burnish.passes.fusion.attention_operands import CHANNELS, ROWS, SPLIT, Linear, split_bias
from burnish.passes.fusion.attention_plan import CONTRIB, Plan, Source, float_type
from burnish.passes.fusion.attention_tail import Tail, find_tail
from burnish.passes.fusion.axes import ONE, View
from burnish.passes.matching import Scope
from burnish.passes.shapes import Fact, Shape, Shapes, tensor_of

Shared = dict[tuple[object, ...], ir.Value]
"""Masks that were made for an earlier attention of the same graph, by what they are made from."""


@final
class Emitter:
    """Collects the new nodes for one attention, in order."""

    def __init__(self, plan: Plan, scope: Scope, shapes: Shapes, shared: Shared) -> None:
        found = plan.found
        self.nodes: list[ir.Node] = []
        self.reused = False
        """A mask of an earlier attention is read."""
        self.loose: list[ir.Value | None] = []
        """What the old nodes read; some of it may be without a use."""
        self._plan, self._scope, self._shapes, self._shared = plan, scope, shapes, shared
        self._query = {factor.label: factor.size for factor in found.query.factors}
        self._result = {factor.label: factor.size for factor in found.result.factors}
        self._keys = found.frame.keys
        self._dtype = float_type(found, shapes) or ir.DataType.FLOAT
        self._name = found.result.value.name or "attention"
        self._last = found.nodes[-1]

    def replace(self, pass_name: str) -> None:
        """Put the operator in the place of the old nodes."""
        tail = find_tail(self._plan.found.result, self._shapes, joined=not self._plan.is_apart)
        old, target = [*self._plan.found.nodes, *tail.nodes], tail.target
        self._last = old[-1]
        value = self._fused()
        if not self._plan.is_apart:
            value = self._guarded(value)
            make = self._shaped if tail.projection is None else self._projected
            value = make(value, tail)
        self._shapes[value] = self._shapes[target.value]
        self.loose = [each for node in old for each in node.inputs]
        self._scope.replace(old, self.nodes, {target.value: value}, pass_name)

    def _fused(self) -> ir.Value:
        match self._plan.form:
            case "packed":
                return self._packed()
            case "contrib":
                return self._contrib()
        return self._standard()

    def _packed(self) -> ir.Value:
        linears = [source for source in self._plan.sources if isinstance(source, Linear)]
        widths = [len(linear.columns) for linear in linears]
        more = {} if len(set(widths)) == 1 else {"qkv_hidden_sizes": widths}
        bias = self._constant("qkv_bias", np.concatenate([linear.biases() for linear in linears]))
        key, biases, attributes = self._mask_inputs()
        inputs = [self._input(linears[0]), self._packed_weight(linears), bias, key, None, biases]
        return self._operator("Attention", inputs, attributes | more)

    def _packed_weight(self, linears: Sequence[Linear]) -> ir.Value:
        first, whole = linears[0].weight, np.concatenate([linear.columns for linear in linears])
        one = all(linear.weight is first and not linear.transposed for linear in linears)
        if one and np.array_equal(whole, np.arange((self._shapes[first].static or (0, 0))[1])):
            return first
        shape = ((self._shapes[linears[0].x].shape or (ONE,))[-1].size or 0, len(whole))
        makers = [linear.weights() for linear in linears]
        made_of = tuple(linear.identity() for linear in linears)
        return self._lazy(
            "qkv_weight", shape, lambda: np.concatenate([make() for make in makers], axis=1), made_of
        )

    def _contrib(self) -> ir.Value:
        key, biases, attributes = self._mask_inputs()
        values, bias = self._read_all()
        return self._operator("MultiHeadAttention", [*values, bias, key, biases], attributes)

    def _standard(self) -> ir.Value:
        plan = self._plan
        attributes: dict[str, object] = {"scale": plan.scale}
        if not plan.is_apart:
            heads = self._heads(plan.sources[1])
            attributes |= {"q_num_heads": self._query["N"].size, "kv_num_heads": heads}
        if plan.mask.causal:
            attributes["is_causal"] = 1
        mask = [term.value for term in plan.mask.terms]
        inputs = [*(self._rows(source) for source in plan.sources), *mask]
        shape = tuple(self._result[label] for label in "BNSD") if plan.is_apart else self._joined()
        return self._op("Attention", inputs, shape, attributes)

    def _heads(self, source: Source) -> int:
        if isinstance(source, View):
            return next(f.size.size or 0 for f in source.factors if f.label == "N")
        return len(source.columns) // (self._query["D"].size or 1)

    def _operator(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object]
    ) -> ir.Value:
        trimmed = list(inputs)
        while trimmed[-1] is None:
            trimmed.pop()
        common: dict[str, object] = {"num_heads": self._query["N"].size, "scale": self._plan.scale}
        return self._op(op_type, trimmed, self._joined(), common | dict(attributes), domain=CONTRIB)

    def _joined(self) -> Shape:
        sizes = self._result
        return sizes["B"], sizes["S"], sizes["N"] * sizes["D"]

    def _read_all(self) -> tuple[list[ir.Value], ir.Value | None]:
        """Query, key and value without the constants that are added to them, and those constants."""
        sources = self._plan.sources
        if any(isinstance(source, View) and source.labels[1:3] == ("N", "S") for source in sources):
            return [self._rows(s, join=i == 0) for i, s in enumerate(sources)], None
        pairs = [self._split(source) for source in sources]
        if all(bias is None for _, bias in pairs):
            return [value for value, _ in pairs], None
        widths = [(self._shapes[value].shape or (ONE,))[-1].size or 0 for value, _ in pairs]
        dtype = self._dtype.numpy()
        parts = [
            np.zeros(width, dtype) if bias is None else bias
            for (_, bias), width in zip(pairs, widths, strict=True)
        ]
        return [value for value, _ in pairs], self._constant("qkv_bias", np.concatenate(parts))

    def _split(self, source: Source) -> tuple[ir.Value, np.ndarray | None]:
        if isinstance(source, Linear):
            return self._project(source), None if source.bias is None else source.biases()
        if source.labels != ROWS:
            return self._rows(source), None
        value, bias = split_bias(source, self._plan.dying, self._shapes)
        tensor = None if bias is None else tensor_of(bias)
        return value, None if tensor is None else tensor.numpy()

    def _rows(self, source: Source, *, join: bool = False) -> ir.Value:
        """The source as one value; `join`: heads that are apart are joined first."""
        if isinstance(source, Linear):
            rows = self._project(source)
            if source.bias is None:
                return rows
            bias = self._constant("attention_bias", source.biases())
            return self._op("Add", [rows, bias], self._shapes[rows].shape)
        if source.labels == CHANNELS:
            b, width, s = self._shapes[source.value].shape or ()
            return self._op("Transpose", [source.value], (b, s, width), {"perm": [0, 2, 1]})
        if source.labels == SPLIT:
            b, s, n, d = self._shapes[source.value].shape or ()
            return self._joined_heads(source.value, (b, s, n * d))
        if not join or source.labels == ROWS:
            return source.value
        b, n, s, d = self._shapes[source.value].shape or ()
        swapped = self._op("Transpose", [source.value], (b, s, n, d), {"perm": [0, 2, 1, 3]})
        return self._joined_heads(swapped, (b, s, n * d))

    def _joined_heads(self, value: ir.Value, shape: Shape) -> ir.Value:
        target = self._constant("rows_shape", np.array([0, 0, shape[-1].size or -1], np.int64))
        return self._op("Reshape", [value, target], shape)

    def _project(self, linear: Linear) -> ir.Value:
        x, width = self._input(linear), len(linear.columns)
        shape = self._shapes[x].shape or ()
        sizes, made_of = (shape[-1].size or 0, width), (linear.identity(),)
        weight = self._lazy("attention_weight", sizes, linear.weights(), made_of)
        return self._op("MatMul", [x, weight], (*shape[:-1], Dim.of(width)))

    def _input(self, linear: Linear) -> ir.Value:
        """[batch, positions, features]"""
        if not linear.swapped:
            return linear.x
        length, batch, width = self._shapes[linear.x].shape or ()
        swap = {"perm": [1, 0, 2]}
        return self._once(
            ("input", linear.x), lambda: self._op("Transpose", [linear.x], (batch, length, width), swap)
        )

    def _mask_inputs(self) -> tuple[ir.Value | None, ir.Value | None, dict[str, object]]:
        mask = self._plan.mask
        attributes: dict[str, object] = {"unidirectional": 1} if mask.causal else {}
        if mask.key is None:
            return None, self._bias(mask.terms) if mask.terms else None, attributes
        return self._key_mask(mask.key), None, attributes | {"mask_filter_value": mask.filter}

    def _key_mask(self, atom: Atom) -> ir.Value:
        """int32 [batch, keys], positive where a key is visible."""
        if atom.view is None:
            raise TypeError("Not a mask of keys.")
        value, labels, inverted = atom.view.value, atom.view.labels, atom.inverted
        return self._once(("key", value, inverted), lambda: self._visible(value, labels, inverted))

    def _visible(self, value: ir.Value, labels: Sequence[str], inverted: bool) -> ir.Value:
        shape = (self._query["B"], self._keys)
        dtype = self._shapes[value].dtype or ir.DataType.INT64
        if len(labels) > 2:
            axes = [axis for axis, label in enumerate(labels) if not label]
            value = self._with_axes("Squeeze", value, axes, shape, dtype)
        if dtype.is_floating_point():
            value, dtype = self._cast(value, ir.DataType.BOOL), ir.DataType.BOOL
        if inverted and dtype == ir.DataType.BOOL:
            value = self._op("Not", [value], shape, dtype=dtype)
        elif inverted:
            zero = self._constant("zero", np.zeros((), dtype.numpy()))
            value, dtype = self._op("Equal", [value, zero], shape, dtype=ir.DataType.BOOL), ir.DataType.BOOL
        return value if dtype == ir.DataType.INT32 else self._cast(value, ir.DataType.INT32)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self._op("Cast", [value], self._shapes[value].shape, {"to": dtype}, dtype=dtype)

    def _bias(self, terms: tuple[Term, ...]) -> ir.Value:
        """Floats [1 or batch, 1 or heads, queries, keys] that are added to the scores."""
        sizes = (self._query["S"], self._keys)
        return self._once(("bias", terms, sizes), lambda: self._broadcast(self._summed(terms)))

    def _summed(self, terms: Sequence[Term]) -> ir.Value:
        values = [self._additive(term) for term in terms]
        total = values[0]
        for value in values[1:]:
            shape = self._shapes.broadcast(self._shapes[total].shape, self._shapes[value].shape)
            total = self._op("Add", [total, value], shape)
        return total

    def _additive(self, term: Term) -> ir.Value:
        if term.kind == "add":
            return term.value
        fill = self._constant("masked", np.array(term.number, self._dtype.numpy()))
        zero = self._constant("visible", np.array(0, self._dtype.numpy()))
        choices = [zero, fill] if term.inverted else [fill, zero]
        return self._op("Where", [term.value, *choices], self._shapes[term.value].shape)

    def _broadcast(self, value: ir.Value) -> ir.Value:
        shape = self._shapes[value].shape or ()
        wanted = (self._query["S"], self._keys)
        full: Shape = (ONE,) * (4 - len(shape)) + shape[:-2] + wanted
        if shape[-2:] == wanted:
            axes = list(range(4 - len(shape)))
            return self._with_axes("Unsqueeze", value, axes, full, self._dtype) if axes else value
        return self._op("Expand", [value, self._scores_shape()], full)

    def _scores_shape(self) -> ir.Value:
        """int64 [4]: 1, 1, queries, keys."""
        sizes = [size.size for size in (self._query["S"], self._keys)]
        if None not in sizes:
            return self._constant("scores_shape", np.array([1, 1, *sizes], np.int64))
        ones = self._constant("ones", np.ones(2, np.int64))
        lengths = [self._length(source) for source in self._plan.sources[:2]]
        return self._op("Concat", [ones, *lengths], (Dim.of(4),), {"axis": 0}, dtype=ir.DataType.INT64)

    def _length(self, source: Source) -> ir.Value:
        """int64 [1]: how many positions."""
        value = source.x if isinstance(source, Linear) else source.value
        if isinstance(source, Linear):
            axis = 0 if source.swapped else 1
        else:
            axis = 1 if source.labels in (ROWS, SPLIT) else 2
        one, kind = (ONE,), ir.DataType.INT64
        if self._scope.opset >= 15:
            return self._op("Shape", [value], one, {"start": axis, "end": axis + 1}, dtype=kind)
        rank = (Dim.of(len(self._shapes[value].shape or ())),)
        shape = self._op("Shape", [value], rank, dtype=kind)
        return self._op("Gather", [shape, self._constant("axis", np.array([axis]))], one, dtype=kind)

    def _guarded(self, rows: ir.Value) -> ir.Value:
        """Rows where everything is masked are 0."""
        mask, shape = self._plan.mask, self._shapes[rows].shape
        if mask.guard == "none":
            return rows
        zero = self._constant("zero", np.array(0, self._dtype.numpy()))
        if mask.guard == "key" and mask.key is not None:
            key = self._key_mask(mask.key)
            some = self._once(("some", key), lambda: self._some(key))
            return self._op("Where", [some, rows, zero], shape)
        lost = self._op("IsNaN", [rows], shape, dtype=ir.DataType.BOOL)
        return self._op("Where", [lost, zero, rows], shape)

    def _some(self, key: ir.Value) -> ir.Value:
        """bool [batch, 1, 1]: some key is visible."""
        batch, kind = self._query["B"], ir.DataType.INT32
        if self._scope.opset >= 18:
            axes = self._constant("axes", np.array([1], np.int64))
            most = self._op("ReduceMax", [key, axes], (batch, ONE), {"keepdims": 1}, dtype=kind)
        else:
            most = self._op("ReduceMax", [key], (batch, ONE), {"axes": [1], "keepdims": 1}, dtype=kind)
        most = self._with_axes("Unsqueeze", most, [2], (batch, ONE, ONE), kind)
        return self._cast(most, ir.DataType.BOOL)

    def _shaped(self, rows: ir.Value, tail: Tail) -> ir.Value:
        """Rows as the graph had them."""
        labels = tail.target.labels
        batch, length, width = self._joined()
        heads, features = self._result["N"], self._result["D"]
        if labels == ("B", "N", "S", "D"):
            target = self._constant("heads_shape", np.array([0, 0, heads.size, features.size], np.int64))
            apart = self._op("Reshape", [rows, target], (batch, length, heads, features))
            shape = (batch, heads, length, features)
            return self._op("Transpose", [apart], shape, {"perm": [0, 2, 1, 3]})
        if labels == CHANNELS:
            return self._op("Transpose", [rows], (batch, width, length), {"perm": [0, 2, 1]})
        if labels[0].startswith("S"):
            rows = self._op("Transpose", [rows], (length, batch, width), {"perm": [1, 0, 2]})
        if len(labels) == 2:
            target = self._constant("flat_shape", np.array([-1, width.size], np.int64))
            rows = self._op("Reshape", [rows, target], (batch * length, width))
        return rows

    def _projected(self, rows: ir.Value, tail: Tail) -> ir.Value:
        """The Gemm behind the attention, on [batch, positions, features]."""
        gemm, width = tail.projection, tail.target.axes[-1][0].size
        if gemm is None or gemm.inputs[1] is None:
            return rows
        weight, tensor = gemm.inputs[1], tensor_of(gemm.inputs[1])
        if gemm.attributes.get_int("transB", 0) and tensor is not None:
            sizes = [int(each) for each in tensor.shape.numpy()]
            made_of = ("transposed", id(tensor))
            weight = self._lazy("projection", (sizes[1], sizes[0]), lambda: tensor.numpy().T, made_of)
        batch, length = self._result["B"], self._result["S"]
        rows = self._op("MatMul", [rows, weight], (batch, length, width))
        if len(gemm.inputs) > 2 and gemm.inputs[2] is not None:
            rows = self._op("Add", [rows, gemm.inputs[2]], (batch, length, width))
        if tail.target.labels[0] == "B":
            return rows
        return self._op("Transpose", [rows], (length, batch, width), {"perm": [1, 0, 2]})

    def _with_axes(
        self, op_type: str, value: ir.Value, axes: list[int], shape: Shape, dtype: ir.DataType
    ) -> ir.Value:
        """Squeeze or Unsqueeze."""
        if self._scope.opset < 13:
            return self._op(op_type, [value], shape, {"axes": axes}, dtype=dtype)
        constant = self._constant("axes", np.array(axes, np.int64))
        return self._op(op_type, [value, constant], shape, dtype=dtype)

    def _once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        key = (self._scope.graph, *key)
        if key in self._shared:
            self.reused = True
        else:
            self._shared[key] = make()
        return self._shared[key]

    def _op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Shape | None,
        attributes: Mapping[str, object] | None = None,
        *,
        domain: str = "",
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, dict(attributes or {}), domain=domain)  # type: ignore[arg-type]
        value = node.outputs[0]
        value.name = self._scope.fresh(f"{self._name}_{op_type.lower()}")
        value.type = ir.TensorType(dtype or self._dtype)
        value.shape = None if shape is None else ir.Shape([_written(size) for size in shape])
        self._shapes[value] = Fact(dtype or self._dtype, shape)
        self.nodes.append(node)
        return value

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self._scope.constant(self._last, f"{self._name}_{name}", array)

    def _lazy(
        self, name: str, shape: tuple[int, int], make: Callable[[], np.ndarray], made_of: Hashable
    ) -> ir.Value:
        return self._scope.lazy(self._last, f"{self._name}_{name}", self._dtype, shape, make, made_of)


def _written(size: Dim) -> int | str | None:
    """A dim as a model states it: names that were made up for an analysis stay out."""
    made_up = size.name is not None and not size.name.isidentifier()
    return size.size if size.size is not None else (None if made_up else size.name)
