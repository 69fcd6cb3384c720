"""A Hugging Face folder (config.json, safetensors weights, tokenizer) as one or several modules to export.

What a model takes is read from the module, its configuration and its tokenizer, never from a list of
architectures. Nothing is downloaded, and no code of the folder is run unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.errors import ExportError
from burnish.exporter.causal import causal_source
from burnish.exporter.dims import Assumed, DimSpec
from burnish.exporter.encoder_decoder import encoder_decoder_source
from burnish.exporter.example_inputs import longest, make_examples, text_dims
from burnish.exporter.failures import said
from burnish.exporter.folder import attachments_of, need_weights, read_config
from burnish.exporter.modules import plain
from burnish.exporter.needs import need
from burnish.exporter.pooling import read_pooling, sentence_embedding
from burnish.exporter.quiet import quiet
from burnish.exporter.source import TRUSTED, Adopt, Recast, TorchParts, TorchSource, left_as_is
from burnish.exporter.tasks import Task, find_task, is_known, loader_of

_TOKENIZER: tuple[str, ...] = ("tokenizer_config.json", "tokenizer.json")


def load_folder(
    folder: Path,
    task: str | None = None,
    *,
    last_logits_only: bool = True,
    trust_code: bool = False,
    adopt: Adopt = left_as_is,
) -> TorchSource | TorchParts:
    """Load a model in the type that its weights are stored in.

    Args:
        folder: holds config.json and model.safetensors (or its shards with their index).
        task: see `burnish.exporter.tasks.TASKS`; default: what the configuration's `architectures` says.
        last_logits_only: of a language model: `logits` of each row's last token only.
        trust_code: run the folder's own code, and load weights that are pickles.
        adopt: told of the model before it runs.

    Raises:
        ExportError: a file is missing or the kind of model is not known (EXPORT_SOURCE); the weights are
            a pickle (PICKLE_REFUSED), or the model is code in the folder (CODE_REFUSED); it runs on no
            inputs that can be made (EXPORT_INPUTS); its cache is of an unknown kind (EXPORT_CACHE).
        MissingDependencyError: transformers is not installed.
    """
    config = read_config(folder)
    trusted: dict[str, Any] = {}
    if need_weights(folder, trust_code=trust_code):
        trusted["use_safetensors"] = False
    if _own_code(config, folder, trust_code=trust_code):
        trusted["trust_remote_code"] = True
    chosen = find_task(config, folder, task)
    with quiet():
        module, notes = _load(loader_of(chosen, config), folder, trusted)
        wanted = _tokenizer_inputs(folder)
    notes = (*notes, *adopt(module))
    found = _source(module, chosen, folder, wanted, last_logits_only=last_logits_only)
    description = f"Hugging Face folder {folder.resolve().name!r}, {type(module).__name__}, {chosen.name}"
    return found.described(description, attachments_of(folder), (*notes, *([TRUSTED] if trusted else [])))


def _own_code(config: Mapping[str, Any], folder: Path, *, trust_code: bool) -> bool:
    """True where the model is Python code in the folder, and that is trusted."""
    if not config.get("auto_map") or is_known(config.get("model_type")):
        return False
    if not trust_code:
        raise ExportError(
            f"The model in {str(folder)!r} is Python code of its own, which loading it would run.",
            "Read the code, and pass --trust-code where you trust it.",
            code="CODE_REFUSED",
        )
    return True


def _source(
    module: Any, task: Task, folder: Path, wanted: list[str] | None, *, last_logits_only: bool
) -> TorchSource | TorchParts:
    if task.form == "decoder":
        return causal_source(module, last_logits_only=last_logits_only)
    if task.form == "encoder-decoder" and getattr(module.config, "is_encoder_decoder", False):
        return encoder_decoder_source(module, last_logits_only=last_logits_only)
    examples = make_examples(module, wanted)
    dynamic = {name: _within(module, dims) for name, dims in examples.dynamic.items()}
    names = list(examples.inputs)
    pooling = read_pooling(folder) if task.form == "embedding" else None

    def make(model: Any) -> Any:
        return plain(model, names) if pooling is None else sentence_embedding(model, pooling, names)

    return TorchSource(make(module), examples.inputs, dynamic, recast=Recast(module, make))


def _within(module: Any, dims: Mapping[int, DimSpec]) -> dict[int, DimSpec]:
    """The dims with the length that the position table allows."""
    if dims == text_dims(module.config):
        return {**dims, 1: Assumed("sequence", 1, _longest(module))}
    return dict(dims)


def _load(loader: Any, folder: Path, trusted: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The model and what is to be said of it; `trusted`: options that let it run code."""
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, **trusted}
    module, info = _from_pretrained(loader, folder, options)
    notes: tuple[str, ...] = ()
    if info["missing_keys"] and all(name.startswith("pooler.") for name in info["missing_keys"]):
        # An encoder stored without its pooler: transformers would fill it with random numbers.
        module, info = _from_pretrained(loader, folder, options | {"add_pooling_layer": False})
        notes = ("no pooler: its weights are not stored",)
    if missing := sorted(info["missing_keys"]):
        raise _bad(
            f"The weights lack {', '.join(missing[:3])} ({len(missing)} in all) of {type(module).__name__}.",
            "Ask for the task that the weights were made for.",
        )
    if unused := sorted(info["unexpected_keys"]):
        notes += (f"{len(unused)} stored weights are not used by {type(module).__name__}: {unused[0]} …",)
    return module, notes


def _from_pretrained(loader: Any, folder: Path, options: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The model and what transformers says of its weights: which are missing, and which unexpected."""
    try:
        module, info = loader.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except Exception as error:
        raise _bad(
            f"transformers cannot load {str(folder)!r}: {said(error)}",
            "Check the folder with transformers alone.",
        ) from error
    for name, stored, made in sorted(info["mismatched_keys"], key=str):
        raise _bad(
            f"The weight {name!r} in {str(folder)!r} is {list(stored)}, by config.json it is {list(made)}.",
            "Give the config.json that belongs to the weights.",
        )
    return module.eval(), info


def _tokenizer_inputs(folder: Path) -> list[str] | None:
    """What the folder's tokenizer makes; None where it has none."""
    if not any((folder / name).is_file() for name in _TOKENIZER):
        return None
    try:
        tokenizer = need("transformers").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise _bad(
            f"transformers cannot load the tokenizer of {str(folder)!r}: {said(error)}",
            "Repair the tokenizer files, or remove them.",
        ) from error
    return list(tokenizer.model_input_names)


def _longest(module: Any) -> int | None:
    """Rows of the position table, less what RoBERTa-like models offset it by."""
    size = longest(module.config)
    if size is None:
        return None
    offset = (getattr(module.config, "pad_token_id", None) or 0) + 1 if _offsets(module) else 0
    return size - offset


def _offsets(module: Any) -> bool:
    return any(
        name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None
        for name, part in module.named_modules()
    )


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_SOURCE")
