"""A model as the judge takes it: the graph as bytes, and its weights lent, so that nothing is held twice."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from burnish.model import copy_model, graph_bytes
from burnish.runtime.reference import LENT, Reference
from burnish.weights import SMALLEST_EXTERNAL, embed

_PLAIN: Final = "biufc"  # kinds of numpy's own dtypes that onnxruntime takes as they are


def judge(model: ir.Model, *, frugal: bool = False) -> Reference:
    """The model as it is written, ready to run; its weights stay where they are.

    Args:
        model: to run.
        frugal: give memory back after every run.

    Raises:
        ModelError: onnxruntime cannot load it, or its graph alone is over 2 GB.
    """
    graph, weights = lend(model)
    return Reference(graph, weights=weights, frugal=frugal)


def lend(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray]]:
    """A protobuf without the larger initializers, and those by name; arrays of files stay memory-mapped.

    Raises:
        ModelError: it is over 2 GB without them (MODEL_SIZE).
    """
    copy, lent = copy_model(model), {}
    embed(copy)
    for name, value in copy.graph.initializers.items():
        array = None if value.is_graph_input() else lendable(value.const_value)
        if array is not None:
            lent[name] = array
            value.const_value = ir.ExternalTensor(
                LENT, 0, array.nbytes, ir.DataType.from_numpy(array.dtype),
                shape=ir.Shape(array.shape), name=name,
            )  # fmt: skip
    return graph_bytes(copy), lent


def lendable(tensor: ir.TensorProtocol | None) -> np.ndarray | None:
    """The values of a tensor that onnxruntime can read where they are; None: it has to be in the graph."""
    if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST_EXTERNAL:
        return None
    array = tensor.numpy()
    return np.require(array, requirements=("C", "A")) if array.dtype.kind in _PLAIN else None


def place_holder(name: str, array: np.ndarray) -> onnx.TensorProto:
    """The protobuf of a lent tensor: everything but its values."""
    proto = onnx.TensorProto(
        name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=onnx.TensorProto.EXTERNAL,
    )  # fmt: skip
    proto.external_data.add(key="location", value=LENT)
    return proto
