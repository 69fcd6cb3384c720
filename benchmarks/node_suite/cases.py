"""ONNX's node tests, made runnable by onnxruntime, in several variants.

None of the cases has an initializer or a dynamic dim, so that folding and shape arithmetic would hardly be
seen: inputs are frozen to constants, or their sizes replaced by names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.backend.test.loader import load_model_tests

COUNT: Final = 1884
"""How many there are in onnx 1.23.2."""
NEWEST_OPSET: Final = 26
"""Of onnxruntime 1.31.1; cases of newer ones are restamped and run where nothing in them changed."""
_NEWEST_IR: Final = 13
_FREEZING_IR: Final = 4  # below, an initializer must be an input as well

Feeds = dict[str, Any]
"""Arrays, lists of arrays or None, by input."""
Variant = Literal["as is", "one frozen", "all frozen", "rest frozen", "named"]
"""`one frozen`: the last input that can be, as weights stand last; `rest frozen`: all but the first;
`named`: every size of an input is a name, equal ones the same."""
VARIANTS: Final[tuple[Variant, ...]] = ("as is", "one frozen", "all frozen")


@cache
def cases() -> list[Case]:
    """All cases, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


def runnable(case: Case, variant: Variant) -> tuple[onnx.ModelProto, Feeds]:
    """The model restamped to what onnxruntime knows, and its feeds; frozen ones become initializers."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for imported in model.opset_import:
        if not imported.domain:
            imported.version = min(imported.version, NEWEST_OPSET)
    model.ir_version = min(model.ir_version, _NEWEST_IR)
    infos = list(model.graph.input)
    given = map(_array, (case.data_sets or [([], [])])[0][0])
    feeds = dict(zip((info.name for info in infos), given, strict=False))
    tensors = {name: tensor for name, value in feeds.items() if (tensor := _tensor(value, name)) is not None}
    for name in _frozen(variant, list(feeds), list(tensors)):
        model.ir_version = max(model.ir_version, _FREEZING_IR)
        model.graph.initializer.append(tensors[name])
        model.graph.input.remove(next(info for info in infos if info.name == name))
        del feeds[name]
    if variant == "named":
        name_dims(model, lambda _, size: f"n{size}")
    return model, feeds


def name_dims(model: onnx.ModelProto, name: Callable[[str, int], str]) -> dict[str, int]:
    """Replace the sizes of the inputs by names; return what they stand for.

    Args:
        model: changed in place.
        name: (`input.axis`, size) -> the name.
    """
    sizes: dict[str, int] = {}
    for info in model.graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                chosen = name(f"{info.name}.{axis}", dim.dim_value)
                sizes[chosen] = dim.dim_value
                dim.dim_param = chosen
    return sizes


def _frozen(variant: Variant, names: list[str], possible: list[str]) -> list[str]:
    match variant:
        case "one frozen":
            return possible[-1:]
        case "all frozen":
            return possible
        case "rest frozen":
            return [name for name in possible if name != names[0]]
    return []


def _array(data: object) -> object:
    return numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else data


def _tensor(value: object, name: str) -> onnx.TensorProto | None:
    """The value as an initializer; None where it is a sequence, absent, or of a type without one."""
    if value is None or isinstance(value, list):
        return None
    try:
        return numpy_helper.from_array(np.asarray(value), name)
    except (RuntimeError, TypeError, ValueError):
        return None
