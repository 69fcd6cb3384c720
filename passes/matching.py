"""What fusion passes share: where they rewrite, what they may match, how nodes are replaced.

for scope in scopes(model):
    for node in list(scope.graph):
        if node.graph is not None:  # not removed by an earlier rewrite
            ...match, then context.permit(node), then scope.replace(...)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Final, final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from burnish.passes.base import Names, bodies, constant_of, is_op, new_initializer, value_names
from burnish.provenance import origins, write_origins

CONTRIB: Final = "com.microsoft"
MADE_BY: Final = "burnish.pass"
"""Key in a node's metadata: the name of the pass that made the node."""
MADE_OF: Final = "burnish.made_of"
"""Key in the `meta` of a tensor that is put together when it is read: equal only for equal elements."""


@final
@dataclasses.dataclass
class Scope:
    """A graph in which a pass rewrites, and what it inherits from the graphs around it."""

    graph: ir.Graph
    """Where the nodes are: the main graph, a function's, or the body of an If, Loop or Scan."""
    root: ir.Graph
    """The outermost graph around `graph` (itself, when it is not a body)."""
    in_function: bool
    """Functions hold no initializers."""
    _names: Names
    _is_settled: bool = True

    @property
    def opset(self) -> int:
        """Version of the standard ops here; a function has its own."""
        return self.root.opset_imports.get("", self.root.opset_imports.get("ai.onnx", 1))

    def use_contrib(self) -> None:
        """Import the domain of onnxruntime's own ops, if it is not yet imported."""
        self.root.opset_imports.setdefault(CONTRIB, 1)

    def fresh(self, name: str) -> str:
        """A value name close to `name` that nothing here, inside or around uses."""
        return self._names.fresh(name)

    def constant(self, before: ir.Node, name: str, array: np.ndarray) -> ir.Value:
        """A new constant: an initializer, or in a function a Constant node ahead of `before`."""
        name = self.fresh(name)
        if not self.in_function:
            return new_initializer(self.root, name, array)
        node = ir.node("Constant", [], {"value": ir.tensor(array, name=name)})
        node.outputs[0].name = name
        node.outputs[0].shape = ir.Shape(array.shape)
        node.outputs[0].dtype = ir.DataType.from_numpy(array.dtype)
        node.metadata_props.update(before.metadata_props)
        self.graph.insert_before(before, [node])
        return node.outputs[0]

    def lazy(
        self,
        before: ir.Node,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        make: Callable[[], np.ndarray],
        made_of: Hashable = None,
    ) -> ir.Value:
        """A new weight as `lazy_tensor` makes it; in a function, a constant."""
        if self.in_function:
            return self.constant(before, name, make())
        name = self.fresh(name)
        tensor = lazy_tensor(name, dtype, shape, make, made_of)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.root.register_initializer(value)
        return value

    def replace(
        self,
        old: Sequence[ir.Node],
        new: Sequence[ir.Node],
        results: Mapping[ir.Value, ir.Value],
        pass_name: str,
    ) -> None:
        """Put `new` nodes in the place of `old` ones, the last of which comes last in the graph.

        `results` maps outputs of `old` to outputs of `new`, which take over their uses, names,
        types, shapes and metadata. The last new node takes the name of the last old one unless it
        has its own; all take the metadata of the old nodes (where keys clash: the last one's; of
        origins all) and say which pass made them. Constants that only the old nodes used go too. Whoever
        did not get the scope from a loop over `scopes` calls `settle` after several results.
        """
        for node in new:
            node.metadata_props.update(_merged_metadata(old) | {MADE_BY: pass_name})
            if node.domain == CONTRIB:
                self.use_contrib()
        names = [node.name or f"node_{node.outputs[0].name}" for node in new[:-1]]
        names.append(new[-1].name or old[-1].name or "")
        self.graph.insert_after(old[-1], new)
        for node, name in zip(new, names, strict=True):
            node.name = name  # insertion makes one up, even for an unnamed node
        for before, after in results.items():
            _take_over(before, after)
        inputs = dict.fromkeys(value for node in old for value in node.inputs)
        self.graph.remove(old, safe=True)
        remove_dead_constants(inputs)
        self._is_settled &= len(results) <= 1  # a user of the first may come before the last one's place

    def settle(self) -> None:
        """Sort the nodes, if a replacement may have put one behind another that reads it, and has."""
        if not self._is_settled:
            settle(self.graph)
        self._is_settled = True


def lazy_tensor(
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    make: Callable[[], np.ndarray],
    made_of: Hashable = None,
) -> ir.LazyTensor:
    """A tensor that is put together when it is read, so that it takes no memory until then.

    `made_of` tells what it is put together from: equal only for equal results, while `make` is there.
    """
    tensor = ir.LazyTensor(lambda: ir.tensor(make()), dtype, ir.Shape(shape), name=name)
    if made_of is not None:
        tensor.meta[MADE_OF] = made_of
    return tensor


