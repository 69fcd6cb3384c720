"""Models of one operator with nothing but what its schema asks for: enough to see which provider takes it.

`python single_ops.py PROVIDER DOMAIN:OP …` prints those that the provider takes.
"""

import sys
from functools import cache
from typing import Any

import onnx
import onnx.defs
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as state
from onnx import TensorProto, helper

from burnish.runtime.opening import placement

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
DTYPES = ("float", "float16", "bfloat16")


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


def placed(domain: str, op_type: str, provider: str) -> bool:
    """True where the provider takes the operator with one of the types, and not its steps."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for dtype in DTYPES:
        try:
            session = ort.InferenceSession(
                single(domain, op_type, dtype), options,
                providers=list(dict.fromkeys([provider, "CPUExecutionProvider"])),
            )  # fmt: skip
        except Exception:  # noqa: BLE001 - whatever it is, that type is not taken
            continue
        if any(node.op_type == op_type and node.provider == provider for node in placement(session)):
            return True
    return False


if __name__ == "__main__":
    if sys.argv[1] != "CPUExecutionProvider":
        ort.preload_dlls()
    pairs = [name.split(":") for name in sys.argv[2:]]
    print(" ".join(op for domain, op in pairs if placed(domain, op, sys.argv[1])))
