"""`burnish.export`: a source becomes one artifact or several, each compared with PyTorch before it is given.

This is the orchestration: the exporter, which has torch, is handed sessions of onnxruntime as callables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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

_OF_SOURCES: Final = ("task", "last_logits_only", "trust_code")
"""Options that say how a source is loaded."""


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
    greedy decoding; an encoder-decoder becomes a Bundle of `encoder` and `decoder`.

    Args:
        source: a `torch.nn.Module`; a `torch.export.ExportedProgram`; `package.module:callable`, which
            returns a module and example inputs; a Hugging Face folder; or an `.onnx` file, which is moved to
            the opset.
        example_inputs: a dict of tensors by parameter name, a tuple, or the path of a `.npz` file.
        dynamic: `{"input_ids": {0: "batch", 1: ("sequence", 1, 512)}}`: the name, and perhaps the range,
            of every dim that varies.
        opset: 18 to 24.
        output: where to write it: an `.onnx` file or a folder.
        seed: of the random inputs on which it is compared.
        options: `task` (of a folder), `ranges` (of dims, by name), `output_names`, `keep_metadata`,
            `last_logits_only` (of a language model; default True), `weights` (of a GGUF file: "float", or
            "keep": as stored, where that is exact), `decode_tokens` (how many are compared; default 64),
            `trust_code` (load pickles and folders with code of their own: both run code).

    Returns:
        The artifact; its first receipt is the comparison.

    Raises:
        ExportError: the source cannot be used, or a dim does not stay dynamic.
        MismatchError: the graph computes something else (EXPORT_PARITY), or other tokens (EXPORT_DECODE).
        MissingDependencyError: torch or transformers is not installed.
        OutputError: `output` cannot be written.
    """
    if output is not None:
        need_folder(Path(output))
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() == ".onnx":
        return _upgraded(Path(source), opset, output, seed)
    import burnish.exporter.needs  # noqa: F401 - says what is missing before any work is done
    from burnish.exporter.source import TorchParts
    from burnish.exporter.sources import resolve

    chosen = {name: options.pop(name) for name in _OF_SOURCES if name in options}
    found = resolve(source, example_inputs, **chosen)
    given = {"opset": opset, "seed": seed} | options
    if isinstance(found, TorchParts):
        bundle = _several(found, **given)
        return bundle if output is None else bundle.save(Path(output))
    given |= {"dynamic": dynamic or found.dynamic, "notes": left_out(found.attachments, output)}
    made = _single(found, **given)
    return made if output is None else write(made, Path(output))


def _single(
    source: TorchSource,
    *,
    seed: int,
    decode_tokens: int | None = None,
    weights: str = "float",
    **options: Any,
) -> Artifact:
    keep = check_weights(weights, source.stored)
    made, graph = _one(source, seed=seed, **options)
    if keep:
        made, graph = keep_weights(made, source.stored, seed=seed)
    if source.model is None:
        return made
    return _decoded(made, graph, source.model, tokens=decode_tokens, seed=seed)


def _upgraded(path: Path, opset: int, output: str | os.PathLike[str] | None, seed: int) -> Artifact:
    from burnish.upgrading import upgrade

    made = upgrade(path, opset, seed=seed)
    return made if output is None else write(made, Path(output))


def _one(
    source: TorchSource, *, opset: int, seed: int, notes: Sequence[str] = (), **options: Any
) -> tuple[Artifact, Graph]:
    """One module exported and compared with PyTorch, and its graph ready to run."""
    from burnish.errors import ExportError, MismatchError
    from burnish.exporter.library_fixes import MENDED, has_fixes

    given: dict[str, Any] = {"opset": opset, "seed": seed, "notes": notes} | options
    try:
        return _attempt(source, **given)
    except (ExportError, MismatchError) as error:
        if error.code not in MENDED or not has_fixes(source.module):
            raise
        try:
            return _attempt(source, fixed=True, **given)
        except (ExportError, MismatchError):
            raise error from None


def _attempt(
    source: TorchSource, *, opset: int, seed: int, notes: Sequence[str], fixed: bool = False, **options: Any
) -> tuple[Artifact, Graph]:
    from burnish.exporter.decoding import Graph
    from burnish.exporter.parity import check_parity
    from burnish.exporter.torch_export import export_module

    exported = export_module(
        source.module, source.inputs, opset=opset, input_names=source.input_names, program=source.program,
        fixed=fixed, **options,
    )  # fmt: skip
    with model_file(exported.model) as file:
        run = Reference(file)
        receipt = check_parity(exported, run, seed=seed)
    mended = ("traced with transformers' own patches, as a plain trace fails",) if fixed else ()
    receipt = msgspec.structs.replace(receipt, notes=(*source.notes, *mended, *receipt.notes, *notes))
    manifest = msgspec.structs.replace(
        exported.signature, source=source.description, receipts=(receipt,),
        versions=versions(("torch", "transformers")),
    )  # fmt: skip
    return Artifact.create(exported.model, manifest, source.attachments), Graph(manifest, run)


def _several(
    source: TorchParts,
    *,
    opset: int,
    seed: int,
    decode_tokens: int | None = None,
    weights: str = "float",
    **options: Any,
) -> Bundle:
    from burnish.exporter.decoding import check_translating
    from burnish.exporter.encoder_decoder import DECODER, ENCODER

    check_weights(weights, None)
    parts: dict[str, Artifact] = {}
    graphs: dict[str, Graph] = {}
    for name, part in source.parts.items():
        described = part.described(f"{source.description}, {name}", {})
        wanted = _of_part(options, part)
        parts[name], graphs[name] = _one(described, opset=opset, seed=seed, dynamic=part.dynamic, **wanted)
    receipt = check_translating(
        source.model, graphs[ENCODER], graphs[DECODER], tokens=decode_tokens, seed=seed
    )
    receipt = msgspec.structs.replace(receipt, notes=(*source.notes, *receipt.notes))
    manifest = Manifest(
        (), (), source=source.description, receipts=(receipt,), parts=tuple(parts),
        versions=versions(("torch", "transformers")),
    )  # fmt: skip
    return Bundle(parts, manifest, attachments=source.attachments)


def _of_part(options: dict[str, Any], part: TorchSource) -> dict[str, Any]:
    """The options with the ranges of those dims only that the part has."""
    specs = [spec for dims in (part.dynamic or {}).values() for spec in dims.values()]
    names = {spec if isinstance(spec, str) else spec.name for spec in specs}
    ranges = {name: given for name, given in (options.get("ranges") or {}).items() if name in names}
    return options | {"ranges": ranges}


def _decoded(artifact: Artifact, graph: Graph, model: Any, *, tokens: int | None, seed: int) -> Artifact:
    from burnish.exporter.decoding import check_decoding

    receipt: Receipt = check_decoding(model, graph, tokens=tokens, seed=seed)
    receipts = (*artifact.manifest.receipts, receipt)
    manifest = msgspec.structs.replace(artifact.manifest, receipts=receipts)
    return Artifact.create(artifact.model, manifest, artifact.attachments)
