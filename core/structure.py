"""`burnish.diff`: how two models differ in structure, and in what each torch module holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
import onnx_ir as ir

from burnish.fingerprint import Fingerprints, tensor_digest
from burnish.inspection import macs_by_node, read_torch_names
from burnish.manifest import DimRange, TensorSpec
from burnish.model import histogram, node_count
from burnish.modules import ModuleRow, ModuleTree
from burnish.provenance import ancestors
from burnish.sources import ModelLike, Source, open_source


class Change(msgspec.Struct, frozen=True):
    """Something that is said of both models, differently; None: of one of them it is not said."""

    name: str
    before: str | None
    after: str | None


class Weight(msgspec.Struct, frozen=True):
    """An initializer of the main graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str
    """Of dtype, shape and values, in hex."""


class WeightChange(msgspec.Struct, frozen=True):
    """An initializer of one name (`changed`), or of one content (`renamed`), in both models."""

    before: Weight
    after: Weight


class WeightChanges(msgspec.Struct, frozen=True):
    """How the initializers of the main graph differ."""

    added: tuple[Weight, ...] = ()
    removed: tuple[Weight, ...] = ()
    changed: tuple[WeightChange, ...] = ()
    renamed: tuple[WeightChange, ...] = ()


class ModuleChange(msgspec.Struct, frozen=True):
    """A torch module that holds something else now; rows are zero where a model has no such module."""

    path: str
    kind: str
    before: ModuleRow
    after: ModuleRow


class ModelDiff(msgspec.Struct, frozen=True):
    """How model `b` differs from model `a`; empty fields where it does not."""

    same: bool
    """True when nothing below differs."""
    nodes: tuple[int, int]
    """How many each model has, bodies and functions included."""
    rewired: bool
    """The graphs would not compute the same with the same weights; inner names do not count."""
    annotations: int
    """Where the graphs compute the same: nodes whose name or metadata differs."""
    ops: dict[str, tuple[int, int]]
    """How many nodes of an op each model has, where the numbers differ."""
    interface: tuple[Change, ...]
    """Inputs, outputs and the ranges of dynamic dims."""
    weights: WeightChanges
    opsets: tuple[Change, ...]
    metadata: tuple[Change, ...]
    """What the model says of itself: IR version, names, producer, target, recipe and the like."""
    modules: tuple[ModuleChange, ...] | None
    """Torch modules that differ; None: one of the models does not say which module a node comes from."""
    notes: tuple[str, ...] = ()


def diff(a: ModelLike, b: ModelLike, *, macs: bool = True) -> ModelDiff:
    """How two models differ in structure; nothing is said of how far apart their results are (`verify` does).

    Args:
        a: the model before: a path, an Artifact, an onnx.ModelProto or an onnx_ir.Model.
        b: the model after.
        macs: count multiply-accumulates by module, for which both models are run once.

    Raises:
        ModelError, ArtifactError: one of them cannot be read; the code says why.
    """
    return compare(open_source(a), open_source(b), macs=macs)


def compare(first: Source, second: Source, *, macs: bool = True) -> ModelDiff:
    """`diff` of two models that are open; origins that plain `torch.onnx.export` wrote are read into them."""
    weights = [_weights(source.model) for source in (first, second)]
    changes = _weight_changes(*weights)
    rewired, annotations = _wiring(first.model, second.model, changes)
    modules, notes = _modules(first, second, macs=macs)
    found = ModelDiff(
        same=False,
        nodes=(node_count(first.model), node_count(second.model)),
        rewired=rewired,
        annotations=annotations,
        ops=_ops(first.model, second.model),
        interface=tuple(_interface(first, second)),
        weights=changes,
        opsets=tuple(_changes(_opsets(first.model), _opsets(second.model))),
        metadata=tuple(_changes(_metadata(first), _metadata(second))),
        modules=modules,
        notes=tuple(notes),
    )
    return msgspec.structs.replace(found, same=_is_empty(found))


def _is_empty(found: ModelDiff) -> bool:
    said = (found.ops, found.interface, found.opsets, found.metadata, found.rewired, found.annotations)
    return not any(said) and found.weights == WeightChanges()


def _wiring(a: ir.Model, b: ir.Model, changes: WeightChanges) -> tuple[bool, int]:
    """Do the graphs differ, and if not, how many nodes differ in name or metadata?"""
    back = {pair.after.name: pair.before.name for pair in changes.renamed}
    before = Fingerprints(a, {name: name for name in a.graph.initializers})
    after = Fingerprints(b, {name: back.get(name, name) for name in b.graph.initializers})
    if before.whole != after.whole:
        return True, 0
    return False, (before.annotated() - after.annotated()).total()


def _ops(a: ir.Model, b: ir.Model) -> dict[str, tuple[int, int]]:
    before, after = histogram(a), histogram(b)
    counts = {op: (before.get(op, 0), after.get(op, 0)) for op in (before | after)}
    return {op: pair for op, pair in counts.items() if pair[0] != pair[1]}


