"""Two that say what a model computes: onnxruntime with its optimiser off, and ONNX's reference evaluator."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from burnish.benchmarks.random_graphs.writer import graphs_of
from burnish.difference import worst
from burnish.errors import ModelError
from burnish.feeds import make_feeds
from burnish.model import signature
from burnish.runtime.reference import Reference

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
Sizes = Mapping[str, int]

_WANTS_ELEMENTS: Final = re.compile(
    r"(batch_size|sequence_length) > 0 was false|Updating cos_cache and sin_cache in RotaryEmbedding"
)
"""What onnxruntime 1.31's Attention and RotaryEmbedding say of an empty batch or sequence: they fail, and
compute nothing wrong. No model's manifest allows 0 by default (`DimRange.min` is 1)."""
_SOFTMAX_OF_ONE_AXIS: Final = 13
_SPECIAL: Final = (np.nan, np.inf, -np.inf, -0.0)


@final
@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of a model at some sizes of its dynamic dims, and what it gives."""

    sizes: Sizes
    feeds: Arrays
    expected: Arrays


def onnxruntime(model: bytes) -> Run:
    """By onnxruntime, as the model is written.

    Raises:
        ModelError: it does not load; calling raises the same where it does not run.
    """
    return Reference(model)


def evaluator(model: bytes) -> Run:
    """By ONNX's own evaluator in Python.

    Raises:
        ModelError: it has no implementation; calling raises the same.
    """
    proto = onnx.ModelProto.FromString(model)
    if _has_old_softmax(proto):
        raise _unable(ValueError("Softmax is not as it was before opset 13"))
    try:
        session = ReferenceEvaluator(proto)
    except Exception as error:
        raise _unable(error) from error

    def run(feeds: Arrays) -> Arrays:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = session.run(None, dict(feeds))
        except Exception as error:
            raise _unable(error) from error
        return dict(zip(session.output_names, map(np.asarray, results), strict=True))

    return run


def _has_old_softmax(proto: onnx.ModelProto) -> bool:
    """True where a Softmax may be of several axes at once: the evaluator takes it for one of opset 13."""
    opset = max((each.version for each in proto.opset_import if not each.domain), default=1)
    return opset < _SOFTMAX_OF_ONE_AXIS and any(
        node.op_type == "Softmax" for graph in graphs_of(proto.graph) for node in graph.node
    )


def _unable(error: Exception) -> ModelError:
    return ModelError(
        f"The reference evaluator fails: {type(error).__name__}: {error}.", "Judge it by onnxruntime.",
        code="MODEL_RUN",
    )  # fmt: skip


def counted_from_front(model: bytes) -> bytes:
    """The same model with the axes of its reductions counted from the first, where they are constants.

    onnxruntime 1.31 keeps an axis of an empty tensor that a reduction names by a negative number.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(model))
    graphs = list(graphs_of(proto.graph))
    ranks = {
        info.name: len(info.type.tensor_type.shape.dim)
        for graph in graphs
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.HasField("shape")
    }
    outer = {tensor.name: tensor for tensor in proto.graph.initializer}
    for graph in graphs:
        constants = outer | {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            rank = ranks.get(node.input[0]) if node.op_type.startswith("Reduce") else None
            if rank:
                _count_from_front(graph, node, rank, constants)
    content: bytes = proto.SerializeToString()
    return content


def _count_from_front(
    graph: onnx.GraphProto, node: onnx.NodeProto, rank: int, constants: Mapping[str, onnx.TensorProto]
) -> None:
    for attribute in node.attribute:
        if attribute.name == "axes":
            attribute.ints[:] = [axis % rank for axis in attribute.ints]
    if len(node.input) > 1 and node.input[1] in constants:
        axes = onnx.numpy_helper.to_array(constants[node.input[1]]) % rank
        node.input[1] = f"{node.output[0]}@axes"
        graph.initializer.append(onnx.numpy_helper.from_array(axes, node.input[1]))


def cases(run: Run, model: bytes, sizes: Sequence[Sizes], seed: int, *, special: bool = False) -> list[Case]:
    """Those of the sizes at which the model runs; none of 0 where it has a Scan.

    onnxruntime 1.31 ends the process where it scans an empty tensor: it divides by 0, or aborts.

    Args:
        run: the oracle of `model`.
        model: whose inputs are made.
        sizes: of dynamic dims; equal ones of those that the model has count once.
        seed: of the inputs.
        special: NaN, infinities and -0.0 among the floats.
    """
    proto = onnx.ModelProto.FromString(model)
    scans = any(node.op_type == "Scan" for graph in graphs_of(proto.graph) for node in graph.node)
    specs = signature(ir.from_proto(proto)).inputs
    named = {dim for spec in specs for dim in spec.shape or () if isinstance(dim, str)}
    wanted = [{name: size for name, size in each.items() if name in named} for each in sizes]
    found = []
    for number, at in enumerate(wanted):
        if at in wanted[:number] or (scans and 0 in at.values()):
            continue
        feeds = make_feeds(specs, at, seed=seed + number)
        if special:
            _spoil(feeds, np.random.default_rng([seed, number]))
        try:
            found.append(Case(at, feeds, run(feeds)))
        except ModelError:
            continue
    return found


def _spoil(feeds: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
    for array in feeds.values():
        if array.dtype.kind == "f" and array.size:
            places = rng.integers(array.size, size=max(1, array.size // 8))
            array.reshape(-1)[places] = rng.choice(_SPECIAL, places.size)


def apart(run: Run, known: Sequence[Case], tolerance: float, refused: list[str] | None = None) -> str:
    """Where and how far a model is from what is expected; empty where it is not.

    Args:
        run: the model.
        known: what is expected of it.
        tolerance: allowed `max_rel`.
        refused: gets what kernels say that take no empty tensors, which is then no failure.

    Raises:
        ModelError: it does not run.
    """
    for case in known:
        at = ", ".join(f"{name}={size}" for name, size in case.sizes.items()) or "its sizes"
        try:
            actual = run(case.feeds)
        except ModelError as error:
            empty = any(array.size == 0 for array in case.feeds.values())
            if refused is None or not empty or not _WANTS_ELEMENTS.search(error.what):
                raise
            refused.append(f"at {at}: {error.what}")
            continue
        found = worst(case.expected, actual)
        if not found.within(tolerance):
            return f"{found.name} differs by {found.max_rel:.3g} at {at}"
    return ""
