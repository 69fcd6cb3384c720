"""torch's exporter, asked with the dims that must stay dynamic; its failures become typed errors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from burnish.errors import ExportError
from burnish.exporter.dims import Axis
from burnish.exporter.failures import typed
from burnish.exporter.following import Taken, decisions, follow
from burnish.exporter.library_fixes import fixes, trace, translate
from burnish.exporter.needs import torch
from burnish.exporter.quiet import quiet
from burnish.exporter.specialised import Guard, explain, kept_dims, reasons
from burnish.exporter.traceable import traceable
from burnish.exporter.translations import translations
from burnish.exporter.values import copies, tensors
from burnish.feeds import Assignment
from burnish.manifest import DimRange

_AGAIN: Final = "The program was traced so: trace it again, with that dim in dynamic_shapes."


@final
@dataclasses.dataclass(frozen=True)
class Dims:
    """What became of the dims that were asked for."""

    symbols: dict[str, str]
    """The name that each symbol of the graph stands for."""
    ranges: dict[str, DimRange]
    notes: list[str]
    taken: Taken | None = None
    """What a trace that follows the example took for granted."""

    def doubtful(self, example: Assignment, compared: Sequence[Assignment]) -> list[Assignment]:
        """Sizes to compare at beside those: where what was taken for granted is not so."""
        if self.taken is None:
            return []
        return self.taken.doubtful(self.symbols, self.ranges, compared, example)


def capture(
    module: Any,
    named: Mapping[str, Any],
    axes: Sequence[Axis],
    opset: int,
    *,
    program: Any = None,
    fixed: bool = False,
    followed: bool = False,
) -> tuple[Any, Dims]:
    """Trace a module and translate it; torch's own optimiser stays off.

    Args:
        module: in eval mode.
        named: example inputs by parameter name.
        axes: the dynamic axes.
        opset: of the graph.
        fixed: with transformers' own mends (see `burnish.exporter.library_fixes`).
        followed: the trace follows the example (see `burnish.exporter.following`).
        program: the module as torch has traced it already; it is translated as it is.

    Returns:
        The `torch.onnx.ONNXProgram` (its weights are the module's own memory), and its dims.

    Raises:
        ExportError: EXPORT_SPECIALISED, EXPORT_DATA_DEPENDENT, EXPORT_UNSUPPORTED_OP or EXPORT_FAILED.
    """
    try:
        if followed:
            return _followed(module, named, axes, opset)
        return translated(module, named, axes, opset, program=program, fixed=fixed)
    except ExportError as error:
        if program is not None:
            raise ExportError(error.what, _AGAIN, code=error.code) from error
        raise explain(error, _trace(module, named, axes), _places(axes)) from None
    except Exception as error:
        failure = typed(error, axes, module)
        if program is not None:
            raise failure from error
        raise explain(failure, _trace(module, named, axes), _places(axes)) from error


def translated(
    module: Any,
    named: Mapping[str, Any],
    axes: Sequence[Axis],
    opset: int,
    *,
    program: Any = None,
    fixed: bool = False,
) -> tuple[Any, Dims]:
    """As `capture`, but for failures, which are torch's own.

    Raises:
        ExportError: a dim did not stay dynamic (EXPORT_SPECIALISED).
        Exception: torch cannot trace or translate the module.
    """
    with quiet(), traceable():
        shapes = dynamic_shapes(named, axes)
        found = _onnx_program(module, named, shapes, opset, program=program, fixed=fixed)
    symbols, ranges, notes = kept_dims(found, axes, list(tensors(named)))
    return found, Dims(symbols, ranges, notes + _changed(found))


def _onnx_program(
    module: Any, named: Mapping[str, Any], shapes: Mapping[str, Any], opset: int, *, program: Any, fixed: bool
) -> Any:
    if fixed:
        return _fixed(module, named, shapes, opset)
    given: dict[str, Any] = {"kwargs": copies(named), "dynamic_shapes": shapes} if program is None else {}
    return torch.onnx.export(
        module if program is None else program, (), **given, opset_version=opset,
        dynamo=True, optimize=False, verbose=False, custom_translation_table=translations(),
    )  # fmt: skip


def _fixed(module: Any, named: Mapping[str, Any], shapes: Mapping[str, Any], opset: int) -> Any:
    with fixes(module):
        return translate(trace(module, named, shapes), opset)


def _changed(translated: Any) -> list[str]:
    """What is to be said of buffers that the module changes, which a graph cannot do."""
    changed = getattr(translated.exported_program.graph_signature, "buffers_to_mutate", {})
    return [
        f"buffer {name!r} is changed by the module; the graph has it as it was" for name in changed.values()
    ]


def _followed(module: Any, named: Mapping[str, Any], axes: Sequence[Axis], opset: int) -> tuple[Any, Dims]:
    with quiet():
        decided = decisions(module, named)
        with traceable():
            found, taken = follow(module, named, dynamic_shapes(named, axes, bound=False), opset, decided)
    free = [dataclasses.replace(axis, promised=False) for axis in axes]
    symbols, _, _ = kept_dims(found, free, list(tensors(named)))
    ranges = {axis.name: axis.allowed for axis in axes if not axis.parts}
    notes = [f"taken as on the example: {decision}" for decision in taken.decisions]
    if taken.conditions:
        notes.append(f"{len(taken.conditions)} conditions on sizes taken as on the example")
    return found, Dims(symbols, ranges, notes + _changed(found), taken)


def dynamic_shapes(named: Mapping[str, Any], axes: Sequence[Axis], *, bound: bool = True) -> dict[str, Any]:
    """What torch.export takes as `dynamic_shapes`.

    Args:
        named: example inputs by parameter name.
        axes: the dynamic axes.
        bound: dims of one name are one, in their ranges; otherwise torch finds out for each.
    """
    alone = [axis for axis in axes if bound and not axis.parts]
    dims = {a.name: torch.export.Dim(a.name, min=a.allowed.min, max=a.allowed.max) for a in alone}
    shapes: dict[str, Any] = {
        name: {} if isinstance(value, torch.Tensor) else None for name, value in named.items()
    }
    for axis in axes:
        shapes[axis.input][axis.axis] = dims.get(axis.name, torch.export.Dim.AUTO)
    return shapes


def _places(axes: Sequence[Axis]) -> dict[str, str]:
    return {f"{axis.input}.{axis.axis}": axis.name for axis in axes}


def _trace(module: Any, named: Mapping[str, Any], axes: Sequence[Axis]) -> list[Guard]:
    """Trace once more, only to hear which conditions torch adds and where."""
    shapes = dynamic_shapes(named, axes)
    with quiet(), traceable(), reasons(module) as guards, contextlib.suppress(Exception):
        torch.export.export(module, (), kwargs=copies(named), dynamic_shapes=shapes)
    return guards
