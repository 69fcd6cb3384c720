"""Gather(float table)  ->  DequantizeLinear(Gather(s8 table)), one scale a column

An embedding table is often most of a small model's file. Rows are looked up in int8 and only those are
dequantised; a DequantizeLinear before the Gather would dequantise the whole table in every run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx_ir as ir

from burnish.passes.base import constant_of, is_op
from burnish.passes.quantize.find import constant_shape, is_constant
from burnish.passes.quantize.numbers import weight_scale
from burnish.passes.quantize.plan import NodePlan, Plan, TensorPlan
from burnish.passes.quantize.writer import QdqWriter, graph_of

_MIN_ELEMENTS: Final = 1 << 16  # below this the file hardly shrinks


def table_at(node: ir.Node) -> ir.Value | None:
    """The float table [rows, columns] of a Gather, when it is large and only looked up by rows."""
    if not is_op(node, "Gather") or node.attributes.get_int("axis", 0) != 0:
        return None
    table = node.inputs[0]
    if table is None or not table.is_initializer() or not is_constant(table):
        return None
    shape = constant_shape(table)
    if len(shape) != 2 or table.dtype != ir.DataType.FLOAT or table.is_graph_output():
        return None
    if shape[0] * shape[1] < _MIN_ELEMENTS:
        return None
    rows = all(
        is_op(user, "Gather") and index == 0 and user.attributes.get_int("axis", 0) == 0
        for user, index in table.uses()
    )
    return table if rows else None


def table_plan(nodes: Iterable[ir.Node]) -> Plan:
    """The plan that stores the large lookup tables of those nodes as int8."""
    found = [(node, table) for node in nodes if (table := table_at(node)) is not None]
    names = dict.fromkeys(table.name or "" for _, table in found)
    return Plan(
        tuple(
            NodePlan(node.outputs[0].name or "", node.op_type, "weight-only", "table", node.name or "")
            for node, _ in found
        ),
        tuple(TensorPlan(name, "table", "channel", axis=1) for name in names),
    )


def store_table(node: ir.Node, table: ir.Value, writer: QdqWriter) -> None:
    """Let a Gather look up int8 rows, and dequantise what it finds."""
    array = np.asarray(constant_of(table), np.float32)
    output = node.outputs[0]
    result = writer.take_over(output)
    scale = weight_scale(array, 1)
    stored, *params = writer.stored_weight(table.name or "table", array, scale, 1)
    writer.replace(node, 0, stored)
    output.type = ir.TensorType(ir.DataType.INT8)
    dequantize = ir.node(
        "DequantizeLinear", [output, *params], {"axis": -1}, outputs=[result], name=f"{output.name}_dq"
    )
    graph_of(node).insert_after(node, dequantize)
