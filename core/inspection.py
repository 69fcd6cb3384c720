"""What is in a model: the facts that `burnish inspect` shows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from burnish.errors import BurnishError
from burnish.manifest import Manifest
from burnish.model import histogram, node_count
from burnish.sources import open_source
from burnish.target import TARGETS
from burnish.workbench import Workbench


def describe(model: str | Path) -> dict[str, Any]:
    """Inputs, outputs, opsets, op counts, parameters, bytes, MACs and receipts of a model file.

    MACs are counted at one typical input (batch 1, other dynamic dims 128), by running it and reading
    the shapes of MatMul, Gemm and Conv; None where the model does not run on random inputs.

    Raises:
        ModelError, ArtifactError: the model cannot be read.
    """
    source = open_source(model)
    weights = [value.const_value for value in source.model.graph.initializers.values() if value.const_value]
    macs, note = _macs(source.model, source.manifest)
    return {
        "inputs": source.manifest.inputs,
        "outputs": source.manifest.outputs,
        "dims": source.manifest.dims,
        "target": source.manifest.target,
        "opsets": dict(source.model.opset_imports),
        "ir_version": source.model.ir_version,
        "nodes": node_count(source.model),
        "ops": histogram(source.model),
        "parameters": sum(tensor.size for tensor in weights),
        "weight_bytes": sum(tensor.nbytes for tensor in weights),
        "macs": macs,
        "macs_note": note,
        "recipe": source.manifest.recipe,
        "receipts": source.manifest.receipts,
    }


def _macs(model: ir.Model, interface: Manifest) -> tuple[int | None, str]:
    heavy = [node for node in model.graph if node.op_type in _COUNTERS]
    names = {v.name for node in heavy for v in (*node.inputs[:2], *node.outputs[:1]) if v is not None}
    constants = {name: value for name, value in model.graph.initializers.items() if name in names}
    shapes = {
        name: tuple(value.const_value.shape.numpy())
        for name, value in constants.items()
        if value.const_value is not None
    }
    inner = sorted(str(name) for name in names if name not in shapes)
    try:
        arrays = Workbench(interface, TARGETS["cpu"]).probe(model, inner)
    except BurnishError as error:
        return None, f"(not counted: {error.what})"
    shapes |= {name: array.shape for name, array in arrays.items()}
    total = sum(_COUNTERS[node.op_type](node, shapes) for node in heavy)
    return total, f"at batch 1, other dynamic dims 128{_uncounted(model)}"


def _uncounted(model: ir.Model) -> str:
    """What multiplies too and is not counted: fused ops, and those in bodies and functions."""
    counted = Counter(node.op_type for node in model.graph)
    found = {
        op: count - (counted[op] if op in _COUNTERS else 0)
        for op, count in histogram(model).items()
        if _MULTIPLIES.search(op)
    }
    rest = [f"{count} {op}" for op, count in found.items() if count]
    return f"; not counted: {', '.join(rest)}" if rest else ""


def _matmul(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    inner = shapes[_name(node.inputs[0])][-1]
    return int(np.prod(shapes[_name(node.outputs[0])])) * int(inner)


def _gemm(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    a = shapes[_name(node.inputs[0])]
    inner = a[0] if node.attributes.get_int("transA", 0) else a[1]
    return int(np.prod(shapes[_name(node.outputs[0])])) * int(inner)


def _conv(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    per_output = math.prod(shapes[_name(node.inputs[1])][1:])  # weight: [out, in / groups, *kernel]
    return int(np.prod(shapes[_name(node.outputs[0])])) * per_output


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or ""


_COUNTERS = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}
_MULTIPLIES = re.compile(r"(MatMul|Gemm|Conv|Attention|Einsum|LSTM|GRU|RNN)(?!ert)")
