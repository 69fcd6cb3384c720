"""What is in a model: the facts that `burnish inspect` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx_ir as ir

from burnish.checking import model_file
from burnish.errors import BurnishError, ModelError
from burnish.macs import is_counted, macs_of, multiplies
from burnish.manifest import Manifest
from burnish.model import histogram, node_count, op_name
from burnish.modules import ModuleTable, ModuleTree
from burnish.provenance import origins
from burnish.runtime.outline import Outline
from burnish.runtime.profiling import Profile
from burnish.sources import open_source
from burnish.target import TARGETS
from burnish.workbench import Workbench

TORCH_NAMES: Final = "pkg.torch.onnx.name_scopes"
"""Key in a node's metadata, by which plain torch exports say where it comes from."""


def describe(model: str | Path) -> dict[str, Any]:
    """Inputs, outputs, opsets, op counts, parameters, bytes, MACs and receipts of a model file.

    MACs are those of `macs_by_node`; None where the model does not run on random inputs.

    Raises:
        ModelError, ArtifactError: the model cannot be read.
    """
    source = open_source(model)
    weights = [value.const_value for value in source.model.graph.initializers.values() if value.const_value]
    macs, note = macs_by_node(source.model, source.manifest)
    return {
        "inputs": source.manifest.inputs,
        "outputs": source.manifest.outputs,
        "dims": source.manifest.dims,
        "target": source.manifest.target,
        "opsets": dict(source.model.opset_imports),
        "ir_version": source.model.ir_version,
        "nodes": node_count(source.model),
        "ops": histogram(source.model),
        "parameters": sum(tensor.size for tensor in weights),
        "weight_bytes": sum(tensor.nbytes for tensor in weights),
        "macs": None if macs is None else sum(macs.values()),
        "macs_note": note,
        "recipe": source.manifest.recipe,
        "receipts": source.manifest.receipts,
    }


def macs_by_node(model: ir.Model, interface: Manifest) -> tuple[dict[ir.Node, int] | None, str]:
    """Multiply-accumulates of the nodes of the main graph, and at which sizes, or why there are none.

    Counted at one typical input (batch 1, other dynamic dims 128, as far as their ranges allow) by running
    the model and reading the shapes of what `burnish.macs` knows; None where it does not run on them.
    """
    heavy = [node for node in model.graph if is_counted(node)]
    shapes: dict[str, tuple[int, ...]] = {}
    inner: dict[str, None] = {}
    for node in heavy:
        for number, value in enumerate((*node.outputs[:1], *node.inputs)):
            if value is None or value.name is None:
                continue
            if value.is_initializer() and value.const_value is not None:
                shapes[value.name] = tuple(value.const_value.shape.numpy())
            elif number < 3:
                inner[value.name] = None
    try:
        sizes, arrays = Workbench(interface, TARGETS["cpu"]).probe_at(model, sorted(inner))
    except BurnishError as error:
        return None, f"(not counted: {error.what})"
    shapes |= {name: array.shape for name, array in arrays.items()}
    found = {node: macs_of(node, shapes) for node in heavy}
    counted = {node: macs for node, macs in found.items() if macs is not None}
    where = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its fixed sizes"
    return counted, f"at {where}{_uncounted(model, counted)}"


def _uncounted(model: ir.Model, counted: Mapping[ir.Node, int]) -> str:
    """What multiplies too and is not counted: other ops, and those in bodies and functions."""
    done = Counter(op_name(node) for node in counted)
    found = {op: count - done[op] for op, count in histogram(model).items() if multiplies(op)}
    rest = [f"{count} {op}" for op, count in found.items() if count]
    return f"; not counted: {', '.join(rest)}" if rest else ""


class Timed(msgspec.Struct, frozen=True):
    """Where the milliseconds of a run go, as onnxruntime's profile tells."""

    runs: int
    run_ms: float
    """Of a whole run, mean."""
    nodes_ms: float
    """Of all nodes together; the rest of a run is between them."""
    unattributed_ms: float
    """Of nodes that onnxruntime made itself and that no node of the model answers for."""
    unattributed: tuple[str, ...]
    """Their ops, with how many."""


class ModuleReport(msgspec.Struct, frozen=True):
    """What `burnish inspect --by-module` shows."""

    table: ModuleTable
    macs_note: str
    timed: Timed | None = None


