"""What is said of a tensor without asking onnx-ir is what onnx-ir says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from burnish.weights import byte_size, dims_of


def _tensors() -> list[ir.TensorProtocol]:
    made: list[ir.TensorProtocol] = [
        ir.tensor(np.zeros(shape, kind))
        for shape in ((), (0, 3), (3,), (5, 7))
        for kind in (np.float32, np.bool_, np.int64, ml_dtypes.int4, ml_dtypes.bfloat16)
    ]
    made.append(ir.tensor(["one", "two words"]))
    read = [ir.from_proto(ir.to_proto(tensor)) for tensor in made]
    outside = ir.ExternalTensor("x.data", 0, 140, ir.DataType.FLOAT, shape=ir.Shape([5, 7]), name="x")
    return [*made, *read, outside]


@pytest.mark.parametrize("tensor", _tensors(), ids=lambda tensor: f"{tensor.dtype}-{type(tensor).__name__}")
def test_sizes(tensor: ir.TensorProtocol) -> None:
    assert dims_of(tensor) == tuple(tensor.shape.numpy())
    assert byte_size(tensor) == tensor.nbytes
