"""Example inputs of a transformers model: by what `forward` calls them, of the sizes its configuration says.

No architecture is named. A model gets its main input and what goes with it; where it then asks for more, the
other inputs that its `forward` takes and that this table can make are added until it runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, final

from burnish.errors import ExportError
from burnish.exporter.blame import place_of
from burnish.exporter.dims import Assumed, DimSpec
from burnish.exporter.failures import said
from burnish.exporter.needs import torch
from burnish.exporter.quiet import evaluating, quiet

BATCH: Final = 2
_LENGTH: Final = 16
_SAMPLES: Final = 8000  # of audio: half a second at 16 kHz
_FRAMES: Final = 64
_REGIONS: Final = 5
_CHARACTERS: Final = 256  # of models that take code points, and so have no vocabulary

Dims = Mapping[int, DimSpec]
Build = Callable[[Any], tuple[Any, Dims]]
"""The configuration -> an example tensor and its dynamic axes."""


@final
@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs that a model runs on, and their dynamic axes."""

    inputs: dict[str, Any]
    dynamic: dict[str, Dims]


def make_examples(model: Any, wanted: Sequence[str] | None = None) -> Examples:
    """Inputs by parameter name on which the model runs.

    Args:
        model: a transformers model, in eval mode.
        wanted: the inputs that its tokenizer or processor makes; default: the main one and a mask.

    Raises:
        ExportError: no inputs that can be made satisfy it (EXPORT_INPUTS).
    """
    takes = inspect.signature(model.forward).parameters
    usual = [*(wanted or _usual(model, takes)), *_DRAWN]
    first = [name for name in usual if name in takes and name in _BUILDERS]
    more = [name for name in _BUILDERS if name in takes and name not in first]
    failure: Exception | None = None
    for extra in _growing(more):
        names = [name for name in takes if name in (*first, *extra)]
        made = {name: _BUILDERS[name](model.config) for name in names}
        inputs = {name: tensor for name, (tensor, _) in made.items()}
        try:
            if inputs:
                run(model, inputs)
                return Examples(inputs, {name: dims for name, (_, dims) in made.items() if dims})
        except Exception as error:  # noqa: BLE001 - it asks for other inputs; what it last said is reported
            failure = failure or error
    why = f": {said(failure)}" if failure else "; none of its inputs is known"
    raise ExportError(
        f"{type(model).__name__} runs on no example inputs that burnish can make{why}",
        "Write a function that returns (module, inputs), and export package.module:function.",
        code="EXPORT_INPUTS",
    )


