"""What numpy says at once is what onnx's reference evaluator says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from burnish.passes.cleanup.evaluation import evaluate

_ARRAYS = (
    *(np.arange(24).reshape(2, 3, 4).astype(kind) for kind in "efdbilBI?"),
    np.zeros((0, 3), np.float32),
    np.array([np.nan, np.inf, -0.0], np.float16),
)
_CASES = (
    ("Transpose", [], {}),
    ("Transpose", [], {"perm": [2, 0, 1]}),
    *(("Reshape", [np.array(sizes, np.int64)], {}) for sizes in ([-1], [4, -1], [0, -1], [5], [], [-1, -1])),
    *(("Cast", [], {"to": int(to)}) for to in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64)),
)


@pytest.mark.parametrize(("op_type", "others", "attributes"), _CASES)
@pytest.mark.parametrize("array", _ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_same_as_the_reference(
    array: np.ndarray, op_type: str, others: list[np.ndarray], attributes: dict[str, object]
) -> None:
    arrays = {f"x{place}": each for place, each in enumerate([array, *others])}
    inputs = [ir.Value(name=name, const_value=ir.tensor(each)) for name, each in arrays.items()]
    node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
    node.outputs[0].name = "y"
    with np.errstate(all="ignore"):
        found, expected = evaluate(node, 20), _reference(node, arrays)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        result = found[0]
        assert result is not None
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        assert result.tobytes() == expected.tobytes()


def _reference(node: ir.Node, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    infos = [onnx.helper.make_empty_tensor_value_info(name) for name in arrays]
    outputs = [onnx.helper.make_empty_tensor_value_info("y")]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "g", infos, outputs)
    try:
        result: np.ndarray = ReferenceEvaluator(graph, opsets={"": 20}).run(None, arrays)[0]
    except Exception:  # noqa: BLE001 - it raises whatever numpy does
        return None
    return result
