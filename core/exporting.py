"""`burnish.export`: a source becomes one artifact or several, each compared with PyTorch before it is given.

This is the orchestration: the exporter, which has torch, is handed sessions of onnxruntime as callables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from burnish.artifact import Artifact
from burnish.bundle import Bundle
from burnish.checking import model_file
from burnish.keeping import check_weights, keep_weights
from burnish.manifest import Manifest, Receipt
from burnish.runtime.reference import Reference
from burnish.sources import left_out, need_folder, write
from burnish.versions import versions

if TYPE_CHECKING:
    from burnish.exporter.decoding import Graph
    from burnish.exporter.source import TorchParts, TorchSource


def export(
    source: Any,
    example_inputs: Any = None,
    *,
    dynamic: Any = None,
    opset: int = 20,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Artifact | Bundle:
    """Export a PyTorch model to ONNX, compared with PyTorch at several sizes of every dynamic dim.

    A language model gets its cache as inputs and outputs, and is compared token by token with PyTorch's
    greedy decoding. An encoder-decoder becomes a Bundle with the parts `encoder` and `decoder`.

    Args:
        source: a `torch.nn.Module`; `package.module:callable`, which returns a module and example inputs;
            or a Hugging Face folder.
        example_inputs: a dict of tensors by parameter name, or a tuple; only with a module.
        dynamic: `{"input_ids": {0: "batch", 1: ("sequence", 1, 512)}}`: the name, and perhaps the range,
            of every dim that varies.
        opset: 18 to 24.
        output: where to write it: an `.onnx` file or a folder.
        seed: of the random inputs on which it is compared.
        options: `task` (of a folder), `ranges` (of dims, by name), `output_names`, `keep_metadata`,
            `last_logits_only` (of a language model; default True), `weights` (of a GGUF file: "float", or
            "keep": as stored, where that is exact), `decode_tokens` (how many tokens are
            compared; default 64).

    Returns:
        The artifact, in memory or at `output`; its first receipt is the comparison.

    Raises:
        ExportError: the source cannot be used, or a dim does not stay dynamic.
        MismatchError: the graph does not compute what the module computes (EXPORT_PARITY), or decodes other
            tokens (EXPORT_DECODE).
        MissingDependencyError: torch or transformers is not installed.
        OutputError: `output` cannot be written.
    """
    import burnish.exporter.needs  # noqa: F401 - says what is missing before any work is done
    from burnish.exporter.source import TorchParts
    from burnish.exporter.sources import resolve

    if output is not None:
        need_folder(Path(output))
    chosen = {name: options.pop(name) for name in ("task", "last_logits_only") if name in options}
    tokens, weights = options.pop("decode_tokens", None), options.pop("weights", "float")
    found = resolve(source, example_inputs, **chosen)
    keep = check_weights(weights, getattr(found, "stored", None))
    if isinstance(found, TorchParts):
        made: Artifact | Bundle = _several(found, opset=opset, seed=seed, tokens=tokens, **options)
    else:
        options |= {"dynamic": dynamic or found.dynamic, "notes": left_out(found.attachments, output)}
        made = _single(found, keep=keep, tokens=tokens, opset=opset, seed=seed, **options)
    if output is None:
        return made
    return made.save(Path(output)) if isinstance(made, Bundle) else write(made, Path(output))


def _single(
    source: TorchSource, *, keep: bool, tokens: int | None, opset: int, seed: int, **options: Any
) -> Artifact:
    made, graph = _one(source, opset=opset, seed=seed, **options)
    if keep:
        made, graph = keep_weights(made, source.stored, seed=seed)
    if source.model is not None:
        made = _decoded(made, graph, source.model, tokens=tokens, seed=seed)
    return made


def _one(
    source: TorchSource, *, opset: int, seed: int, notes: Sequence[str] = (), **options: Any
) -> tuple[Artifact, Graph]:
    """One module exported and compared with PyTorch, and its graph ready to run."""
    from burnish.exporter.decoding import Graph
    from burnish.exporter.parity import check_parity
    from burnish.exporter.torch_export import export_module

    exported = export_module(
        source.module, source.inputs, opset=opset, input_names=source.input_names, **options
    )
    with model_file(exported.model) as file:
        run = Reference(file)
        receipt = check_parity(exported, run, seed=seed)
    receipt = msgspec.structs.replace(receipt, notes=(*source.notes, *receipt.notes, *notes))
    manifest = msgspec.structs.replace(
        exported.signature, source=source.description, receipts=(receipt,),
        versions=versions(("torch", "transformers")),
    )  # fmt: skip
    return Artifact.create(exported.model, manifest, source.attachments), Graph(manifest, run)


def _several(source: TorchParts, *, opset: int, seed: int, tokens: int | None, **options: Any) -> Bundle:
    from burnish.exporter.decoding import check_translating
    from burnish.exporter.encoder_decoder import DECODER, ENCODER

    parts: dict[str, Artifact] = {}
    graphs: dict[str, Graph] = {}
    for name, part in source.parts.items():
        described = part.described(f"{source.description}, {name}", {})
        wanted = _of_part(options, part)
        parts[name], graphs[name] = _one(described, opset=opset, seed=seed, dynamic=part.dynamic, **wanted)
    receipt = check_translating(source.model, graphs[ENCODER], graphs[DECODER], tokens=tokens, seed=seed)
    receipt = msgspec.structs.replace(receipt, notes=(*source.notes, *receipt.notes))
    manifest = Manifest(
        (), (), source=source.description, receipts=(receipt,), parts=tuple(parts),
        versions=versions(("torch", "transformers")),
    )  # fmt: skip
    return Bundle(parts, manifest, attachments=source.attachments)


def _of_part(options: dict[str, Any], part: TorchSource) -> dict[str, Any]:
    """The options with the ranges of those dims only that the part has."""
    names = {
        spec if isinstance(spec, str) else spec[0]
        for dims in (part.dynamic or {}).values()
        for spec in dims.values()
    }
    ranges = {name: given for name, given in (options.get("ranges") or {}).items() if name in names}
    return options | {"ranges": ranges}


def _decoded(artifact: Artifact, graph: Graph, model: Any, *, tokens: int | None, seed: int) -> Artifact:
    from burnish.exporter.decoding import check_decoding

    receipt: Receipt = check_decoding(model, graph, tokens=tokens, seed=seed)
    receipts = (*artifact.manifest.receipts, receipt)
    manifest = msgspec.structs.replace(artifact.manifest, receipts=receipts)
    return Artifact.create(artifact.model, manifest, artifact.attachments)
