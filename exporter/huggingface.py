"""A Hugging Face folder (config.json, safetensors weights, tokenizer) as a module with example inputs.

Text encoders and sequence classifiers. Nothing is downloaded and no code of the folder is run.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Final

from burnish.errors import ExportError, nearest
from burnish.exporter.dims import DimSpec
from burnish.exporter.needs import need, torch
from burnish.exporter.quiet import quiet
from burnish.exporter.sources import TorchSource

TASKS: Final = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
}
"""The transformers class that loads each task."""

ATTACHED: Final = (
    "added_tokens.json", "config.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Files that go into the artifact: what turns text into inputs, and class numbers into names."""

_INPUTS: Final = ("input_ids", "attention_mask")
_BATCH, _LENGTH = 2, 16
_CONFIG_LIMIT: Final = 2**20  # bytes; a config.json is a few kB


def load_folder(folder: Path, task: str | None = None) -> TorchSource:
    """Load a text encoder or a sequence classifier, in the type that its weights are stored in.

    Args:
        folder: holds config.json and model.safetensors (or its shards with their index).
        task: see `TASKS`; default: what the configuration's `architectures` says.

    Raises:
        ExportError: a file is missing or the kind of model is not known (EXPORT_SOURCE); the weights are
            a pickle (PICKLE_REFUSED).
        MissingDependencyError: transformers is not installed.
    """
    config = _read_config(folder)
    _need_weights(folder)
    task = _task(config, task)
    transformers: Any = need("transformers")
    with quiet():
        module, notes = _load(getattr(transformers, TASKS[task]), folder)
        names = _input_names(transformers, module, folder)
    inputs = _examples(module, names)
    dims: dict[int, DimSpec] = {0: ("batch", 1, None), 1: ("sequence", 1, _longest(module))}
    return TorchSource(
        module,
        inputs,
        dynamic=dict.fromkeys(inputs, dims),
        attachments={name: folder / name for name in ATTACHED if (folder / name).is_file()},
        description=f"Hugging Face folder {folder.resolve().name!r}, {type(module).__name__}, {task}",
        notes=notes,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise _bad(
            f"{str(folder)!r} has no config.json.",
            "Give a Hugging Face folder: config.json, model.safetensors, tokenizer files.",
        )
    try:
        if path.stat().st_size > _CONFIG_LIMIT:
            raise _bad(f"{str(path)!r} is too large for a configuration.", "Check the file.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _bad(f"{str(path)!r} is not JSON: {error}.", "Download it again.") from error
    if not isinstance(found, dict):
        raise _bad(f"{str(path)!r} holds no configuration.", "Download it again.")
    return found


def _need_weights(folder: Path) -> None:
    if any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        return
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ExportError(
            f"The weights {pickles[0]!r} are a pickle: loading it runs the code inside.",
            "Convert them with save_pretrained(..., safe_serialization=True) where you trust them.",
            code="PICKLE_REFUSED",
        )
    raise _bad(f"{str(folder)!r} has no model.safetensors.", "Download the weights too.")


def _task(config: dict[str, Any], task: str | None) -> str:
    if task is not None:
        if task not in TASKS:
            raise _bad(f"No task named {task!r}.", nearest(task, TASKS))
        return task
    architectures = [str(name) for name in config.get("architectures") or ()]
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "text-classification"
    if all("For" not in name or name.endswith("ForMaskedLM") for name in architectures):
        return "feature-extraction"
    raise _bad(
        f"{architectures[0]} is neither a text encoder nor a sequence classifier.",
        "Write a function that returns (module, inputs), and export package.module:function.",
    )


def _load(loader: Any, folder: Path) -> tuple[Any, tuple[str, ...]]:
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    module, missing = _from_pretrained(loader, folder, options)
    if missing and all(name.startswith("pooler.") for name in missing):
        # An encoder stored without its pooler: transformers would fill it with random numbers.
        module, missing = _from_pretrained(loader, folder, options | {"add_pooling_layer": False})
        if not missing:
            return module, ("no pooler: its weights are not stored",)
    if missing:
        raise _bad(
            f"The weights lack {', '.join(sorted(missing)[:3])} ({len(missing)} in all) of "
            f"{type(module).__name__}.",
            "Ask for the task that the weights were made for.",
        )
    return module, ()


def _from_pretrained(loader: Any, folder: Path, options: dict[str, Any]) -> tuple[Any, frozenset[str]]:
    try:
        module, info = loader.from_pretrained(folder, output_loading_info=True, **options)
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise _bad(
            f"transformers cannot load {str(folder)!r}: {first}",
            "Check the folder with transformers alone.",
        ) from error
    return module.eval(), frozenset(info["missing_keys"])


def _input_names(transformers: Any, module: Any, folder: Path) -> list[str]:
    """What the tokenizer makes and `forward` takes, in the order of `forward`."""
    made = set(_INPUTS)
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise _bad(
                f"transformers cannot load the tokenizer of {str(folder)!r}: {error}",
                "Repair the tokenizer files, or remove them.",
            ) from error
        made = set(tokenizer.model_input_names)
    return [name for name in inspect.signature(module.forward).parameters if name in made]


def _examples(module: Any, names: list[str]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, module.config.vocab_size, (_BATCH, _LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, _LENGTH // 2 :] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    unknown = [name for name in names if name not in known]
    if unknown or "input_ids" not in names:
        raise _bad(
            f"{type(module).__name__} takes {', '.join(unknown or names)}, not text.",
            "Write a function that returns (module, inputs), and export package.module:function.",
        )
    return {name: known[name] for name in names}


def _longest(module: Any) -> int | None:
    """Rows of the position table, less what RoBERTa-like models offset it by."""
    size = getattr(module.config, "max_position_embeddings", None)
    if not isinstance(size, int) or size < 2:
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
