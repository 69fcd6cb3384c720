"""Layers that are the same are traced once: a twin of the model with few of them is, and its graph completed.

Proven in three steps, and left alone where one fails: the modules are alike (`burnish.exporter.layers`),
the nodes of two of them are the same in order (`burnish.exporter.layer_nodes`), and the completed graph has
the inputs and outputs of the whole module. Like every export, it is then compared with the whole module.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from burnish.exporter.capture import Dims, translated
from burnish.exporter.dims import Axis
from burnish.exporter.layer_nodes import UnlikeError
from burnish.exporter.layers import Stack, find_stacks, shortened
from burnish.exporter.quiet import quiet
from burnish.exporter.replay import Interface, replay
from burnish.exporter.source import Recast
from burnish.exporter.values import copies, flat_outputs, tensors

_TRACED = "pkg.torch.export."
"""What the metadata of a graph that torch says of the whole of what it traced begins with."""


def capture_once(
    recast: Recast, named: Mapping[str, Any], axes: Sequence[Axis], opset: int, outputs: Sequence[str],
    *, fixed: bool = False,
) -> tuple[Any, Dims] | None:  # fmt: skip
    """As `burnish.exporter.capture.capture`, tracing a few of many layers that are alike.

    Args:
        recast: how the module is made of its model; the model is in eval mode.
        named: example inputs of the whole module, by parameter name.
        axes: of those.
        opset: of the graph.
        outputs: of the whole module, as `flat_outputs` calls them.
        fixed: with transformers' own mends.

    Returns:
        None where no layers are known to be alike, or anything fails: then the whole module is to be traced.
    """
    try:
        stacks = find_stacks(recast.model)
        return _captured(recast, stacks, named, axes, opset, outputs, fixed) if stacks else None
    except Exception:  # noqa: BLE001 - the module is anybody's code, and a twin of it asks more of it
        return None


def _captured(
    recast: Recast, stacks: Sequence[Stack], named: Mapping[str, Any], axes: Sequence[Axis], opset: int,
    outputs: Sequence[str], fixed: bool,
) -> tuple[Any, Dims]:  # fmt: skip
    short = recast.make(shortened(recast.model, stacks))
    takes = inspect.signature(short.forward).parameters
    gone = inspect.signature(recast.make(recast.model).forward).parameters.keys() - takes.keys()
    given = {name: value for name, value in named.items() if name not in gone}
    with quiet():
        results = list(flat_outputs(short(**copies(given))))
    program, dims = translated(
        short, given, [axis for axis in axes if axis.input in given], opset, fixed=fixed
    )
    graph: ir.Graph = program.model.graph
    interface = Interface(
        dict(zip(tensors(given), graph.inputs, strict=True)), dict(zip(results, graph.outputs, strict=True))
    )
    weights = _weights(recast.model)
    replayed = [stack for stack in stacks if replay(graph, stack, interface, weights.get)]
    if not replayed:
        raise UnlikeError("the graph holds nothing of these layers")
    _need_same_dims(interface, named, axes)
    _complete(graph, interface, (list(tensors(named)), outputs), weights)
    dims.notes.extend(map(_note, replayed))
    return program, dims


def _weights(model: Any) -> dict[str, Any]:
    """Parameters and buffers by name, in the order in which torch lists them; shared ones by each name."""
    both = (model.named_parameters, model.named_buffers)
    return {name: tensor for each in both for name, tensor in each(remove_duplicate=False)}


def _need_same_dims(interface: Interface, named: Mapping[str, Any], axes: Sequence[Axis]) -> None:
    """An input of a layer that was not traced has the dims of the one that it was copied from."""
    dims: dict[str, dict[int, Any]] = {}
    for axis in axes:
        dims.setdefault(axis.input, {})[axis.axis] = (axis.name, axis.allowed)
    for name, like in interface.copied.items():
        one, other = named[name], named[like]
        if (one.shape, one.dtype, dims.get(name)) != (other.shape, other.dtype, dims.get(like)):
            raise UnlikeError(f"input {name} is not like {like}")


def _complete(
    graph: ir.Graph,
    interface: Interface,
    names: tuple[Sequence[str], Sequence[str]],
    weights: Mapping[str, Any],
) -> None:
    """Inputs, outputs and initializers in the order of the whole module."""
    inputs, outputs = names
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
