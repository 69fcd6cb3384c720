"""The smallest model that still fails: outputs cut, values made inputs, nodes bridged, sizes made small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from burnish.benchmarks.random_graphs.oracles import Arrays, onnxruntime
from burnish.errors import ModelError

Fails = Callable[[onnx.ModelProto, Arrays], bool]
"""True where a model with those inputs still shows the failure; False also for a model that does not run."""
_Small = tuple[onnx.ModelProto, Arrays]
_ROUNDS: Final = 6


def shrink(model: onnx.ModelProto, feeds: Arrays, fails: Fails) -> _Small:
    """A model and inputs that fail in the same way, of which nothing more can be taken away.

    Args:
        model: fails with `feeds`; stays as it is.
        feeds: its inputs.
        fails: is asked about every smaller one.
    """
    best: _Small = prune(model, feeds)
    for _ in range(_ROUNDS):
        before = best[0].SerializeToString()
        for smaller in (_fewer_outputs, _cut, _bridge, _smaller_sizes):
            best = _walk(best, smaller, fails)
        if best[0].SerializeToString() == before:
            break
    return best


def _walk(best: _Small, smaller: Callable[[_Small], Iterator[_Small]], fails: Fails) -> _Small:
    """Take the first that fails, and go on from there, until none does."""
    while True:
        for model, feeds in smaller(best):
            candidate = prune(model, feeds)
            if _weight(candidate) < _weight(best) and fails(*candidate):
                best = candidate
                break
        else:
            return best


def _weight(small: _Small) -> tuple[int, int, int]:
    """What counts: nodes, then outputs, then numbers fed."""
    model, feeds = small
    elements = sum(np.asarray(array).size for array in feeds.values())
    return len(model.graph.node), len(model.graph.output), elements


def read_by(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """All names that nodes and their bodies read."""
    names: set[str] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        names.update(node.input)
        for attribute in node.attribute:
            todo.extend(attribute.g.node)
            names.update(info.name for info in attribute.g.output)
    return names


def prune(model: onnx.ModelProto, feeds: Arrays) -> _Small:
    """A copy without what no output needs."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    graph = copy.graph
    needed = {info.name for info in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= read_by([node])
    nodes = list(reversed(kept))
    _keep(graph.node, nodes)
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    _keep(graph.input, [info for info in graph.input if info.name in needed])
    return copy, {info.name: feeds[info.name] for info in graph.input if info.name in feeds}


def _keep(field: Any, wanted: list[Any]) -> None:
    copies = [type(each).FromString(each.SerializeToString()) for each in wanted]
    del field[:]
    field.extend(copies)


def _fewer_outputs(small: _Small) -> Iterator[_Small]:
    """Each output alone; then each value that nodes make, from the first on, as the only one."""
    model, feeds = small
    outputs = list(model.graph.output)
    inner = _types(model)
    names = (name for node in model.graph.node for name in node.output if name in inner)
    for info in (*(outputs if len(outputs) > 1 else ()), *(inner[name] for name in names)):
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        _keep(copy.graph.output, [info])
        yield copy, feeds


def _cut(small: _Small) -> Iterator[_Small]:
    """Each value that nodes make, from the last on, as an input that holds what it was."""
    model, feeds = small
    values, types = _values(model, feeds), _types(model)
    outputs = {info.name for info in model.graph.output}
    for node in reversed(model.graph.node):
        names = [name for name in node.output if name in values and name not in outputs]
        if len(names) != sum(map(bool, node.output)):
            continue
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        _keep(copy.graph.node, [each for each in copy.graph.node if each.output[0] != node.output[0]])
        for name in names:
            copy.graph.input.append(_info(name, values[name], types.get(name)))
        yield copy, {**feeds, **{name: values[name] for name in names}}


def _bridge(small: _Small) -> Iterator[_Small]:
    """Each node left out, an operand in the place of its result."""
    model, feeds = small
    for number, node in enumerate(model.graph.node):
        for name in dict.fromkeys(filter(None, node.input)):
            copy = onnx.ModelProto.FromString(model.SerializeToString())
            del copy.graph.node[number]
            _rename_reads(copy.graph, node.output[0], name)
            if all(info.name != node.output[0] for info in copy.graph.output):
                yield copy, feeds


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    todo = [graph]
    while todo:
        current = todo.pop()
        for node in current.node:
            node.input[:] = [new if name == old else name for name in node.input]
            todo.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))


def _smaller_sizes(small: _Small) -> Iterator[_Small]:
    """Each dynamic dim at 1 or 2."""
    model, feeds = small
    places: dict[str, list[tuple[str, int]]] = {}
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.dim_param:
                places.setdefault(dim.dim_param, []).append((info.name, axis))
    for where in places.values():
        for size in (1, 2):
            smaller = dict(feeds)
            for name, axis in where:
                smaller[name] = np.take(smaller[name], range(min(size, smaller[name].shape[axis])), axis)
            yield model, smaller


def _values(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """All tensors that the nodes of the main graph make; none where that does not run."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    known = {info.name for info in copy.graph.output}
    for name in (name for node in copy.graph.node for name in node.output):
        if name and name not in known:
            copy.graph.output.add(name=name)
    try:
        made = onnxruntime(copy.SerializeToString())(feeds)
    except ModelError:
        return {}
    return {name: array for name, array in made.items() if isinstance(array, np.ndarray)}


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return {}
    return {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}


def _info(name: str, array: np.ndarray, known: onnx.ValueInfoProto | None) -> onnx.ValueInfoProto:
    """What inference says of its dims, where it says something of each; else the sizes that it has."""
    dims = [] if known is None else list(known.type.tensor_type.shape.dim)
    named = [dim.dim_param or dim.dim_value for dim in dims]
    if len(named) != array.ndim or not all(map(_is_known, dims)):
        named = list(array.shape)
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    info: onnx.ValueInfoProto = helper.make_tensor_value_info(name, dtype, named)
    return info


def _is_known(dim: Any) -> bool:
    return bool(dim.dim_param and dim.dim_param.isidentifier()) or dim.HasField("dim_value")
