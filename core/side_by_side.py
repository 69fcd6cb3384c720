"""Two models layer by layer: what stayed, what went and what came, side by side.

Layers are torch modules where both models say theirs, the prefixes of node names where neither does.
Layers of which the same is to be said are one, with a count.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, final

import onnx_ir as ir

from burnish.explaining import folded
from burnish.manifest import Receipt
from burnish.model import op_name
from burnish.modules import Grouping, ModuleTree
from burnish.pairing import Fate, Pairing
from burnish.passes.matching import MADE_BY
from burnish.provenance import JOINED, origins
from burnish.sources import Source
from burnish.structure import ModelDiff

Kind = Literal["same", "changed", "went", "came", "became"]


class Said(NamedTuple):
    """Something about a block: what, the same in layers that are alike, and of which values or nodes."""

    what: str
    of: tuple[str | ir.Node, ...] = ()


@final
@dataclasses.dataclass(frozen=True)
class Block:
    """Nodes of one model and those of the other that stand beside them."""

    kind: Kind
    left: tuple[ir.Node, ...] = ()
    right: tuple[ir.Node, ...] = ()
    said: tuple[Said, ...] = ()

    def outline(self) -> tuple[object, ...]:
        """Equal for blocks of layers that are alike."""
        ops = [tuple(map(op_name, nodes)) for nodes in (self.left, self.right)]
        return (self.kind, *ops, tuple(said.what for said in self.said))


@final
@dataclasses.dataclass(frozen=True)
class Layer:
    """Modules of which the same is to be said; `blocks` are those of the first."""

    label: str
    members: tuple[str, ...]
    kind: str
    """Class of the modules; empty where no node says it."""
    blocks: tuple[Block, ...]


class OpCount(NamedTuple):
    """How many nodes of an operator there were and are, and what became of them."""

    op: str
    before: int
    after: int
    stayed: int


@final
@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Both graphs, told by layers."""

    grouped_by: Grouping
    layers: tuple[Layer, ...]
    ops: tuple[OpCount, ...]
    receipts: tuple[Receipt, ...]
    """What was done to A to get B, as far as B's own receipts tell."""


def side_by_side(a: Source, b: Source, found: ModelDiff) -> SideBySide:
    """Compare two open models node by node.

    Args:
        a: the model before.
        b: the model after.
        found: what `burnish.structure.compare` said of them.
    """
    pairing = Pairing(a.model, b.model, {pair.after.name: pair.before.name for pair in found.weights.renamed})
    receipts = _receipts(a, b)
    homes, grouped_by = _homes(a.model, b.model, pairing)
    layers = _fold(_Teller(pairing, homes, receipts).layers(), pairing)
    return SideBySide(grouped_by, tuple(layers), tuple(_ops(pairing)), receipts)


def _receipts(a: Source, b: Source) -> tuple[Receipt, ...]:
    """Those of B that A does not have; none where B does not stem from A by what they tell."""
    had, has = a.manifest.receipts, b.manifest.receipts
    return has[len(had) :] if has[: len(had)] == had else ()


def _homes(a: ir.Model, b: ir.Model, pairing: Pairing) -> tuple[dict[ir.Node, str], Grouping]:
    """The layer of each node of both; one that stayed counts where it was before."""
    before, after = ModuleTree(a), ModuleTree(b)
    if before.grouped_by != after.grouped_by or before.grouped_by == "nothing":
        return dict.fromkeys((*pairing.before, *pairing.after), ""), "nothing"
    homes = {node: before.home([node]) for node in pairing.before}
    for node in pairing.after:
        partner = pairing.partner.get(node)
        homes[node] = after.home([node]) if partner is None else homes[partner]
    return homes, before.grouped_by


def _ops(pairing: Pairing) -> Iterator[OpCount]:
    before, after = (Counter(map(op_name, side)) for side in (pairing.before, pairing.after))
    stayed = Counter(op_name(node) for node in pairing.before if node in pairing.partner)
    for op in sorted(before | after, key=lambda op: (-before[op], -after[op], op)):
        yield OpCount(op, before[op], after[op], stayed[op])


