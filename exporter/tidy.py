"""What torch 2.13's exporter leaves wrong in a graph, put right: names, dims, metadata, ownership.

Seen in torch 2.13 (each has a test): an input and a parameter of one name become one value in the file; two
outputs that are the same tensor get one name; naming an output that is an input renames the input; dims
lose their names when an input is a constant; every node carries a stack trace with absolute paths.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from burnish.exporter.storage import Storage
from burnish.exporter.values import as_numpy, to_numpy
from burnish.provenance import KEYS

_WORD: Final = re.compile(r"[A-Za-z_]\w*")
_FREE: Final = re.compile(r"u\d+|zuf\d+")  # torch's symbols of sizes that values decide: u0, zuf0

KEPT_METADATA: Final = frozenset(KEYS)
"""Where in the module a node comes from. The rest is noise, or names paths of this machine."""


def strip_metadata(model: ir.Model) -> None:
    """Drop all metadata but `KEPT_METADATA` (of nodes), so that the same module gives the same bytes."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    model.metadata_props.clear()
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            for key in [key for key in node.metadata_props if key not in KEPT_METADATA]:
                del node.metadata_props[key]
    for value in all_values(model):
        value.metadata_props.clear()


def own_weights(model: ir.Model, storage: Storage | None = None, *, copy: bool = True) -> list[str]:
    """Take every initializer out of torch's memory; return what is to be said of it.

    Parameters that share memory (tied weights) go on sharing it.

    Args:
        model: an export, whose initializers are torch's tensors.
        storage: those that are in it become references to its file.
        copy: copy the others, so that training on does not change the model. Without, they stay views of
            torch's memory.
    """
    copies: dict[tuple[object, ...], np.ndarray] = {}
    turned = 0
    for value in list(model.graph.initializers.values()):
        tensor: Any = value.const_value
        raw: Any = getattr(tensor, "raw", None)
        if not hasattr(raw, "data_ptr"):
            continue
        place = storage.find(raw) if storage is not None else None
        if storage is not None and place is not None:
            value.const_value = storage.external(place, value.name or "")
            turned += place.turned
            if place.turned:
                _turn(model, value)
            continue
        key = (raw.data_ptr(), raw.dtype, tuple(raw.shape), raw.stride())
        if key not in copies:
            copies[key] = to_numpy(raw) if copy else as_numpy(raw)
        value.const_value = ir.Tensor(copies[key], dtype=tensor.dtype, name=value.name)
    return [f"{turned} weights of Linear layers are stored as MatMul reads them: [in, out]"] if turned else []


def _turn(model: ir.Model, value: ir.Value) -> None:
    """Make an initializer's graph fit its value, which is stored as its transpose."""
    rows, columns = value.const_value.shape.numpy()  # type: ignore[union-attr]
    value.shape = ir.Shape([rows, columns])
    users = list(dict.fromkeys(node for node, _ in value.uses()))
    others = []
    for node in users:
        if node.op_type == "Transpose" and node.attributes.get_ints("perm", ()) == (1, 0):
            node.outputs[0].replace_all_uses_with(value)
            node.graph.remove(node, safe=True)  # type: ignore[union-attr]
        else:
            others.append(node)
    if others:
        back = ir.node("Transpose", [value], {"perm": [1, 0]}, name=f"node_{value.name}_turned")
        back.outputs[0].shape, back.outputs[0].type = ir.Shape([columns, rows]), value.type
        model.graph.insert_before(model.graph[0], back)
        for node in others:
            for index, given in enumerate(node.inputs):
                if given is value:
                    node.replace_input_with(index, back.outputs[0])


def name_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Give inputs and outputs their names, in order; return the names of values that had to make room.

    An output that is an input, a weight or another output gets a node of its own (Identity).
    """
    for index, value in enumerate(list(model.graph.outputs)):
        if _needs_own_node(value, model.graph.outputs[:index]):
            node = ir.node("Identity", [value], name=f"node_output_{index}")
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            model.graph.append(node)
            model.graph.outputs[index] = node.outputs[0]
    wanted = dict(zip(model.graph.inputs, inputs, strict=True))
    wanted |= dict(zip(model.graph.outputs, outputs, strict=True))
    return _rename(model, wanted)


def rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename symbolic dims in every shape of the graph, inside expressions too."""
    if not names:
        return
    word = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")

    def renamed(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if isinstance(dim, int) or dim.value is None:
            return dim
        if dim.value in names:
            return ir.SymbolicDim(names[dim.value])
        return ir.SymbolicDim(word.sub(lambda match: _operand(names[match.group()]), dim.value))

    for value in all_values(model):
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def name_free_dims(model: ir.Model, known: Container[str]) -> list[str]:
    """Name the output dims whose size values decide (torch's symbol `u0`), or that nothing is known of.

    Args:
        model: its other dims have the names of `known`, or are sums and the like of them.
        known: the dims of the inputs.

    Returns:
        The names: `OUTPUT_dim_AXIS`; two dims of one symbol have the name of the first.
    """
    renamed: dict[str, str] = {}
    for value in model.graph.outputs:
        dims = list(value.shape or ())
        for axis, dim in enumerate(dims):
            text = "" if isinstance(dim, int) else dim.value or ""
            free = [word for word in _WORD.findall(text) if _FREE.fullmatch(word) and word not in known]
            if free or (not isinstance(dim, int) and not text):
                name = f"{value.name}_dim_{axis}"
                dims[axis] = ir.SymbolicDim(renamed.setdefault(text or name, name))
        if value.shape is not None:
            value.shape = ir.Shape(dims)
    rename_dims(model, renamed)
    return list(renamed.values())


def _operand(name: str) -> str:
    return name if name.isidentifier() else f"({name})"


def _needs_own_node(value: ir.Value, before: Iterable[ir.Value]) -> bool:
    given = value.is_graph_input() or value.is_initializer()
    return given or any(value is other for other in before)


def _rename(model: ir.Model, wanted: Mapping[ir.Value, str]) -> list[str]:
    names = set(wanted.values())
    others = [value for value in all_values(model) if value not in wanted and value.name in names]
    taken = {value.name for value in all_values(model)} | names
    moved = []
    for value in others:
        moved.append(value.name or "")
        value.name = next(n for i in range(1, len(taken) + 2) if (n := f"{value.name}_{i}") not in taken)
        taken.add(value.name)
    for index, value in enumerate(wanted):  # in two steps: two of them may swap names
        value.name = f"burnish.interface.{index}"
    for value, name in wanted.items():
        value.name = name
    return moved


def all_values(model: ir.Model) -> list[ir.Value]:
    """Every value of the model, each once."""
    found: dict[ir.Value, None] = {}
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        found |= dict.fromkeys(graph.inputs)
        for node in graph.all_nodes():
            found |= dict.fromkeys(node.outputs)
    return list(found | dict.fromkeys(model.graph.initializers.values()))
