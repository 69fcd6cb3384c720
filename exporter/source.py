"""What every kind of source becomes: a module with example inputs, or several that belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self, final

from burnish.errors import ExportError
from burnish.exporter.dims import Dynamic

Attachments = Mapping[str, Path | bytes]

Adopt = Callable[[Any], tuple[str, ...]]
"""Takes a module that was just loaded, may convert and move its weights, and says what it changed."""


def left_as_is(_module: Any) -> tuple[str, ...]:
    """The `Adopt` that changes nothing."""
    return ()


def _converted(inputs: Any, old: Any, new: Any) -> Any:
    """Example inputs with the tensors of one dtype in another."""
    if isinstance(inputs, Mapping):
        return {name: _converted(value, old, new) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_converted(value, old, new) for value in inputs)
    return inputs.to(new) if getattr(inputs, "dtype", None) == old else inputs


TRUSTED: Final = "--trust-code: code of the source was run while it was loaded"
"""The note on a source that could not be read without running what is in it."""


@final
@dataclasses.dataclass(frozen=True)
class Recast:
    """How a module to export is made of a model, so that it can be made of a twin of the model too."""

    model: Any
    make: Callable[[Any], Any]
    """The model, or a twin with other parts -> the module to export."""


@final
@dataclasses.dataclass(frozen=True)
class TorchSource:
    """A module with what is needed to export it."""

    module: Any
    inputs: Any
    """Example inputs, as `burnish.exporter.torch_export.export_module` takes them."""
    dynamic: Dynamic | None = None
    attachments: Attachments = dataclasses.field(default_factory=dict)
    """Files that belong to the model, by the name they get in the artifact (tokenizer, configuration)."""
    description: str = ""
    """Where it came from, in words, without paths of this machine."""
    notes: tuple[str, ...] = ()
    input_names: Mapping[str, str] | None = None
    """Names of the graph's inputs by parameter name, where they differ."""
    model: Any = None
    """The transformers model that greedy decoding is compared with; None where there is nothing to decode."""
    program: Any = None
    """The `torch.export.ExportedProgram` that the module is, where torch has traced it already."""
    recast: Recast | None = None
    """Where the module can be made of fewer layers too; None: it cannot."""
    stored: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What a GGUF file stores (`burnish.exporter.gguf_weights.StoredTensor`), by state-dict name."""

    def adopted(self, adopt: Adopt) -> Self:
        """The source after `adopt` took its module; inputs of the dtype that it had get its new one."""
        from burnish.exporter.storage import main_type

        before = main_type(self.module)
        notes, after = adopt(self.module), main_type(self.module)
        inputs = self.inputs if before == after else _converted(self.inputs, before, after)
        return dataclasses.replace(self, inputs=inputs, notes=(*self.notes, *notes))

    def whole(self) -> Self:
        """The source, to be traced layer by layer."""
        return dataclasses.replace(self, recast=None)

    def described(self, text: str, attachments: Attachments, notes: tuple[str, ...] = ()) -> Self:
        """The source with what its folder says of it."""
        return dataclasses.replace(
            self, description=text, attachments=attachments, notes=(*notes, *self.notes)
        )


def one_module(source: TorchSource | TorchParts) -> TorchSource:
    """The source, where it is one module.

    Raises:
        ExportError: it has parts (EXPORT_SOURCE).
    """
    if isinstance(source, TorchSource):
        return source
    raise ExportError(
        f"The model has parts: {', '.join(source.parts)}.", "Take one of them.", code="EXPORT_SOURCE"
    )


@final
@dataclasses.dataclass(frozen=True)
class TorchParts:
    """Modules that make one model together: an encoder and a decoder, or a first step and the next."""

    parts: Mapping[str, TorchSource]
    """By the name of the folder that each part's graph gets."""
    attachments: Attachments = dataclasses.field(default_factory=dict)
    description: str = ""
    notes: tuple[str, ...] = ()
    model: Any = None
    """The transformers model that greedy decoding is compared with."""

    def whole(self) -> Self:
        """The parts, to be traced layer by layer."""
        return dataclasses.replace(self, parts={name: part.whole() for name, part in self.parts.items()})

    def described(self, text: str, attachments: Attachments, notes: tuple[str, ...] = ()) -> Self:
        """The parts with what their folder says of them."""
        return dataclasses.replace(
            self, description=text, attachments=attachments, notes=(*notes, *self.notes)
        )


def need_own_dims(source: TorchSource | TorchParts) -> None:
    """Refuse other dynamic dims than its own for a language model, whose cache and mask depend on them.

    Raises:
        ExportError: it is one (EXPORT_DYNAMIC).
    """
    if source.model is not None:
        raise ExportError(
            "The dynamic dims of a language model are its own: batch, sequence, past_sequence.",
            "Leave dynamic out; give ranges by name: --dim sequence=1:128 (in Python: ranges).",
            code="EXPORT_DYNAMIC",
        )
