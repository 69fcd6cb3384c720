"""Models of one operator with nothing but what its schema asks for: enough to see which provider takes it."""

from functools import cache
from typing import Any

import onnx
import onnx.defs
import onnxruntime.capi.onnxruntime_pybind11_state as state
from onnx import TensorProto, helper

PREFERRED = ("float16", "float", "bfloat16", "uint8", "int32", "int64", "int8", "bool")
ELEMENTS = {
    "float16": TensorProto.FLOAT16, "float": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32, "int64": TensorProto.INT64, "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
}  # fmt: skip
ATTRIBUTES = {
    "num_heads": 2, "kv_num_heads": 2, "K": 64, "N": 64, "bits": 4, "block_size": 32, "groups": 2,
    "channels_last": 1, "num_groups": 2,
}  # fmt: skip
WHOLE = ("QLinearAdd", "QLinearMul")
"""Operators whose types onnxruntime infers with the optional inputs only."""
TWO_RESULTS = ("EmbedLayerNormalization",)


@cache
def _schemas() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    for schema in state.get_all_operator_schema():
        key = (schema.domain, schema.name)
        if key not in found or schema.since_version > found[key].since_version:
            found[key] = schema
    return found


def single(domain: str, op_type: str, prefer: str = "float16") -> bytes:
    """The operator on inputs of unknown rank, of the types that are preferred among those allowed."""
    schema = (
        _schemas()[domain, op_type] if not onnx.defs.has(op_type, domain) else onnx.defs.get_schema(op_type)
    )
    order = (prefer, *(name for name in PREFERRED if name != prefer))
    allowed = {
        c.type_param_str: {_element(text) for text in c.allowed_type_strs} for c in schema.type_constraints
    }
    chosen = {name: next(each for each in order if each in types) for name, types in allowed.items()}

    def dtype(text: str) -> int:
        return ELEMENTS[chosen.get(text) or _element(text)]

    inputs, outputs = (
        [
            helper.make_tensor_value_info(f"{prefix}{at}", dtype(_type(each)), None)
            if _is_required(each) or at < least
            else None
            for at, each in enumerate(parameters)
        ]
        for prefix, parameters, least in (
            ("x", schema.inputs, len(schema.inputs) if op_type in WHOLE else 0),
            ("y", schema.outputs, 2 if op_type in TWO_RESULTS else 0),
        )
    )  # fmt: skip
    attributes: dict[str, Any] = {n: value for n, value in ATTRIBUTES.items() if n in schema.attributes}
    if "activation" in schema.attributes:
        attributes["activation"] = 0 if "GroupNorm" in op_type else "Relu"
    names = [" ".join("" if each is None else each.name for each in group) for group in (inputs, outputs)]
    given = [text.rstrip().split(" ") for text in names]
    node = helper.make_node(op_type, *given, name="node", domain=domain, **attributes)
    graph = helper.make_graph([node], op_type, [*filter(None, inputs)], [*filter(None, outputs)])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def _type(parameter: Any) -> str:
    text: str = parameter.type_str if hasattr(parameter, "type_str") else parameter.typeStr
    return text


def _element(text: str) -> str:
    return text.removeprefix("tensor(").removesuffix(")")


def _is_required(parameter: Any) -> bool:
    return "Optional" not in str(parameter.option)
