"""`torch.onnx.export` alone, of the same module that `burnish export` exports: the peer of export_memory."""

from __future__ import annotations

import sys
from typing import Any

import torch

from burnish.exporter.causal import causal_source
from burnish.exporter.dims import read_axes
from burnish.exporter.quiet import quiet


def main() -> None:
    """Export the folder `argv[1]` to the file `argv[2]`: torch's defaults, weights in external data."""
    import transformers

    folder, output = sys.argv[1:3]
    with quiet():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        source = causal_source(model.eval())
        shapes = _shapes(source.inputs, source.dynamic)
        program: Any = torch.onnx.export(
            source.module, (), kwargs=dict(source.inputs), dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    program.save(output, external_data=True)


def _shapes(inputs: Any, dynamic: Any) -> dict[str, dict[int, Any]]:
    axes = read_axes(dynamic, {name: tuple(tensor.shape) for name, tensor in inputs.items()})
    dims = {
        a.name: torch.export.Dim(a.name, min=a.allowed.min, max=a.allowed.max) for a in axes if not a.parts
    }
    shapes: dict[str, dict[int, Any]] = {name: {} for name in inputs}
    for axis in axes:
        shapes[axis.input][axis.axis] = dims.get(axis.name, torch.export.Dim.AUTO)
    return shapes
