"""One case of the table: a module, inputs it runs on, and which of their dims must vary."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

from burnish.benchmarks.export import zoo
from burnish.exporter.dims import Assumed
from burnish.exporter.example_inputs import make_examples

if TYPE_CHECKING:
    from burnish.benchmarks.export.handmade import Made

Group = Literal["transformers", "hand-made"]
HAND_MADE: Final = "hand-made"


@final
@dataclasses.dataclass(frozen=True)
class Loaded:
    """A case in memory."""

    name: str
    module: Any
    """In eval mode."""
    inputs: dict[str, Any]
    """Example tensors by parameter name."""
    dynamic: dict[str, dict[int, str]]
    """The name of every dim that must vary, by input and axis."""
    sizes: dict[str, tuple[int, ...]]
    """At which sizes of each dim it is judged."""
    form: str = "single"
    """`single`; `decoder`, `encoder-decoder`: decoded token by token."""
    folder: Path | None = None
    """The Hugging Face folder it was loaded from; None: a hand-made module."""
    task: str = ""
    notes: tuple[str, ...] = ()


BATCHES: Final = (1, 2, 3)
_LENGTHS: Final = (1, 2, 7)
_LONGEST: Final = 40


def names(*, more: bool = False) -> list[str]:
    """Every case, in the order of the table."""
    from burnish.benchmarks.export.handmade import HANDMADE

    return [case.name for case in zoo.architectures(more=more)] + [f"{HAND_MADE}/{name}" for name in HANDMADE]


def chosen(patterns: Sequence[str], *, more: bool = False) -> list[str]:
    """The cases that a pattern matches, by whole name or by what follows the slash; without patterns, all."""
    found = names(more=more or bool(patterns))
    if not patterns:
        return found
    return [
        name
        for name in found
        if any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(name.partition("/")[2], p) for p in patterns)
    ]


def load(name: str, folder: Path) -> Loaded:
    """Build a case; one of transformers is written to `folder` and read back, as a user's would be.

    Raises:
        KeyError: no case has that name.
        Exception: anything that building it raises.
    """
    group, _, kind = name.partition("/")
    if group == HAND_MADE:
        from burnish.benchmarks.export.handmade import HANDMADE

        return hand_made(name, HANDMADE[kind]())
    return of_transformers(zoo.Architecture(kind, group), folder)


def hand_made(name: str, made: Made) -> Loaded:
    """A network written by hand, as a case."""
    sizes = {dim: _sizes(dim) for axes in made.dynamic.values() for dim in axes.values()} | dict(made.sizes)
    return Loaded(name, made.module.eval(), dict(made.inputs), made.dynamic, sizes)


def of_transformers(case: zoo.Architecture, folder: Path) -> Loaded:
    """An architecture, written to `folder` and read back, as a case."""
    notes = zoo.save(case, folder)
    module = zoo.read(case, folder)
    form = case.form
    if form == "encoder-decoder" and not getattr(module.config, "is_encoder_decoder", False):
        form = "single"
    if form == "embedding":
        form = "single"
    examples = make_examples(module)
    dynamic = {
        name: {axis: _name(spec) for axis, spec in dims.items()} for name, dims in examples.dynamic.items()
    }
    tops = {_name(s): _top(s) for dims in examples.dynamic.values() for s in dims.values()}
    sizes = {dim: _sizes(dim, top) for dim, top in tops.items()}
    return Loaded(case.name, module, examples.inputs, dynamic, sizes, form, folder, case.task, notes)


def _name(spec: Any) -> str:
    if isinstance(spec, str):
        return spec
    return spec.name if isinstance(spec, Assumed) else str(spec[0])


def _top(spec: Any) -> int | None:
    if isinstance(spec, Assumed):
        return spec.max
    return None if isinstance(spec, str) else spec[2]


def _sizes(dim: str, top: int | None = None) -> tuple[int, ...]:
    if dim == "batch":
        return BATCHES
    if dim == "samples":
        return (8000, 8321, 12000)
    if dim == "frames":
        return (64, 33, 80)
    longest = min(_LONGEST, top - 2 if top else _LONGEST)
    return (*_LENGTHS, longest)


def resized(name: str, example: Any, sizes: Mapping[int, int], seed: int) -> Any:
    """An input like the example, with other sizes; of the kind that its name says.

    Token ids are of those in the example, so that they stay in the vocabulary; masks are ones with padding
    on the right of every row but the first; all else repeats the example with noise where it is real.
    """
    import torch

    shape = [sizes.get(axis, size) for axis, size in enumerate(example.shape)]
    generator = torch.Generator().manual_seed(seed)
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype) * _spread(example)
    if name.endswith(("attention_mask", "padding_mask")) or name == "mask":
        return _right_padded(shape, generator).to(example.dtype)
    places = torch.randint(0, example.numel(), (shape[0] * max(1, _product(shape[1:])),), generator=generator)
    if name == "bbox":
        return example[:1, :1].expand(shape).clone()
    return example.reshape(-1)[places][: _product(shape)].reshape(shape).clone()


def _spread(example: Any) -> float:
    spread = float(example.float().std()) if example.numel() > 1 else 1.0
    return spread if spread > 0 else 1.0


def _right_padded(shape: Sequence[int], generator: Any) -> Any:
    import torch

    lengths = torch.randint(1, shape[-1] + 1, (shape[0],), generator=generator)
    lengths[0] = shape[-1]
    return torch.arange(shape[-1])[None] < lengths[:, None]


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