@final
class _Teller:
    """Lays the nodes of each layer beside each other."""

    def __init__(self, pairing: Pairing, homes: Mapping[ir.Node, str], receipts: Sequence[Receipt]) -> None:
        self._pairing, self._homes = pairing, homes
        worked = [receipt.step for receipt in receipts if receipt.rewrites and receipt.status == "kept"]
        self._only = worked[0] if len(worked) == 1 else ""

    def layers(self) -> Iterator[tuple[str, tuple[Block, ...]]]:
        """The layers by path, in the order in which the graphs meet them."""
        sides: dict[str, tuple[list[ir.Node], list[ir.Node]]] = {}
        for side, nodes in enumerate((self._pairing.before, self._pairing.after)):
            for node in nodes:
                sides.setdefault(self._homes[node], ([], []))[side].append(node)
        for path, (left, right) in sides.items():
            yield path, tuple(self._blocks(path, left, right))

    def _blocks(self, path: str, left: Sequence[ir.Node], right: Sequence[ir.Node]) -> list[Block]:
        """In the order of A; what came stands beside the last of what it replaced, else where B has it."""
        joined = self._joined(path, left)
        here = {node: heir for heir, nodes in joined.items() for node in nodes}
        places: dict[ir.Node, int] = {}
        blocks: list[tuple[int, int, Block]] = []
        for number, node in enumerate(left):
            partner = self._pairing.partner.get(node)
            if partner is not None:
                places[partner] = number
                blocks.append((number, 0, self._stayed(node, partner)))
            elif node in here:
                places[here[node]] = number
            else:
                blocks.append((number, 0, Block("went", (node,), (), self._gone(node))))
        last = -1
        for number, node in enumerate(right):
            last = places.get(node, last)
            if node not in self._pairing.partner:
                block = self._came(node, joined.get(node, ()))
                blocks.append((last, number + 1, block))
        return list(_joined_up(block for *_, block in sorted(blocks, key=lambda row: row[:2])))

    def _joined(self, path: str, left: Iterable[ir.Node]) -> dict[ir.Node, list[ir.Node]]:
        """What went, by the node that came for it in the same layer."""
        found: dict[ir.Node, list[ir.Node]] = {}
        for node in left:
            fate = self._pairing.fates.get(node, Fate())
            heir = next((heir for heir in fate.nodes if self._homes[heir] == path), None)
            if heir is not None:
                found.setdefault(heir, []).append(node)
        return found

    def _stayed(self, node: ir.Node, partner: ir.Node) -> Block:
        differences = tuple(Said(what) for what in self._pairing.differences(node))
        return Block("changed" if differences else "same", (node,), (partner,), differences)

    def _gone(self, node: ir.Node) -> tuple[Said, ...]:
        fate = self._pairing.fates[node]
        heirs: dict[str, list[ir.Node]] = {}
        for heir in fate.nodes:
            heirs.setdefault(op_name(heir), []).append(heir)
        told = [Said(f"into {_times(op, nodes)}", tuple(nodes)) for op, nodes in heirs.items()]
        told += [Said("a constant now", (name,)) for name in fate.constants]
        told += [Said("read directly", (name,)) for name in fate.direct]
        by = [Said(f"by {self._only}")] if self._only and not fate.nodes else []
        return (*(told or [Said("nothing used it")]), *by)

    def _came(self, node: ir.Node, left: Sequence[ir.Node]) -> Block:
        by = node.metadata_props.get(MADE_BY) or self._only
        beside = set(left)
        others = tuple(source for source in self._pairing.sources.get(node, ()) if source not in beside)
        told = [Said(f"by {by}")] if by else []
        told += [Said(f"from {len(others)} more", others)] if others else []
        return Block("became" if left else "came", tuple(left), (node,), tuple(told))


def _joined_up(blocks: Iterable[Block]) -> Iterator[Block]:
    """Nodes in a row that went the same way as one block."""
    for _, run in itertools.groupby(blocks, key=lambda block: (block.kind, block.said)):
        first, *others = run
        if first.kind != "went":
            yield from (first, *others)
        else:
            left = (node for block in (first, *others) for node in block.left)
            yield dataclasses.replace(first, left=tuple(left))


def _times(op: str, nodes: Sequence[ir.Node]) -> str:
    return op if len(nodes) == 1 else f"{len(nodes)} {op}"


def _fold(layers: Iterable[tuple[str, tuple[Block, ...]]], pairing: Pairing) -> Iterator[Layer]:
    """Layers whose paths differ in numbers only, and of which the same is said, as one."""
    kinds = _kinds((*pairing.before, *pairing.after))
    known = dict(layers)
    groups: dict[tuple[object, ...], list[str]] = {}
    for path, blocks in known.items():
        outline = (kinds.get(path, ""), *(block.outline() for block in blocks))
        groups.setdefault(outline, []).append(path)
    place = {path: number for number, path in enumerate(known)}
    found = [pair for paths in groups.values() for pair in folded(paths).items()]
    for label, members in sorted(found, key=lambda pair: place[pair[1][0]]):
        yield Layer(label, members, kinds.get(members[0], ""), known[members[0]])


def _kinds(nodes: Iterable[ir.Node]) -> dict[str, str]:
    """Classes of the torch modules, by their paths."""
    kinds: dict[str, str] = {}
    for node in nodes:
        for origin in origins(node.metadata_props):
            if origin.kind and origin.kind != JOINED:
                kinds.setdefault(origin.module, origin.kind)
    return kinds
