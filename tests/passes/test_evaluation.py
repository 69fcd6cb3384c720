"""What numpy says at once is what onnx's reference evaluator says."""

from __future__ import annotations

import subprocess
import sys

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
    *(("Cast", [], {"to": to}) for to in (1, 6, 7, 9, 10, 11)),
    *(("Unsqueeze", [np.array(axes, np.int64)], {}) for axes in (0, [0], [-1, 0], [0, 0], [9])),
    *(("Expand", [np.array(sizes, np.int64)], {}) for sizes in ([], [1], [3], [2, 1, 1, 4], [0], [-1])),
    *(
        ("Gather", [np.array(at, np.int64)], {"axis": axis})
        for at in (0, [1, -1], [[0]], [7])
        for axis in (0, 1)
    ),
    ("Gather", [np.array([1], np.uint8)], {}),
    ("Slice", [np.array(x, np.int64) for x in ([0], [1])], {}),
    ("Slice", [np.array(x, np.int64) for x in ([1], [2**62], [-1])], {}),
    ("Slice", [np.array(x, np.int64) for x in ([-1, 0], [-(2**62), 2], [1, 0], [-1, 1])], {}),
    ("Slice", [np.array(x, np.int64) for x in ([0], [1], [5])], {}),
    ("Slice", [np.array(x, np.int64) for x in ([0], [1], [0], [0])], {}),
    ("Not", [], {}),
    ("Sqrt", [], {}),
)
_OPERATORS = ("Add", "Concat", "Div", "Equal", "Mul", "Sub", "Where")


@pytest.mark.parametrize(("op_type", "others", "attributes"), _CASES)
@pytest.mark.parametrize("array", _ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_same_as_the_reference(
    array: np.ndarray, op_type: str, others: list[np.ndarray], attributes: dict[str, object]
) -> None:
    _compare(op_type, [array, *others], attributes)


def _compare(op_type: str, given: list[np.ndarray], attributes: dict[str, object]) -> None:
    arrays = {f"x{place}": each for place, each in enumerate(given)}
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


@pytest.mark.parametrize("op_type", _OPERATORS)
@pytest.mark.parametrize("array", _ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_several_arrays_as_the_reference(array: np.ndarray, op_type: str) -> None:
    conditions = [array.astype(np.bool_)] if op_type == "Where" else []
    for other in (array, array[..., ::-1], array[:1], np.float64(2).astype(array.dtype), array.astype("f")):
        attributes = {"axis": -1} if op_type == "Concat" else {}
        _compare(op_type, [*conditions, array, other], attributes)


def test_common_operators_are_computed_without_the_evaluator() -> None:
    code = (
        "import sys, numpy as np, onnx_ir as ir\n"
        "from burnish.passes.cleanup.evaluation import evaluate\n"
        "x = ir.Value(name='x', const_value=ir.tensor(np.ones((2, 3), np.float32)))\n"
        "i = ir.Value(name='i', const_value=ir.tensor(np.array([1])))\n"
        "for op, inputs in {'Gather': [x, i], 'Slice': [x, i, i], 'Unsqueeze': [x, i], 'Sqrt': [x],\n"
        "                   'Mul': [x, x], 'Expand': [x, i]}.items():\n"
        "    node = ir.node(op, inputs)\n"
        "    assert evaluate(node, 20) is not None\n"
        "assert 'onnx.reference.ops' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def _reference(node: ir.Node, arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    infos = [onnx.helper.make_empty_tensor_value_info(name) for name in arrays]
    outputs = [onnx.helper.make_empty_tensor_value_info("y")]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "g", infos, outputs)
    try:
        result: np.ndarray = ReferenceEvaluator(graph, opsets={"": 20}).run(None, arrays)[0]
    except Exception:  # noqa: BLE001 - it raises whatever numpy does
        return None
    return result
