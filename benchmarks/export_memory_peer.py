"""Other exporters of the module that `burnish export` exports: the peers of export_memory."""

from __future__ import annotations

import sys
from typing import Any

import torch

from burnish.exporter.capture import dynamic_shapes
from burnish.exporter.causal import causal_source
from burnish.exporter.dims import read_axes
from burnish.exporter.quiet import quiet


def torch_alone() -> None:
    """Export the folder `argv[1]` to the file `argv[2]`: torch's defaults, weights in external data."""
    folder, output = sys.argv[1:3]
    with quiet():
        source = causal_source(_load(folder))
        axes = read_axes(source.dynamic, {name: tuple(each.shape) for name, each in source.inputs.items()})
        shapes = dynamic_shapes(source.inputs, axes)
        program: Any = torch.onnx.export(
            source.module, (), kwargs=dict(source.inputs), dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    program.save(output, external_data=True)


def transformers_exporter() -> None:
    """The same with `transformers.exporters`, dims dynamic: its stage that decodes with a cache."""
    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.utils import decompose_for_generation

    folder, output = sys.argv[1:3]
    with quiet():
        model, ids = _load(folder), torch.arange(16).reshape(2, 8)
        mask = torch.tensor([[1] * 8, [0] * 2 + [1] * 6])  # without padding the graph would have no mask
        given = {"input_ids": ids, "attention_mask": mask}
        module, inputs = decompose_for_generation(model, given, multi_token_decode=True)["decode"]
        exporter = OnnxExporter()
        exported = exporter.export(module, inputs, OnnxConfig(dynamic=True))
    exporter.save_program(exported.program, output)


def _load(folder: str) -> Any:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    return model.eval()
