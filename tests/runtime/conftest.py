"""Small models as bytes, from ONNX text."""

from collections.abc import Callable

import onnx
import onnx.parser
import pytest

Make = Callable[[str], bytes]


@pytest.fixture
def make() -> Make:
    """A model from the text of its graph (opset 21), serialised."""

    def build(text: str) -> bytes:
        header = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
        proto = onnx.parser.parse_model(f"{header}\n{text}")
        return bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())

    return build


@pytest.fixture
def add(make: Make) -> bytes:
    """y = x + z, float32 [n, 3]."""
    return make("g (float[n, 3] x, float[n, 3] z) => (float[n, 3] y) { y = Add (x, z) }")