def run(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The model's result in eval mode, without gradients or noise."""
    with evaluating(model), quiet():
        return model(**inputs)


def need_run(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The model's result, as `run` has it.

    Raises:
        ExportError: it fails on these inputs (EXPORT_INPUTS).
    """
    try:
        return run(model, inputs)
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} does not run: {said(error)}{place_of(error, model)}",
            "Run it in transformers alone; its configuration may not fit its weights.",
            code="EXPORT_INPUTS",
        ) from error


def longest(config: Any) -> int | None:
    """The most tokens that the configuration allows; None where it says nothing."""
    text = config.get_text_config(decoder=True)
    size = _first(text, names=("max_target_positions", "max_position_embeddings"), default=None)
    return size if isinstance(size, int) and size >= 2 else None


def text_dims(config: Any) -> dict[int, DimSpec]:
    """The dynamic axes of `[batch, sequence]` inputs."""
    return {0: "batch", 1: Assumed("sequence", 1, longest(config))}


def _usual(model: Any, takes: Mapping[str, Any]) -> list[str]:
    main = getattr(model, "main_input_name", "input_ids")
    main = main if main in takes else next(iter(takes), "")
    return [main, "attention_mask"] if main == "input_ids" else [main]


def _growing(more: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Nothing more, then one more input, then two, then all."""
    yield ()
    yield from itertools.chain(itertools.combinations(more, 1), itertools.combinations(more, 2))
    yield tuple(more)


def _ids(config: Any) -> tuple[Any, Dims]:
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    count = _first(text, names=("vocab_size",), default=_CHARACTERS)
    tokens = torch.randint(0, count, (BATCH, _LENGTH), generator=generator)
    end = text.eos_token_id if isinstance(getattr(text, "eos_token_id", None), int) else None
    if end is not None and 0 <= end < count:
        tokens[:, -1] = end  # some models read the sentence off the token that ends it
    return tokens, text_dims(config)


def _mask(config: Any) -> tuple[Any, Dims]:
    mask = torch.ones(BATCH, _LENGTH, dtype=torch.int64)
    mask[-1, _LENGTH // 2 :] = 0
    return mask, text_dims(config)


def _segments(config: Any) -> tuple[Any, Dims]:
    return torch.zeros(BATCH, _LENGTH, dtype=torch.int64), text_dims(config)


def _boxes(config: Any) -> tuple[Any, Dims]:
    corners = torch.tensor([10, 10, 90, 90]).expand(BATCH, _LENGTH, 4)
    return corners.clone(), text_dims(config)


def _pixels(config: Any) -> tuple[Any, Dims]:
    vision = _part(config, "vision_config", "encoder", "backbone_config")
    height, width = _pair(_first(vision, config, names=("image_size", "input_size"), default=224))
    channels = _first(vision, config, names=("num_channels", "in_chans", "in_channels"), default=3)
    return _noise(BATCH, channels, height, width), {0: "batch"}


def _waves(_config: Any) -> tuple[Any, Dims]:
    return _noise(BATCH, _SAMPLES), {0: "batch", 1: "samples"}


def _features(config: Any) -> tuple[Any, Dims]:
    """Spectrograms: `[batch, mel bins, frames]` where frames are counted by positions (Whisper), `[batch, 1,
    frames, bins]` where they become a square picture (CLAP), else `[batch, frames, bins]`."""
    audio = _part(config, "audio_config", "encoder")
    bins = _first(audio, config, names=("num_mel_bins", "feature_size", "input_feat_per_channel"), default=80)
    size = _first(audio, names=("spec_size",), default=None)
    if size is not None:  # made a square picture: 1001 frames of its processor's 10 s become 1024
        return _noise(BATCH, 1, size * (size // bins) * 1001 // 1024, bins), {0: "batch"}
    positions = _first(audio, config, names=("max_source_positions",), default=None)
    if positions is not None and not hasattr(config, "conv_kernel_sizes"):
        return _noise(BATCH, bins, 2 * positions), {0: "batch"}
    frames = _first(audio, config, names=("max_length_frames",), default=_FRAMES)
    return _noise(BATCH, frames, bins), {0: "batch", 1: "frames"}


def _spectrogram(config: Any) -> tuple[Any, Dims]:
    """`[batch, frames, bins]` of a fixed length, as an audio spectrogram transformer takes it."""
    return _noise(BATCH, int(config.max_length), int(config.num_mel_bins)), {0: "batch"}


def _waves_or_spectrogram(config: Any) -> tuple[Any, Dims]:
    fixed = isinstance(getattr(config, "num_mel_bins", None), int) and hasattr(config, "patch_size")
    return _spectrogram(config) if fixed else _waves(config)


def _regions(config: Any) -> tuple[Any, Dims]:
    """Features of the regions of a picture, `[batch, regions, width]`."""
    return _noise(BATCH, _REGIONS, config.visual_feat_dim), {0: "batch", 1: "regions"}


def _places(config: Any) -> tuple[Any, Dims]:
    return _noise(BATCH, _REGIONS, config.visual_pos_dim), {0: "batch", 1: "regions"}


def _order(config: Any) -> tuple[Any, Dims]:
    """What masks patches, `[batch, patches]`: those of the least numbers stay."""
    height, width = _pair(config.image_size)
    patches = (height // config.patch_size) * (width // config.patch_size)
    return torch.rand(BATCH, patches, generator=torch.Generator().manual_seed(0)), {0: "batch"}


def _noise(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


_BUILDERS: Final[Mapping[str, Build]] = {
    "input_ids": _ids, "attention_mask": _mask, "token_type_ids": _segments, "bbox": _boxes,
    "pixel_values": _pixels, "input_values": _waves_or_spectrogram, "input_features": _features,
    "decoder_input_ids": _ids, "visual_feats": _regions, "visual_pos": _places, "noise": _order,
}  # fmt: skip
"""How each input is made, by the name that `forward` has for it."""
_DRAWN: Final = ("noise",)
"""Inputs that a model draws at random where they are not given: no graph could be compared with it."""


def _part(config: Any, *names: str) -> Any:
    """A configuration inside the configuration, or the whole."""
    return next((found for name in names if (found := getattr(config, name, None)) is not None), config)


def _first(*configs: Any, names: Sequence[str], default: Any) -> Any:
    for config, name in itertools.product(configs, names):
        found = getattr(config, name, None)
        if found is not None:
            return found
    return default


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        size = (size.get("height", 224), size.get("width", 224))
    if isinstance(size, (list, tuple)):
        return int(size[-2]), int(size[-1])
    return int(size), int(size)