def describe_modules(model: str | Path, *, depth: int | None = None, profile: bool = False) -> ModuleReport:
    """Parameters, bytes, MACs, nodes and perhaps milliseconds of each torch module of a model file.

    Args:
        model: an `.onnx` file or an artifact folder.
        depth: leave out modules deeper than that below the root; what they hold is in those around them.
        profile: run the model under onnxruntime's profiler, on one typical input, optimiser on.

    Raises:
        ModelError, ArtifactError: the model cannot be read, or (`profile`) does not run.
    """
    source = open_source(model)
    read_torch_names(source.model)
    tree = ModuleTree(source.model)
    macs, note = macs_by_node(source.model, source.manifest)
    ms, timed = times_by_module(source.model, source.manifest, tree) if profile else (None, None)
    return ModuleReport(tree.table(macs, ms).within(depth), note, timed)


def read_torch_names(model: ir.Model) -> None:
    """Write origins into a model from plain `torch.onnx.export`, which says them in its own way."""
    nodes = list(model.graph.all_nodes())
    torch_says = any(TORCH_NAMES in node.metadata_props for node in nodes)
    if torch_says and not any(origins(node.metadata_props) for node in nodes):
        from burnish.exporter.origins import note_origins

        note_origins(model)


def times_by_module(
    model: ir.Model, interface: Manifest, tree: ModuleTree, *, runs: int = 10
) -> tuple[dict[str, float], Timed]:
    """Milliseconds a run of each module by its path, from onnxruntime's profile of one typical input.

    onnxruntime fuses and renames nodes, but a fused node still makes a value of the model: its time goes
    to the module of the nodes behind that value which are not executed any more. Nodes without a name of
    their own are given one.

    Raises:
        ModelError: the model runs at none of the sizes that were tried.
    """
    _name_apart(model.graph.all_nodes())
    profile, executed = _profile(model, interface, runs)
    outer = {node.name: node for node in model.graph}
    inner = {node.name for node in model.graph.all_nodes()} - outer.keys()
    groups = _executed_groups(model, executed)
    ms: dict[str, float] = {}
    lost: Counter[str] = Counter()
    total = unattributed = 0.0
    for each in profile.nodes:
        if each.node in inner and each.node not in groups:
            continue  # in a branch or loop, whose own node has the time
        total += each.ms
        nodes = groups.get(each.node) or [node for node in [outer.get(each.node)] if node is not None]
        if nodes:
            home = tree.home(nodes)
            ms[home] = ms.get(home, 0.0) + each.ms
        else:
            unattributed += each.ms
            lost[each.op] += 1
    words = tuple(f"{count} {op}" for op, count in lost.most_common())
    return ms, Timed(profile.runs, profile.run_ms, total, unattributed, words)


def _name_apart(nodes: Iterable[ir.Node]) -> None:
    """Give every node a name that no other has, for onnxruntime tells times by name; prefixes stay."""
    taken: set[str] = set()
    for number, node in enumerate(nodes):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}#{number}"
        taken.add(node.name)


def _profile(model: ir.Model, interface: Manifest, runs: int) -> tuple[Profile, list[Outline]]:
    from burnish.runtime.session import Session

    feeds = Workbench(interface, TARGETS["cpu"]).typical_feeds()
    with model_file(model) as file, Session(file) as session:
        executed = session.executed_nodes()
        for given in feeds:
            try:
                return session.profile(given, runs), executed
            except ModelError as error:
                failure = error
    raise failure


def _executed_groups(model: ir.Model, executed: Sequence[Outline]) -> dict[str, list[ir.Node]]:
    """For each executed node, the model's nodes whose work it does.

    They are those that make its values, and those behind them whose values nothing makes any more. A node
    that makes no value of the model (a Gemm between two new Reshapes) works for those that read from it.
    """
    makers = {value.name or "": node for node in model.graph for value in node.outputs}
    made = {name for outline in executed for name in outline.outputs}
    readers: dict[str, dict[ir.Node, None]] = {}
    groups: dict[str, list[ir.Node]] = {}
    for outline in reversed(executed):
        found = _swallowed([makers[name] for name in outline.outputs if name in makers], makers, made)
        if not found:
            found = {node: None for name in outline.outputs for node in readers.get(name, {})}
        for name in outline.inputs:
            if name not in makers:
                readers.setdefault(name, {}).update(found)
        if found and outline.name:
            groups[outline.name] = list(found)
    return groups


def _swallowed(
    nodes: list[ir.Node], makers: Mapping[str, ir.Node], made: Container[str]
) -> dict[ir.Node, None]:
    """These nodes, and those behind them whose values are not made any more."""
    todo, found = list(nodes), dict.fromkeys(nodes)
    while todo:
        names = [value.name or "" for value in todo.pop().inputs if value is not None]
        behind = [makers[name] for name in names if name in makers and name not in made]
        todo += [node for node in behind if node not in found]
        found |= dict.fromkeys(behind)
    return found
