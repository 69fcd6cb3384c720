"""torch.nn.Module -> ir.Model by torch.onnx.export(dynamo=True), with dims kept dynamic, or told why not.

torch's own optimiser stays off: torch 2.13 with onnxscript 0.7.2 writes graphs with it that fail for batch
2 and up (reference/graph.md section 0.4). burnish's passes clean up instead, and are checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import msgspec
import numpy as np
import onnx_ir as ir

from burnish.dim_sums import size_of
from burnish.errors import ExportError
from burnish.exporter.blame import place_of
from burnish.exporter.capture import Dims, capture
from burnish.exporter.dims import Axis, Dynamic, example_sizes, other_sizes, read_axes
from burnish.exporter.failures import said
from burnish.exporter.following import roomy
from burnish.exporter.lattice import lattice
from burnish.exporter.once import Whole, capture_once
from burnish.exporter.origins import note_origins
from burnish.exporter.quiet import evaluating, quiet
from burnish.exporter.shapes import Shapes, Sizes, correct_shapes
from burnish.exporter.source import Recast
from burnish.exporter.storage import Storage
from burnish.exporter.tidy import (
    name_free_dims,
    name_interface,
    own_weights,
    rename_dims,
    strip_metadata,
)  # fmt: skip
from burnish.exporter.values import (
    Inputs,
    by_name,
    copies,
    flat_outputs,
    resized,
    tensors,
    to_numpy,
    to_tensor,
)  # fmt: skip
from burnish.feeds import Assignment, sizes_of
from burnish.manifest import DimRange, Manifest
from burnish.model import signature

OPSETS: Final = range(18, 25)
"""What torch 2.13 writes without converting versions afterwards."""

Feeds = Mapping[str, np.ndarray]


@final
@dataclasses.dataclass(frozen=True)
class Exported:
    """A module as a graph, and the module itself to compare with."""

    model: ir.Model
    signature: Manifest
    """Inputs with their meaning, outputs, and the range of every dynamic dim."""
    reference: Callable[[Feeds], dict[str, np.ndarray]]
    """The module in eval mode: numpy arrays by input name -> numpy arrays by output name."""
    example: dict[str, np.ndarray]
    """The example inputs that were traced, at their widened sizes."""
    module: Any = None
    """What the reference runs; its weights say how it rounds."""
    parameters: int = 0
    """How many numbers the module's weights are: what a comparison costs."""
    notes: tuple[str, ...] = ()
    """What was changed or narrowed, and why."""
    replayed: bool = False
    """Not every layer was traced: see `burnish.exporter.once`."""
    doubtful: tuple[Assignment, ...] = ()
    """Sizes to compare at, beside the usual ones."""


@final
@dataclasses.dataclass(frozen=True)
class Weights:
    """Where a module's weights are, and what becomes of them in the graph."""

    storage: Storage | None = None
    """What is in it is referred to."""
    copied: bool = True
    """All others are copied, so that training on does not change the model."""