def settle(graph: ir.Graph) -> None:
    """Sort the nodes of a graph (and of the bodies in it), if one comes before another that it reads."""
    seen: set[ir.Node] = set()
    for node in graph:
        inside = [each for body in bodies(node) for each in body.all_nodes()]
        makers = [value.producer() for each in (node, *inside) for value in each.inputs if value is not None]
        if any(maker is not None and maker.graph is graph and maker not in seen for maker in makers):
            graph.sort()
            return
        seen.add(node)


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Every graph in which a pass may rewrite; a body comes after the graph that holds it.

    Each is in order again (`Scope.settle`) when the next one is asked for, or no more.
    """
    functions = [function.graph for function in model.functions.values()]
    for root in (model.graph, *functions):
        names = Names(value_names(root))
        todo = [root]
        while todo:
            graph = todo.pop(0)
            scope = Scope(graph, root, root is not model.graph, names)
            try:
                yield scope
            finally:
                scope.settle()
            todo.extend(body for node in graph for body in bodies(node))


def candidates(model: ir.Model, *op_types: str, domain: str = "") -> Iterator[tuple[ir.Node, Scope]]:
    """The nodes of those operators in every graph; not what an earlier rewrite has removed by then."""
    for scope in scopes(model):
        for node in list(scope.graph):
            if node.graph is not None and any(is_op(node, op_type, domain) for op_type in op_types):
                yield node, scope


def made_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, when it is that operator."""
    node = None if value is None else value.producer()
    return node if is_op(node, op_type, domain) else None


def users(value: ir.Value, op_type: str, *, only: bool = False) -> list[ir.Node]:
    """The nodes of that standard operator that use `value`; with `only`, none if anything else does."""
    nodes = [node for node in value.consumers() if is_op(node, op_type)]
    shared = len(value.consumers()) > 1 or value.is_graph_output()
    return [] if only and shared else nodes


def either_way(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two operands of a commutative node, in both orders."""
    first, second = node.inputs
    if first is not None and second is not None:
        yield first, second
        yield second, first


def scalar(value: ir.Value | None, max_rank: int = 1) -> float | None:
    """The number in a constant with one element and at most that rank; None when it is not one.

    The rank matters: a constant [[[2.0]]] would raise the rank of what it is multiplied with.
    """
    array = constant_of(value, max_bytes=16)
    if array is None or array.size != 1 or array.ndim > max_rank or array.dtype.kind in "OSUb":
        return None
    return float(array.reshape(())[()])


def close(actual: float | None, expected: float, dtype: ir.DataType | None = None) -> bool:
    """True when a constant is meant to be `expected`: within 1e-4, or the precision of its type."""
    tolerance = max(1e-4, precision(dtype))
    return actual is not None and math.isclose(actual, expected, rel_tol=tolerance)


def precision(dtype: ir.DataType | None) -> float:
    """The relative spacing of a floating type; 0 for other types."""
    if dtype is None or not dtype.is_floating_point():
        return 0.0
    return float(ml_dtypes.finfo(dtype.numpy()).eps)  # type: ignore[no-untyped-call]


def shape_of(value: ir.Value | None) -> ir.Shape | None:
    """The shape of a value as far as it is known; that of a constant is."""
    if value is None or value.shape is not None:
        return None if value is None else value.shape
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else ir.Shape(tensor.shape.numpy())


def rank(value: ir.Value | None) -> int | None:
    """How many dims a value has, where that is known."""
    shape = shape_of(value)
    return None if shape is None else len(shape)


def dim(value: ir.Value | None, axis: int) -> int | None:
    """The static size of an axis, where that is known."""
    shape = shape_of(value)
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """True when two values provably have one shape; two unnamed dims prove nothing."""
    first, second = shape_of(a), shape_of(b)
    if first is None or second is None or len(first) != len(second):
        return False
    return all(
        x == y and (isinstance(x, int) or x.value is not None) for x, y in zip(first, second, strict=True)
    )


def is_fixed(value: ir.Value) -> bool:
    """True for an input, an initializer or a Constant: it depends on no other node."""
    return value.producer() is None or made_by(value, "Constant") is not None


def obstacle(nodes: Iterable[ir.Node], results: Iterable[ir.Value]) -> str | None:
    """Why `nodes` cannot be replaced by something that makes only `results`; None: they can."""
    inside, kept = list(nodes), list(results)
    for node in inside:
        if node.graph is not inside[0].graph:
            return f"the {node.op_type} inside is in another graph"
        for value in node.outputs:
            outside = any(user not in inside for user in value.consumers())
            if value not in kept and (outside or value.is_graph_output()):
                return f"the {node.op_type} inside is used elsewhere too"
    return None


def remove_dead_constants(values: Iterable[ir.Value | None]) -> None:
    """Remove those of `values` that are initializers or Constants that nothing uses any more."""
    for value in values:
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        node = made_by(value, "Constant")
        if node is not None and node.graph is not None:
            node.graph.remove(node, safe=True)
        elif value.is_initializer() and value.graph is not None and value.name is not None:
            del value.graph.initializers[value.name]


def _take_over(before: ir.Value, after: ir.Value) -> None:
    after.shape = after.shape if before.shape is None else before.shape
    after.type = before.type or after.type
    after.metadata_props.update(before.metadata_props)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    after.name, before.name = before.name, None


def _merged_metadata(nodes: Sequence[ir.Node]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for node in nodes:
        merged |= node.metadata_props
    write_origins(merged, (origin for node in nodes for origin in origins(node.metadata_props)))
    return merged