def _changes(before: dict[str, str], after: dict[str, str]) -> Iterator[Change]:
    for name in before | after:
        if before.get(name) != after.get(name):
            yield Change(name, before.get(name), after.get(name))


def _interface(a: Source, b: Source) -> Iterator[Change]:
    sides = (a.manifest, b.manifest)
    for kind, (before, after) in (
        ("input", [_specs(side.inputs) for side in sides]),
        ("output", [_specs(side.outputs) for side in sides]),
        ("dim", [{name: _range(dim) for name, dim in side.dims.items()} for side in sides]),
    ):
        for change in _changes(before, after):
            yield msgspec.structs.replace(change, name=f"{kind} {change.name}")
        if list(before) != list(after) and before.keys() == after.keys() and kind != "dim":
            yield Change(f"order of {kind}s", ", ".join(before), ", ".join(after))


def _specs(specs: Iterable[TensorSpec]) -> dict[str, str]:
    return {spec.name: f"{spec.dtype}{_dims(spec)} {spec.meaning}" for spec in specs}


def _dims(spec: TensorSpec) -> str:
    if spec.shape is None:
        return "[...]"
    return f"[{', '.join('?' if dim is None else str(dim) for dim in spec.shape)}]"


def _range(dim: DimRange) -> str:
    return f"{dim.min} to {'any size' if dim.max is None else dim.max}"


def _opsets(model: ir.Model) -> dict[str, str]:
    return {domain or "ai.onnx": str(version) for domain, version in sorted(model.opset_imports.items())}


def _metadata(source: Source) -> dict[str, str]:
    model = source.model
    said = {
        "ir_version": model.ir_version, "producer_name": model.producer_name,
        "producer_version": model.producer_version, "domain": model.domain,
        "model_version": model.model_version, "doc_string": model.doc_string,
        "graph name": model.graph.name, "target": source.manifest.target, "recipe": source.manifest.recipe,
    }  # fmt: skip
    kept = {f"metadata {key}": value for key, value in sorted(model.metadata_props.items())}
    return {name: str(value) for name, value in (said | kept).items() if value}


def _weights(model: ir.Model) -> dict[str, Weight]:
    return {name: _weight(name, value) for name, value in model.graph.initializers.items()}


def _weight(name: str, value: ir.Value) -> Weight:
    tensor = value.const_value
    if tensor is None:
        return Weight(name, "", (), 0, "")
    shape = tuple(int(size) for size in tensor.shape.numpy())
    dtype = "str" if tensor.dtype == ir.DataType.STRING else str(tensor.dtype.numpy())
    return Weight(name, dtype, shape, tensor.nbytes, tensor_digest(value))


def _weight_changes(before: Mapping[str, Weight], after: Mapping[str, Weight]) -> WeightChanges:
    both = [WeightChange(before[name], after[name]) for name in before if name in after]
    removed = {name: weight for name, weight in before.items() if name not in after}
    added = {name: weight for name, weight in after.items() if name not in before}
    by_content: dict[str, list[Weight]] = {}
    for weight in added.values():
        by_content.setdefault(weight.sha256, []).append(weight)
    renamed = []
    for weight in list(removed.values()):
        if twins := by_content.get(weight.sha256):
            twin = twins.pop(0)
            renamed.append(WeightChange(weight, twin))
            del removed[weight.name], added[twin.name]
    return WeightChanges(
        added=tuple(added.values()),
        removed=tuple(removed.values()),
        changed=tuple(pair for pair in both if pair.before != pair.after),
        renamed=tuple(renamed),
    )


def _modules(a: Source, b: Source, *, macs: bool) -> tuple[tuple[ModuleChange, ...] | None, list[str]]:
    for source in (a, b):
        read_torch_names(source.model)
    trees = [ModuleTree(source.model) for source in (a, b)]
    silent = [which for which, tree in zip("AB", trees, strict=True) if tree.grouped_by != "module"]
    if silent:
        who = "A and B do" if len(silent) > 1 else f"{silent[0]} does"
        return None, [f"Not compared by torch module: {who} not say which module a node comes from."]
    rows, notes = [], []
    for which, source, tree in zip("AB", (a, b), trees, strict=True):
        counted, note = macs_by_node(source.model, source.manifest) if macs else (None, "")
        rows.append({row.path: row for row in tree.table(counted).rows})
        notes += [f"MACs of {which} {note}"] if note else []
    return tuple(_module_changes(*rows)), notes


def _module_changes(before: dict[str, ModuleRow], after: dict[str, ModuleRow]) -> Iterator[ModuleChange]:
    def nothing(path: str) -> ModuleRow:
        return ModuleRow(path, "", macs=None if before[""].macs is None or after[""].macs is None else 0)

    places: dict[str, int] = {}
    for path in before | after:
        for module in ancestors(path):
            places.setdefault(module, len(places))
    for path in sorted(before | after, key=lambda path: tuple(places[module] for module in ancestors(path))):
        one, other = before.get(path, nothing(path)), after.get(path, nothing(path))
        if msgspec.structs.replace(one, kind="") != msgspec.structs.replace(other, kind=""):
            yield ModuleChange(path, one.kind or other.kind, one, other)
