"""The exporters that the table compares: each writes the graphs of a case into a folder, in its own way."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from burnish.benchmarks.export import optimum_runner
from burnish.benchmarks.export.cases import Loaded
from burnish.benchmarks.export.judge import Product, flags
from burnish.errors import BurnishError
from burnish.exporter.encoder_decoder import start_token

LIMIT_S: Final = 300


class PeerError(Exception):
    """A peer failed, in a process of its own or because it has no way to do this."""


Costs = dict[str, float]
"""`seconds` and `peak_mb`, where the exporter ran in a process of its own."""


def export_burnish(case: Loaded, output: Path, _python: Path | None) -> tuple[Product, Costs]:
    """`burnish.export`, with everything that it checks."""
    import burnish

    target = output / "model.burnish"
    if case.folder is not None:
        made: Any = burnish.export(case.folder, task=case.task, output=target)
    else:
        made = burnish.export(case.module, dict(case.inputs), dynamic=case.dynamic, output=target)
    if hasattr(made, "parts"):
        files = {name: target / name / "model.onnx" for name in made.parts}
        return Product(files, "translator"), {}
    style = "causal" if case.form == "decoder" else "graph"
    return Product({"model": target / "model.onnx"}, style), {}


def export_torch(case: Loaded, output: Path, _python: Path | None) -> tuple[Product, Costs]:
    """`torch.onnx.export(dynamo=True)` with its defaults, told which dims vary. It makes no cache."""
    import torch

    path = output / "model.onnx"
    given = {name: tensor.clone() for name, tensor in case.inputs.items()} | flags(case)
    shapes: dict[str, Any] = {name: dict(case.dynamic.get(name, {})) for name in case.inputs}
    shapes |= dict.fromkeys(flags(case))
    torch.onnx.export(
        case.module, (), str(path), kwargs=given, dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    return Product({"model": path}), {}


def export_transformers(case: Loaded, output: Path, _python: Path | None) -> tuple[Product, Costs]:
    """`transformers.exporters.OnnxExporter` with dynamic=True; generative models in its stages."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True)
    given = {name: tensor.clone() for name, tensor in case.inputs.items()}
    if case.form == "single":
        stages = {"model": (case.module, given | flags(case))}
    else:
        stages = _stages(case, given)
    files = {}
    for role, (module, inputs) in stages.items():
        exported = exporter.export(module, inputs, config)
        files[role] = output / f"{role}.onnx"
        exporter.save_program(exported.program, files[role])
    if case.form == "single":
        return Product(files), {}
    return Product(files, "causal" if case.form == "decoder" else "translator"), {}


def _stages(case: Loaded, given: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Its decode stage with several tokens, which does for the prompt too; where the cache holds states, or
    the encoder's keys, its stages for the prompt and for the next token."""
    from transformers.exporters.utils import decompose_for_generation, get_leaf_tensors

    generation = case.module.generation_config
    generation.bos_token_id = generation.decoder_start_token_id = start_token(case.module)
    inputs = {name: tensor for name, tensor in given.items() if not name.startswith("decoder_")}
    if "attention_mask" in inputs and case.form == "decoder":
        inputs["attention_mask"] = inputs["attention_mask"].flip(-1)
    if case.form == "decoder":
        found = decompose_for_generation(case.module, inputs, multi_token_decode=True)
        leaves = get_leaf_tensors(found["decode"][1])
        if not any("states" in name for name in leaves):
            return {"model": found["decode"]}
    found = decompose_for_generation(case.module, inputs)
    first, following = ("prefill", "model") if case.form == "decoder" else ("first", "decoder")
    return {first: found["prefill"], following: found["decode"]}


_OPTIMUM_TASKS: Final[Mapping[str, str]] = {
    "text-generation": "text-generation-with-past",
    "text2text-generation": "text2text-generation-with-past",
    "automatic-speech-recognition": "automatic-speech-recognition-with-past",
    "sentence-embedding": "feature-extraction",
}


def export_optimum(case: Loaded, output: Path, python: Path | None) -> tuple[Product, Costs]:
    """`optimum.exporters.onnx.main_export` in its own environment, with transformers below 4.58.

    Raises:
        PeerError: it failed, is not installed, or the case is no Hugging Face model.
    """
    if python is None:
        raise PeerError("not installed: give its Python with --peers")
    if case.folder is None:
        raise PeerError("exports Hugging Face models only")
    source = output / "source"
    shutil.copytree(case.folder, source)
    _older_config(source / "config.json")
    task = _OPTIMUM_TASKS.get(case.task, case.task) if case.form != "single" else _single_task(case.task)
    command = [str(python), optimum_runner.__file__, str(source), task, str(output / "onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    answer = json.loads((done.stdout.strip().splitlines() or ["{}"])[-1]) if done.returncode == 0 else {}
    if "error" in answer or not answer:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PeerError(answer.get("error", last))
    return _optimum_product(case, output / "onnx"), {k: answer[k] for k in ("seconds", "peak_mb")}


def _single_task(task: str) -> str:
    return "feature-extraction" if task == "sentence-embedding" else task


def _optimum_product(case: Loaded, folder: Path) -> Product:
    roles = {
        "encoder_model.onnx": "encoder", "decoder_model.onnx": "first",
        "decoder_with_past_model.onnx": "decoder", "model.onnx": "model",
    }  # fmt: skip
    files = {role: folder / name for name, role in roles.items() if (folder / name).is_file()}
    if "decoder" in files:
        return Product(files, "translator")
    if "model" not in files:
        raise PeerError(f"wrote {', '.join(sorted(path.name for path in folder.glob('*.onnx')))}")
    return Product(files, "causal" if case.form == "decoder" else "graph")


def _older_config(path: Path) -> None:
    """What transformers 4 reads where 5 writes it elsewhere: the rotary base, and the type of weights."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        rope = part.get("rope_parameters")
        if isinstance(rope, dict) and "rope_theta" in rope:
            part["rope_theta"] = rope["rope_theta"]
            if rope.get("rope_type", "default") != "default":
                part["rope_scaling"] = rope
        if "dtype" in part:
            part["torch_dtype"] = part["dtype"]
    path.write_text(json.dumps(config), encoding="utf-8")


EXPORTERS: Final[Mapping[str, Callable[[Loaded, Path, Path | None], tuple[Product, Costs]]]] = {
    "burnish": export_burnish,
    "torch": export_torch,
    "transformers": export_transformers,
    "optimum": export_optimum,
}
"""By the name that the table and `--exporters` use."""


def said(error: BaseException) -> str:
    """What went wrong in one line: of the innermost error, which names the op."""
    if isinstance(error, BurnishError):
        return f"{error.code}: {error.what}"
    seen = error
    while (cause := seen.__cause__ or (seen.__context__ if "torch.onnx" in str(seen) else None)) is not None:
        seen = cause
    lines = [line.strip() for line in str(seen).splitlines() if line.strip()]
    return f"{type(seen).__name__}: {lines[0] if lines else ''}"[:300]
