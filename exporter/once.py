"""Layers that are the same are traced once: a twin of the model with few of them is, and its graph completed.

Proven step by step, and left alone where one fails: the modules are alike (`burnish.exporter.layers`) and
are called alike (`burnish.exporter.calls`), the nodes of two of them are the same in order
(`burnish.exporter.layer_nodes`), and the completed graph has the inputs and outputs of the whole module. Like
every export, it is then compared with the whole module.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import onnx_ir as ir

from burnish.exporter.calls import need_called_alike
from burnish.exporter.capture import Dims, translated
from burnish.exporter.dims import Axis
from burnish.exporter.layer_nodes import UnlikeError
from burnish.exporter.layers import Stack, all_weights, find_stacks, shortened
from burnish.exporter.library_fixes import NOTE, has_fixes
from burnish.exporter.quiet import quiet
from burnish.exporter.replay import Interface, replay
from burnish.exporter.source import Recast
from burnish.exporter.values import copies, flat_outputs, tensors

_LOG: Final = logging.getLogger(__name__)
_TRACED: Final = "pkg.torch.export."
"""What the metadata of a graph that torch says of the whole of what it traced begins with."""


@final
@dataclasses.dataclass(frozen=True)
class Whole:
    """A module whose graph is wanted, in eval mode, all layers of it."""

    module: Any
    named: Mapping[str, Any]
    """Example inputs by parameter name."""
    axes: Sequence[Axis]
    """The dynamic ones."""
    outputs: Sequence[str]
    """The names of its outputs, as `flat_outputs` calls them."""


def capture_once(whole: Whole, recast: Recast, opset: int, *, fixed: bool = False) -> tuple[Any, Dims] | None:
    """As `burnish.exporter.capture.capture`, tracing a few of many layers that are alike.

    Args:
        whole: what is to be exported.
        recast: how that module is made of its model.
        opset: of the graph.
        fixed: with transformers' own mends.

    Returns:
        None where no layers are known to be alike, or anything fails: then all are to be traced.
    """
    try:
        stacks = find_stacks(recast.model)
        return _captured(whole, recast, stacks, opset, fixed=fixed) if stacks else None
    except Exception as error:  # noqa: BLE001 - the module is anybody's code, and a twin of it asks more of it
        _LOG.debug("every layer is traced: %s", error)
        return None


def _captured(
    whole: Whole, recast: Recast, stacks: Sequence[Stack], opset: int, *, fixed: bool
) -> tuple[Any, Dims]:
    with quiet():
        need_called_alike(recast.model, stacks, lambda: whole.module(**copies(whole.named)))
    short = recast.make(shortened(recast.model, stacks))
    gone = _takes(whole.module) - _takes(short)
    given = {name: value for name, value in whole.named.items() if name not in gone}
    with quiet():
        results = list(flat_outputs(short(**copies(given))))
    axes = [axis for axis in whole.axes if axis.input in given]
    program, dims = _traced(short, given, axes, opset, fixed=fixed)
    graph: ir.Graph = program.model.graph
    interface = Interface(
        dict(zip(tensors(given), graph.inputs, strict=True)), dict(zip(results, graph.outputs, strict=True))
    )
    weights = all_weights(recast.model)
    replayed = [stack for stack in stacks if replay(graph, stack, interface, weights.get)]
    if not replayed:
        raise UnlikeError("the graph holds nothing of these layers")
    _need_same_dims(interface, whole)
    _complete(graph, interface, whole, weights)
    dims.notes.extend(map(_note, replayed))
    return program, dims


def _takes(module: Any) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


def _traced(
    short: Any, given: Mapping[str, Any], axes: Sequence[Axis], opset: int, *, fixed: bool
) -> tuple[Any, Dims]:
    """Where a plain trace of a few layers fails, one of all would: it is not waited for."""
    try:
        return translated(short, given, axes, opset, fixed=fixed)
    except Exception:
        if fixed or not has_fixes(short):
            raise
    program, dims = translated(short, given, axes, opset, fixed=True)
    dims.notes.append(NOTE)
    return program, dims


def _need_same_dims(interface: Interface, whole: Whole) -> None:
    """An input of a layer that was not traced has the dims of the one that it was copied from."""
    dims: dict[str, dict[int, Any]] = {}
    for axis in whole.axes:
        dims.setdefault(axis.input, {})[axis.axis] = (axis.name, axis.allowed)
    for name, like in interface.copied.items():
        one, other = whole.named[name], whole.named[like]
        if (one.shape, one.dtype, dims.get(name)) != (other.shape, other.dtype, dims.get(like)):
            raise UnlikeError(f"input {name} is not like {like}")


def _complete(graph: ir.Graph, interface: Interface, whole: Whole, weights: Mapping[str, Any]) -> None:
    """Inputs, outputs and initializers in the order of the whole module."""
    inputs, outputs = list(tensors(whole.named)), whole.outputs
    if set(inputs) != interface.inputs.keys() or set(outputs) != interface.outputs.keys():
        raise UnlikeError(f"inputs {list(interface.inputs)} and outputs {list(interface.outputs)}")
    graph.inputs.clear()
    graph.inputs.extend(interface.inputs[name] for name in inputs)
    graph.outputs.clear()
    graph.outputs.extend(interface.outputs[name] for name in outputs)
    place = {name: number for number, name in enumerate(weights)}
    held = sorted(graph.initializers.values(), key=lambda value: place.get(value.name or "", len(place)))
    graph.initializers.clear()
    for value in held:
        graph.initializers.add(value)
    for key in [key for key in graph.metadata_props if key.startswith(_TRACED)]:
        del graph.metadata_props[key]


def _note(stack: Stack) -> str:
    first, last = stack.kept, stack.count - 1
    return (
        f"layers {first} to {last} of {stack.path or 'the module'} are layer {first - 1} again: exported once"
    )