def export_module(
    module: Any,
    inputs: Inputs,
    *,
    dynamic: Dynamic | None = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    opset: int = 20,
    input_names: Mapping[str, str] | None = None,
    output_names: Sequence[str] | None = None,
    keep_metadata: bool = False,
    fixed: bool = False,
    at: Mapping[str, int] | None = None,
    followed: bool = False,
    program: Any = None,
    recast: Recast | None = None,
    weights: Weights = Weights(),
) -> Exported:
    """Export a module as it computes in eval mode.

    Args:
        module: a `torch.nn.Module`; it is put into eval mode and back.
        inputs: example inputs by parameter name, a tuple, or one tensor; numbers and such are constants.
        dynamic: by input and axis, a name, `(name, min, max)` or `torch.export.Dim`; the rest is fixed.
        ranges: `(min, max)` of dims by name, instead of what `dynamic` says. opset: 18 to 24.
        input_names: of the graph's inputs, by parameter name; default: the parameters' own.
        output_names: instead of the names that the module's result suggests.
        keep_metadata: keep torch's stack traces, which name paths of this machine.
        fixed: trace with transformers' own mends.
        at: sizes of dynamic dims to trace at, instead of the examples' own.
        followed: follow the example where values or sizes decide.
        program: the `torch.export.ExportedProgram` that the module is; it is not traced again.
        recast: how the module is made of a model: layers of that which are alike are traced once.
        weights: where they are, and whether they are copied.

    Raises:
        ExportError: EXPORT_INPUTS, EXPORT_OUTPUTS, EXPORT_DYNAMIC: what was given does not fit;
            EXPORT_SPECIALISED, EXPORT_DATA_DEPENDENT, EXPORT_UNSUPPORTED_OP, EXPORT_OPSET, EXPORT_FAILED.
    """
    _need(opset)
    named = by_name(module, inputs)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors(named).items()}
    renamed = {name: (input_names or {}).get(name, name) for name in shapes}
    axes = read_axes(dynamic, shapes, ranges)
    with evaluating(module):
        named, result, notes = _widen(module, _sized(named, axes, at or {}), axes, large=followed)
        outputs = flat_outputs(result)
        names = _output_names(outputs, output_names, list(renamed.values()))
        once = _once(Whole(module, named, axes, list(outputs)), recast, opset, fixed, followed)
        ways = {"program": program, "fixed": fixed, "followed": followed}
        traced, dims = once or capture(module, named, axes, opset, **ways)
        runs = _two_runs(module, named, axes, outputs)
    model, said = _finish(traced, dims, (list(renamed.values()), names), weights, keep_metadata)
    manifest, corrected = _interface(model, dims, axes, names, runs)
    notes += [*said, *corrected, *dims.notes]
    reference = _Reference(module, named, renamed, dict(zip(outputs, names, strict=True)))
    example = {renamed[name]: to_numpy(tensor) for name, tensor in tensors(named).items()}
    parameters = sum(weight.numel() for weight in module.parameters())
    usual = lattice(manifest.inputs, manifest.dims, parameters)
    more = tuple(dims.doubtful(sizes_of(manifest.inputs, example), usual))
    return Exported(model, manifest, reference, example, module, parameters, tuple(notes), bool(once), more)


def _once(whole: Whole, recast: Recast | None, opset: int, fixed: bool, followed: bool) -> Any:
    """What `capture` gives, layers that are alike traced once; None where they are not, or are not to be."""
    return None if recast is None or followed else capture_once(whole, recast, opset, fixed=fixed)


def _interface(
    model: ir.Model, dims: Dims, axes: Sequence[Axis], outputs: Sequence[str], runs: Any
) -> tuple[Manifest, list[str]]:
    """Inputs and outputs of the graph, after what torch declared wrongly is corrected; and what that was."""
    wrong = correct_shapes(model, outputs, runs) if runs else []
    unknown = name_free_dims(model, {axis.name for axis in axes})
    known = signature(model)
    free = dict.fromkeys(unknown, DimRange(0))
    notes = [f"torch declared a wrong shape of output {name!r}; corrected" for name in wrong]
    return msgspec.structs.replace(known, dims=known.dims | free | dims.ranges), notes


@final
@dataclasses.dataclass(frozen=True)
class _Reference:
    module: Any
    inputs: Mapping[str, Any]
    renamed: Mapping[str, str]
    outputs: Mapping[str, str]

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the module on numpy arrays; inputs that are not fed keep their example value."""
        given = {
            name: to_tensor(feeds[fed], value) if (fed := self.renamed.get(name, name)) in feeds else value
            for name, value in self.inputs.items()
        }
        with evaluating(self.module), quiet():
            found = flat_outputs(self.module(**given))
        return {name: to_numpy(found[key]) for key, name in self.outputs.items() if key in found}


def _need(opset: int) -> None:
    if opset not in OPSETS:
        raise ExportError(
            f"Cannot export to opset {opset}.",
            f"torch writes opsets {OPSETS[0]} to {OPSETS[-1]}.",
            code="EXPORT_OPSET",
        )


def _sized(named: Mapping[str, Any], axes: Sequence[Axis], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The inputs at those sizes of the dims."""
    made = dict(named)
    for axis in axes:
        size = size_of(axis.name, sizes)
        if size is not None:
            made[axis.input] = resized(made[axis.input], axis.axis, size)
    return made


