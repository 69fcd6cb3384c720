"""A GGUF file of the llama family as a transformers module, with its tokenizer, and the blocks it stores."""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from burnish.errors import ExportError, shown
from burnish.exporter.causal import causal_source
from burnish.exporter.gguf_config import read_architecture, read_config
from burnish.exporter.gguf_header import Header, bad, read_header
from burnish.exporter.gguf_tokenizer import ends_of_text, tokenizer_files
from burnish.exporter.gguf_weights import StoredTensor, match, read_rope_tensors
from burnish.exporter.needs import need, torch
from burnish.exporter.quiet import quiet
from burnish.exporter.source import TorchSource
from burnish.reader import open_regular


@final
@dataclasses.dataclass(frozen=True)
class GgufModel:
    """A GGUF file, loaded."""

    module: Any
    """A transformers causal language model in eval mode; all its weights dequantised."""
    config: Any
    """Its transformers configuration."""
    attachments: Mapping[str, bytes]
    """config.json, generation_config.json, tokenizer.json and tokenizer_config.json, by name."""
    description: str
    """Where it came from, in words, without paths of this machine."""
    notes: tuple[str, ...]
    stored: Mapping[str, StoredTensor]
    """What the file stores for each weight of the state dict; tied weights are there once."""


def is_gguf(path: Path) -> bool:
    """True for a file that is named so, or that starts as one; whether it is whole, loading it says."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with open_regular(path, follow=True) as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def gguf_source(path: Path, *, last_logits_only: bool = True) -> TorchSource:
    """A GGUF file as a decoder to export: see `load_gguf`, and `burnish.exporter.causal`."""
    found = load_gguf(path)
    source = causal_source(found.module, last_logits_only=last_logits_only)
    source = dataclasses.replace(source, stored=_with_tied(found))
    return source.described(found.description, found.attachments, found.notes)


def _with_tied(found: GgufModel) -> dict[str, StoredTensor]:
    """What is stored, under the names of tied weights too: a graph has them under one, whichever it is."""
    weights = dict(found.module.named_parameters(remove_duplicate=False))
    stored = {id(weights[name]): tensor for name, tensor in found.stored.items() if name in weights}
    return {name: stored[id(weight)] for name, weight in weights.items() if id(weight) in stored}


def load_gguf(path: str | Path, *, dtype: Any = None) -> GgufModel:
    """Load a GGUF file of the llama family.

    The file stays memory-mapped; its tensors are dequantised one by one into the module, so that the peak
    is the module plus a few tensors.

    Args:
        path: the file.
        dtype: of the module; float32 by default.

    Raises:
        ExportError: EXPORT_SOURCE (cannot be read), GGUF_INVALID, GGUF_TRUNCATED, GGUF_ARCH, GGUF_SPLIT,
            GGUF_METADATA, GGUF_TENSOR_TYPE, GGUF_TENSORS, GGUF_TOKENIZER.
        MissingDependencyError: gguf or transformers is not installed.
    """
    name = Path(path).name
    buffer = _map(path)
    header = read_header(buffer, shown(name))
    architecture_name, architecture = read_architecture(header)
    rope = read_rope_tensors(header, buffer)
    given = read_config(header, rope)
    with quiet():
        config, kind = _configuration(header, given)
        skeleton = _skeleton(header, kind, config)
    stored = match(header, buffer, architecture, config, skeleton)
    files, notes = tokenizer_files(header, architecture_name)
    module = _fill(header, kind, config, stored, dtype or torch.float32)
    return GgufModel(
        module,
        module.config,
        _settings(header, module, given) | files,
        f"GGUF file {shown(name)!r}, {type(module).__name__}",
        (_types(header), *notes),
        stored,
    )


def _map(path: str | Path) -> mmap.mmap | bytes:
    try:
        with open_regular(path, follow=True) as file:
            file.seek(0, 2)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        raise bad(
            f"Cannot read {shown(path)}: {why}.", "Give a .gguf file that you may read.", "EXPORT_SOURCE"
        ) from error


def _configuration(header: Header, given: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration, and the class of module it is for."""
    transformers: Any = need("transformers")
    try:
        config = transformers.AutoConfig.for_model(**given)
    except Exception as error:
        raise _refused(header, "configuration", error) from error
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [kind.__name__]
    return config, kind


def _skeleton(header: Header, kind: Any, config: Any) -> dict[str, Any]:
    """The state dict without values: names and shapes."""
    try:
        with torch.device("meta"):
            return dict(kind(config).state_dict())
    except Exception as error:
        raise _refused(header, "metadata", error) from error


def _fill(header: Header, kind: Any, config: Any, stored: Mapping[str, StoredTensor], dtype: Any) -> Any:
    """The module with its weights; transformers' loader asks for them one by one."""
    try:
        with quiet():
            module, info = kind.from_pretrained(
                None, config=config, state_dict=dict(stored), dtype=dtype, output_loading_info=True
            )
    except Exception as error:
        raise _refused(header, "weights", error) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise bad(
                f"{header.name}: transformers found {len(info[what])} {what.replace('_', ' ')}, first "
                f"{shown(sorted(map(str, info[what]))[0])!r}.",
                "This transformers does not fit; burnish was tested with 5.23.",
                "GGUF_TENSORS",
            )
    return module.eval()


def _refused(header: Header, what: str, error: Exception) -> ExportError:
    first = next(iter(str(error).splitlines()), "")
    return bad(
        f"transformers refuses the {what} of {header.name}: {type(error).__name__}: {shown(first)}",
        "The file is damaged, or needs another transformers.",
        "GGUF_METADATA",
    )


def _settings(header: Header, module: Any, given: Mapping[str, Any]) -> dict[str, bytes]:
    """config.json and generation_config.json."""
    ids = {key: given[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ends = ends_of_text(header, ids["eos_token_id"])
    ids["eos_token_id"] = ends if len(ends) > 1 else ids["eos_token_id"]
    generation = {key: value for key, value in ids.items() if value is not None}
    return {
        "config.json": module.config.to_json_string().encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode() + b"\n",
    }


def _types(header: Header) -> str:
    """How many tensors of each type there are, most first."""
    counted = Counter(info.type_name for info in header.tensors.values())
    found = ", ".join(f"{kind} ({count})" for kind, count in counted.most_common())
    return f"weights are dequantised: {found}"
