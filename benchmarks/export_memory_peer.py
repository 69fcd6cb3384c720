"""`torch.onnx.export` alone, of the same module that `burnish export` exports: the peer of export_memory."""

from __future__ import annotations

import sys
from typing import Any

import torch

from burnish.exporter.capture import dynamic_shapes
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
        axes = read_axes(source.dynamic, {name: tuple(each.shape) for name, each in source.inputs.items()})
        shapes = dynamic_shapes(source.inputs, axes)
        program: Any = torch.onnx.export(
            source.module, (), kwargs=dict(source.inputs), dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    program.save(output, external_data=True)
