"""A model as a tree of torch modules: parameters, bytes, MACs, nodes and milliseconds of each.

Modules are read from the origins that burnish keeps with every node (`burnish.provenance`). Where a model
has none, the prefixes of node names stand for them, as in `/encoder/layer.0/attention/self/query/MatMul`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, final

import msgspec
import onnx_ir as ir

from burnish.provenance import JOINED, Origin, ancestors, common_module, home_module, origins

Grouping = Literal["module", "node name", "nothing"]
_NOT_WEIGHTS: Final = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
"""Types of shapes, indices and masks: that several modules use one says nothing."""


class ModuleRow(msgspec.Struct, frozen=True):
    """One torch module and all that it holds."""

    path: str
    """Empty: the whole model."""
    kind: str
    """Its class; empty where no node says it."""
    nodes: int = 0
    parameters: int = 0
    bytes: int = 0
    macs: int | None = None
    """Multiply-accumulates; None: not counted."""
    ms: float | None = None
    """Milliseconds a run; None: not measured."""


class SharedWeight(msgspec.Struct, frozen=True):
    """A weight that several modules use: counted once. The largest come first."""

    name: str
    parameters: int
    bytes: int
    modules: tuple[str, ...]
    counted_at: str


class ModuleTable(msgspec.Struct, frozen=True):
    """The modules of a model, each before those inside it, in the order in which the graph meets them."""

    grouped_by: Grouping
    """Where the paths come from; `nothing`: neither origins nor names have any."""
    rows: tuple[ModuleRow, ...]
    shared: tuple[SharedWeight, ...] = ()
    notes: tuple[str, ...] = ()

    def within(self, depth: int | None) -> ModuleTable:
        """Without the modules deeper than `depth` below the root (None: all of them)."""
        kept = tuple(row for row in self.rows if depth is None or len(ancestors(row.path)) - 1 <= depth)
        return msgspec.structs.replace(self, rows=kept)


@final
class ModuleTree:
    """The modules of a model, and which of them each node and weight counts at."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        functions = [node for function in model.functions.values() for node in function.all_nodes()]
        self._nodes = [*model.graph.all_nodes(), *functions]
        known = any(origins(node.metadata_props) for node in self._nodes)
        self._read: Callable[[ir.Node], Sequence[Origin]] = _kept if known else _named
        self._kinds: dict[str, str] = {}
        self._met: dict[str, int] = {}
        for node in self._nodes:
            for origin in self._read(node):
                self._meet(origin.module)
                if origin.kind != JOINED:
                    self._kinds.setdefault(origin.module, origin.kind)
        named = any(self._met)
        self.grouped_by: Grouping = "module" if known else "node name" if named else "nothing"

    def home(self, nodes: Iterable[ir.Node]) -> str:
        """The path of the module at which nodes count that are one now; the root's where nothing is known."""
        return home_module(origin for node in nodes for origin in self._read(node))

    def table(
        self, macs: Mapping[ir.Node, int] | None = None, ms: Mapping[str, float] | None = None
    ) -> ModuleTable:
        """What each module holds.

        Args:
            macs: of nodes; None: not counted.
            ms: milliseconds a run by the path of the module they belong to; None: not measured.
        """
        sums = _Sums(self._met)
        for node in self._nodes:
            sums.add(self.home([node]), nodes=1, macs=(macs or {}).get(node, 0))
        shared = []
        for value in self._model.graph.initializers.values():
            if value.const_value is None:
                continue
            home, users = self._owner(value)
            size, nbytes = value.const_value.size, value.const_value.nbytes
            sums.add(home, parameters=size, bytes=nbytes)
            if len(users) > 1 and size > 1 and value.dtype not in _NOT_WEIGHTS:
                shared.append(SharedWeight(value.name or "", size, nbytes, tuple(users), home))
        shared.sort(key=lambda weight: -weight.bytes)
        for path, spent in (ms or {}).items():
            sums.add(path, ms=spent)
        rows = sums.rows(self._kinds, counted=macs is not None, timed=ms is not None)
        return ModuleTable(self.grouped_by, rows, tuple(shared), tuple(self._notes()))

    def _owner(self, value: ir.Value) -> tuple[str, list[str]]:
        """The module at which a weight counts, and the modules that use it, none of them inside another.

        A state-dict name says whose it is; any other weight counts where all of its users are.
        """
        homes = sorted({self.home([user]) for user in value.consumers()}, key=lambda path: self._met[path])
        around = {module for home in homes for module in ancestors(home)[:-1]}
        apart = [home for home in homes if home not in around]
        named = (value.name or "").rpartition(".")[0]
        if any(path and path in self._met for path in ancestors(named)):
            self._meet(named)
            return named, apart
        return common_module(map(Origin, homes)) if homes else "", apart

    def _meet(self, path: str) -> None:
        for module in ancestors(path):
            self._met.setdefault(module, len(self._met))

    def _notes(self) -> Iterable[str]:
        if self.grouped_by != "module":
            yield "The model does not say which torch modules its nodes come from (burnish export writes it)."
            yield (
                "Grouped by the prefixes of node names instead."
                if self.grouped_by == "node name"
                else "Node names have no prefixes either, so all of it counts as one module."
            )
            return
        silent = sum(1 for node in self._nodes if not self._read(node))
        if silent:
            yield f"{silent} of {len(self._nodes)} nodes do not say their module; they count at the root."


@final
class _Sums:
    """Totals of every module, each number added to all modules around it."""

    def __init__(self, met: dict[str, int]) -> None:
        self._met = met
        self._totals: dict[str, dict[str, float]] = {"": {}}

    def add(self, path: str, **numbers: float) -> None:
        """Add to a module and to those around it."""
        for module in ancestors(path):
            totals = self._totals.setdefault(module, {})
            for name, number in numbers.items():
                totals[name] = totals.get(name, 0) + number

    def rows(self, kinds: Mapping[str, str], *, counted: bool, timed: bool) -> tuple[ModuleRow, ...]:
        """A row for every module that holds something, in the order of the tree."""
        ordered = sorted(self._totals, key=self._place)
        return tuple(
            ModuleRow(
                path, kinds.get(path, ""), int(total.get("nodes", 0)), int(total.get("parameters", 0)),
                int(total.get("bytes", 0)), int(total.get("macs", 0)) if counted else None,
                float(total.get("ms", 0.0)) if timed else None,
            )
            for path in ordered
            for total in [self._totals[path]]
        )  # fmt: skip

    def _place(self, path: str) -> tuple[int, ...]:
        return tuple(self._met.get(module, len(self._met)) for module in ancestors(path))


def _kept(node: ir.Node) -> Sequence[Origin]:
    return origins(node.metadata_props)


def _named(node: ir.Node) -> Sequence[Origin]:
    """The prefix of a node's name, as the exporter of TorchScript graphs writes it."""
    prefix = (node.name or "").rpartition("/")[0].strip("/")
    return (Origin(".".join(filter(None, prefix.split("/")))),)
