"""`torch.onnx.export` alone, of the same module that `burnish export` exports: the peer of export_memory."""

from __future__ import annotations

import sys
from typing import Any

import torch

from burnish.exporter.causal import causal_source
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
    known: dict[str, Any] = {}
    return {
        name: {axis: _dim(spec, known) for axis, spec in dynamic.get(name, {}).items()} for name in inputs
    }


def _dim(spec: Any, known: dict[str, Any]) -> Any:
    name, low, high = (spec, 1, None) if isinstance(spec, str) else spec
    if not name.isidentifier():
        return torch.export.Dim.AUTO
    return known.setdefault(name, torch.export.Dim(name, min=low, max=high))