def _widen(
    module: Any, named: dict[str, Any], axes: Sequence[Axis], *, large: bool
) -> tuple[dict[str, Any], Any, list[str]]:
    """Inputs at sizes that hide nothing, and the module's result on them.

    Where the module fails at the new sizes (its dims depend on each other), the given ones are kept.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors(named).items()}
    sizes = example_sizes(axes, roomy(axes, shapes) if large else shapes)
    changed = {a.name: sizes[a.name] for a in axes if shapes[a.input][a.axis] != sizes[a.name]}
    wide = _sized(named, axes, sizes)
    if changed:
        try:
            with quiet():
                return wide, module(**copies(wide)), []
        except Exception as error:  # noqa: BLE001 - the module is anybody's code; the given sizes come next
            note = f"examples kept as given, the module fails at {changed}: {said(error)}"
            return named, _run(module, named), [note]
    return named, _run(module, named), []


def _two_runs(
    module: Any, named: Mapping[str, Any], axes: Sequence[Axis], outputs: Mapping[str, Any]
) -> tuple[tuple[Sizes, Shapes], tuple[Sizes, Shapes]] | None:
    """Shapes of the outputs at the example's sizes and at others; None where the module refuses those."""
    sizes = {axis.name: int(named[axis.input].shape[axis.axis]) for axis in axes}
    others = other_sizes(axes, sizes)
    wide = _sized(named, axes, others)
    try:
        with quiet():
            again = flat_outputs(module(**copies(wide)))
    except Exception:  # noqa: BLE001 - dims that depend on each other; parity finds sizes that go together
        return None
    if list(again) != list(outputs):
        return None
    first, second = ([tuple(t.shape) for t in each.values()] for each in (outputs, again))
    return (sizes, first), (others, second)


def _run(module: Any, named: dict[str, Any]) -> Any:
    try:
        with quiet():
            return module(**copies(named))
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} does not run on the example inputs: {said(error)}"
            f"{place_of(error, module)}",
            "Call the module on them in eval mode first.",
            code="EXPORT_INPUTS",
        ) from error


def _output_names(
    outputs: Mapping[str, Any], given: Sequence[str] | None, inputs: Sequence[str]
) -> list[str]:
    if given is None:
        return [f"{name}_output" if name in inputs else name for name in outputs]
    if len(given) != len(outputs) or len({*given, *inputs}) != len(given) + len(inputs):
        raise ExportError(
            f"{len(given)} output names for {len(outputs)} outputs ({', '.join(outputs)}).",
            "Give one name for each, no two alike and none of an input.",
            code="EXPORT_OUTPUTS",
        )
    return list(given)


def _finish(
    program: Any, dims: Dims, names: tuple[list[str], list[str]], weights: Weights, keep_metadata: bool
) -> tuple[ir.Model, list[str]]:
    """The graph put right, and what is to be said of it."""
    model: ir.Model = program.model
    inputs, outputs = names
    if len(model.graph.inputs) != len(inputs) or len(model.graph.outputs) != len(outputs):
        raise ExportError(
            f"torch exported {len(model.graph.inputs)} inputs and {len(model.graph.outputs)} outputs, the "
            f"module has {len(inputs)} and {len(outputs)}.",
            "Return tensors only, each once.",
            code="EXPORT_OUTPUTS",
        )
    moved = name_interface(model, inputs, outputs)
    rename_dims(model, {old: new for old, new in dims.symbols.items() if old != new})
    notes = [f"value {name!r} renamed: an input or output has its name" for name in moved]
    notes += own_weights(model, weights.storage, copy=weights.copied)
    note_origins(model)
    if not keep_metadata:
        strip_metadata(model)
    return model, notes
