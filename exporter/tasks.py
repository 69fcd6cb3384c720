"""What a Hugging Face model is for: the tasks, the transformers class that loads each, and which a folder is.

The task is read from the configuration's `architectures` through transformers' own tables of auto classes,
so that an architecture works on the day it appears there.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, final

from burnish.errors import ExportError, nearest, shown
from burnish.exporter.needs import need

Form = Literal["single", "decoder", "encoder-decoder", "embedding"]
"""How a model becomes graphs: one graph; one with a cache; an encoder and a decoder; one with pooling."""


@final
@dataclasses.dataclass(frozen=True)
class Task:
    """A task and how it is loaded and exported."""

    name: str
    classes: tuple[str, ...]
    """transformers' auto classes, of which the first that knows the architecture loads it."""
    form: Form = "single"


_TASKS: Final = (
    Task("text-generation", ("AutoModelForCausalLM",), "decoder"),
    Task("automatic-speech-recognition", ("AutoModelForSpeechSeq2Seq", "AutoModelForCTC"), "encoder-decoder"),
    Task("text2text-generation", ("AutoModelForSeq2SeqLM",), "encoder-decoder"),
    Task("fill-mask", ("AutoModelForMaskedLM",)),
    Task("text-classification", ("AutoModelForSequenceClassification",)),
    Task("token-classification", ("AutoModelForTokenClassification",)),
    Task("question-answering", ("AutoModelForQuestionAnswering",)),
    Task("image-classification", ("AutoModelForImageClassification",)),
    Task("object-detection", ("AutoModelForObjectDetection",)),
    Task("semantic-segmentation", ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation")),
    Task("zero-shot-image-classification", ("AutoModelForZeroShotImageClassification",)),
    Task("audio-classification", ("AutoModelForAudioClassification",)),
    Task("sentence-embedding", ("AutoModel",), "embedding"),
    Task("feature-extraction", ("AutoModel",)),
)
TASKS: Final[Mapping[str, Task]] = {task.name: task for task in _TASKS}
"""Every task by name; an architecture in the tables of two is for the first."""

ALIASES: Final = {
    "translation": "text2text-generation",
    "summarization": "text2text-generation",
    "ner": "token-classification",
    "sentence-similarity": "sentence-embedding",
}
"""Other names that users know a task by."""


def find_task(config: Mapping[str, Any], folder: Path, asked: str | None) -> Task:
    """The task that was asked for, or the one that the folder's configuration is for.

    Raises:
        ExportError: no task has that name, or the architecture is in no table (EXPORT_SOURCE).
    """
    if asked is not None:
        name = ALIASES.get(asked, asked)
        if name not in TASKS:
            raise _bad(f"No task named {asked!r}.", nearest(asked, (*TASKS, *ALIASES)))
        return TASKS[name]
    if (folder / "modules.json").is_file():
        return TASKS["sentence-embedding"]
    given = config.get("architectures") or []
    architectures = [str(name) for name in (given if isinstance(given, list) else [given])]
    for task in _TASKS:
        if task.form != "embedding" and any(name in _known(task.classes) for name in architectures):
            return task
    for task in _TASKS:
        if task.form != "embedding" and _own_classes(config).intersection(task.classes):
            return task
    if all("For" not in name for name in architectures):
        return TASKS["feature-extraction"]
    raise _bad(
        f"{architectures[0]} is for none of the tasks that burnish exports ({', '.join(TASKS)}).",
        "Ask for one with --task, or export package.module:function that returns (module, inputs).",
    )


def loader_of(task: Task, config: Mapping[str, Any]) -> Any:
    """The auto class that loads the model for a task: the first whose table has its model type.

    Raises:
        ExportError: none has (EXPORT_SOURCE).
    """
    transformers = need("transformers")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        said = "says no model_type" if kind is None else f"says model_type {shown(kind)}, which is no name"
        raise _bad(f"config.json {said}.", "Download it again, or write the model's type there.")
    for name in task.classes:
        found = getattr(transformers, name)
        if kind in _table(found) or name in _own_classes(config):
            return found
    if not is_known(kind):
        raise _bad(
            f"transformers {transformers.__version__} has no model type {shown(kind)!r}.",
            _nearest_kind(str(kind)),
        )
    raise _bad(
        f"transformers has no {kind or 'such'} model for {task.name}.",
        "Ask for another task with --task, such as feature-extraction.",
    )


def is_known(kind: object) -> bool:
    """True where transformers itself has that model type."""
    return isinstance(kind, str) and kind in _kinds()


def _kinds() -> Mapping[str, Any]:
    found: Mapping[str, Any] = need("transformers").models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    return found


def _nearest_kind(kind: str) -> str:
    close = difflib.get_close_matches(kind, list(_kinds()), n=1)
    known = f"The nearest that it has is {close[0]!r}; check" if close else "Check"
    return f"{known} model_type in config.json, or upgrade transformers."


def _own_classes(config: Mapping[str, Any]) -> frozenset[str]:
    """The auto classes that code of the folder itself stands for, where transformers has no such model."""
    own = config.get("auto_map")
    return frozenset(own) if isinstance(own, dict) and not is_known(config.get("model_type")) else frozenset()


def _known(classes: tuple[str, ...]) -> frozenset[str]:
    transformers = need("transformers")
    return frozenset(name for each in classes for name in _names(_table(getattr(transformers, each))))


def _names(table: Mapping[str, Any]) -> Iterator[str]:
    for entry in table.values():
        yield from entry if isinstance(entry, (tuple, list)) else (entry,)


def _table(auto: Any) -> Mapping[str, Any]:
    """Class names by model type, as transformers' auto class has them."""
    table: Mapping[str, Any] = auto._model_mapping._model_mapping
    return table


def _bad(what: str, hint: str) -> ExportError:
    return ExportError(what, hint, code="EXPORT_SOURCE")
