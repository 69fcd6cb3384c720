"""`burnish.export`: a source becomes one artifact or several, each compared with PyTorch before it is given.

This is the orchestration: the exporter, which has torch, is handed sessions of onnxruntime as callables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from burnish.artifact import Artifact
from burnish.bundle import Bundle, need_folder_for
from burnish.errors import BurnishError, ExportError, MismatchError
from burnish.keeping import check_weights, keep_weights
from burnish.manifest import Manifest
from burnish.runtime.reference import Reference
from burnish.sources import left_out, need_folder, write
from burnish.staging import Stage
from burnish.versions import versions

if TYPE_CHECKING:
    import onnx_ir as ir

    from burnish.exporter.source import TorchParts, TorchSource

Source = TypeVar("Source", "TorchSource", "TorchParts")
Made = TypeVar("Made")

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
            `trust_code` (load pickles and folders with code of their own: both run code), `dtype` (of the
            weights; see `burnish.staging.DTYPES`), `layers_once` (trace layers that are proven to be alike
            once; default True), `tell` (told what is being done).

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
        given = {"example_inputs": example_inputs, "dynamic": dynamic, **options}
        return _upgraded(Path(source), opset, output, seed, given)
    import burnish.exporter.needs  # noqa: F401 - says what is missing before any work is done

    place, tell = None if output is None else Path(output), options.pop("tell", _silent)
    with Stage(place, options.pop("dtype", "auto"), tell) as stage:
        made = _made((source, example_inputs, dynamic), stage, opset=opset, seed=seed, **options)
        if place is None:
            return made
        tell("writing")
        return made.save(place) if isinstance(made, Bundle) else write(made, place)


def _made(
    given: tuple[Any, Any, Any], stage: Stage, *, opset: int, seed: int, layers_once: bool = True,
    **options: Any,
) -> Artifact | Bundle:  # fmt: skip
    """What becomes of a source, its example inputs and its dynamic dims, in memory or on the stage."""
    from burnish.exporter.source import TorchParts, need_own_dims
    from burnish.exporter.sources import resolve

    source, inputs, dynamic = given
    stage.tell("loading")
    chosen = {name: options.pop(name) for name in _OF_SOURCES if name in options}
    found = resolve(source, inputs, adopt=stage.adopt, **chosen)
    found = found if layers_once else found.whole()
    if dynamic:
        need_own_dims(found)
    if isinstance(found, TorchParts):
        return _several(found, stage, opset=opset, seed=seed, **options)
    stage.place(found.module)
    options["dynamic"] = dynamic or found.dynamic
    notes = left_out(found.attachments, stage.output)
    return _alone(found, stage, notes, opset=opset, seed=seed, **options)


def _silent(_text: str) -> None:
    return None


def _upgraded(
    path: Path, opset: int, output: str | os.PathLike[str] | None, seed: int, given: dict[str, Any]
) -> Artifact:
    from burnish.upgrading import need_no_more, upgrade

    tell, ranges = given.pop("tell", _silent), given.pop("ranges", None)
    need_no_more(path, given)
    made = upgrade(path, opset, seed=seed, ranges=ranges, tell=tell)
    return made if output is None else write(made, Path(output))


def _alone(source: TorchSource, stage: Stage, notes: Sequence[str], **options: Any) -> Artifact:
    """One module as one artifact."""
    return _in_whole_if_wrong(source, stage, lambda given: _decoded(given, stage, notes, **options))


def _several(source: TorchParts, stage: Stage, **options: Any) -> Bundle:
    """Modules that belong together as one bundle."""
    return _in_whole_if_wrong(source, stage, lambda given: _translated(given, stage, **options))


def _in_whole_if_wrong(source: Source, stage: Stage, make: Callable[[Source], Made]) -> Made:
    """What is made of a source; once more with every layer traced, where some were not and it is wrong."""
    stage.replayed = False
    try:
        return make(source)
    except MismatchError:
        if not stage.replayed:
            raise
        return make(source.whole())


def _decoded(
    source: TorchSource, stage: Stage, notes: Sequence[str], *, opset: int, seed: int,
    decode_tokens: int | None = None, weights: str = "float", **options: Any,
) -> Artifact:  # fmt: skip
    """One module as one artifact; a language model's decoding is compared too."""
    from burnish.exporter.decoding import Graph, check_decoding

    keep = check_weights(weights, source.stored)
    model, manifest, run = _one(source, stage, "model", opset=opset, seed=seed, **options)
    if notes:
        first = msgspec.structs.replace(manifest.receipts[0], notes=(*manifest.receipts[0].notes, *notes))
        manifest = msgspec.structs.replace(manifest, receipts=(first,))
    graph = Graph(manifest, run)
    if keep:
        stage.tell("writing the weights as they are stored")
        made = Artifact.create(model, manifest, source.attachments)
        made, graph = keep_weights(made, source.stored, seed=seed)
        model, manifest = made.model, made.manifest
    if source.model is not None:
        stage.tell("decoding, token by token")
        receipt = check_decoding(source.model, graph, tokens=decode_tokens, seed=seed)
        manifest = msgspec.structs.replace(manifest, receipts=(*manifest.receipts, receipt))
    if keep:
        return Artifact.create(model, manifest, source.attachments)
    return stage.artifact(model, manifest, source.attachments, alone=True)


