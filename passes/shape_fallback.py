"""Shapes of operators that burnish has no rule for, from onnx's own inference of a single node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx
import onnx.defs
import onnx.shape_inference
import onnx_ir as ir

from burnish.passes.base import bodies, tensor_of
from burnish.passes.dims import Dim
from burnish.passes.shapes import Call, Fact, Shapes

_MAX_INPUT_BYTES: Final = 1024  # sizes, scales, pads, splits; weights are not read for their shape


def ask_onnx(call: Call, standard: str | None = None) -> Sequence[Fact]:
    """Facts of the outputs as onnx infers them from the inputs' types; none where it cannot say.

    Args:
        call: the node.
        standard: the operator of ONNX that shapes its result as the node's does, such as Conv for FusedConv.
    """
    node, dims = call.node, dict[str, Dim]()
    op_type, domain = (node.op_type, node.domain) if standard is None else (standard, "")
    if bodies(node) or not onnx.defs.has(op_type, domain):
        return []
    types, data = {}, {}
    for value, fact in zip(node.inputs, call.inputs, strict=True):
        if value is None:
            continue
        if fact.dtype is None or not value.name:
            return []
        types[value.name] = _type(fact, dims)
        tensor = tensor_of(value)
        if tensor is not None and tensor.nbytes <= _MAX_INPUT_BYTES:
            data[value.name] = ir.to_proto(tensor)
    try:
        schema = onnx.defs.get_schema(op_type, call.opset, domain)
        imports = [onnx.helper.make_opsetid("", call.opset)]
        found = onnx.shape_inference.infer_node_outputs(
            schema, _proto(node, schema), types, data, opset_imports=imports
        )
    except Exception:  # noqa: BLE001 - onnx raises what it likes for a node it cannot infer
        return []
    return [_fact(found.get(value.name or ""), dims, call.shapes) for value in node.outputs]


def _proto(node: ir.Node, schema: onnx.defs.OpSchema) -> onnx.NodeProto:
    """The node as the operator of that schema, without the attributes that it does not have."""
    proto: onnx.NodeProto = ir.to_proto(node)
    if (schema.name, schema.domain) != (node.op_type, node.domain):
        known = [attribute for attribute in proto.attribute if attribute.name in schema.attributes]
        proto.op_type, proto.domain = schema.name, schema.domain
        del proto.attribute[:], proto.input[schema.max_input :]
        proto.attribute.extend(known)
    return proto


def _type(fact: Fact, dims: dict[str, Dim]) -> onnx.TypeProto:
    shape: list[int | str] | None = None
    if fact.shape is not None:
        shape = []
        for dim in fact.shape:
            known = next((name for name, each in dims.items() if each == dim), f"d{len(dims)}")
            dims[known] = dim
            shape.append(known if dim.size is None else dim.size)
    return onnx.helper.make_tensor_type_proto(int(fact.dtype or 0), shape)


def _fact(proto: onnx.TypeProto | None, dims: dict[str, Dim], shapes: Shapes) -> Fact:
    if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.elem_type:
        return Fact()
    tensor = proto.tensor_type
    dtype = ir.DataType(tensor.elem_type)
    if not tensor.HasField("shape"):
        return Fact(dtype)
    return Fact(dtype, tuple(_dim(dim, dims, shapes) for dim in tensor.shape.dim))


def _dim(proto: onnx.TensorShapeProto.Dimension, dims: dict[str, Dim], shapes: Shapes) -> Dim:
    if proto.dim_value > 0:
        return Dim.of(proto.dim_value)
    # onnx gives 0 where it multiplies a symbolic size, so that its 0 means nothing
    return dims.get(proto.dim_param) or shapes.fresh()