def _one(
    source: TorchSource, stage: Stage, name: str, **options: Any
) -> tuple[ir.Model, Manifest, Reference]:
    """One module exported and compared; where that fails, traced once more in other ways."""
    try:
        return _attempt(source, stage, name, **options)
    except (ExportError, MismatchError) as error:
        for again in _again(source, error):
            try:
                return _attempt(source, stage, name, **again, **options)
            except (ExportError, MismatchError):
                continue
        raise


def _again(source: TorchSource, error: BurnishError) -> Iterator[dict[str, Any]]:
    """Other ways to trace: at the sizes that came out wrong, as a branch went another way there; with
    transformers' patches; and last, as the example goes.
    """
    from burnish.exporter.following import FOLLOWED
    from burnish.exporter.library_fixes import MENDED, has_fixes

    if isinstance(error, MismatchError) and error.sizes and source.program is None:
        yield {"at": error.sizes}
    if error.code in MENDED and has_fixes(source.module):
        yield {"fixed": True}
        if error.code in FOLLOWED:
            yield {"fixed": True, "followed": True}


def _attempt(
    source: TorchSource,
    stage: Stage,
    name: str,
    *,
    opset: int,
    seed: int,
    fixed: bool = False,
    at: Mapping[str, int] | None = None,
    **options: Any,
) -> tuple[ir.Model, Manifest, Reference]:
    """Its graph, what is known of it, and how to run it; made in whole where layers exported once differ."""
    from burnish.exporter.library_fixes import NOTE
    from burnish.exporter.parity import check_parity
    from burnish.exporter.torch_export import Weights, export_module

    stage.tell(f"tracing {name}" + (" with transformers' patches" if fixed else ""))
    exported = export_module(
        source.module, source.inputs, opset=opset, input_names=source.input_names, program=source.program,
        weights=Weights(stage.storage, not stage.owned), fixed=fixed, at=at, recast=source.recast, **options,
    )  # fmt: skip
    stage.tell(f"comparing {name} with PyTorch at several sizes")
    try:
        with stage.reference(exported.model, name) as run:
            receipt = check_parity(exported, run, seed=seed)
    except BurnishError:
        if not exported.replayed:
            raise
        return _attempt(source.whole(), stage, name, opset=opset, seed=seed, fixed=fixed, at=at, **options)
    stage.replayed = stage.replayed or exported.replayed
    mended = (NOTE,) if fixed else ()
    if at:
        sizes = ", ".join(f"{dim}={size}" for dim, size in at.items())
        mended = (f"traced at {sizes}, as a trace at the examples' sizes is wrong there",)
    receipt = msgspec.structs.replace(receipt, notes=(*source.notes, *mended, *receipt.notes))
    manifest = msgspec.structs.replace(
        exported.signature, source=source.description, receipts=(receipt,),
        versions=versions(("torch", "transformers")),
    )  # fmt: skip
    return exported.model, manifest, run


def _translated(
    source: TorchParts, stage: Stage, *, opset: int, seed: int, decode_tokens: int | None = None,
    weights: str = "float", **options: Any,
) -> Bundle:  # fmt: skip
    from burnish.exporter.decoding import Graph, check_translating
    from burnish.exporter.encoder_decoder import DECODER, ENCODER

    check_weights(weights, None)
    if stage.output is not None:
        need_folder_for(source.parts, stage.output)
    parts: dict[str, Artifact] = {}
    graphs: dict[str, Graph] = {}
    for name, part in source.parts.items():
        described = part.described(f"{source.description}, {name}", {})
        wanted = _of_part(options, part)
        model, manifest, run = _one(
            described, stage, name, opset=opset, seed=seed, dynamic=part.dynamic, **wanted
        )
        parts[name], graphs[name] = stage.artifact(model, manifest, {}, alone=False), Graph(manifest, run)
    stage.tell("decoding, token by token")
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
