"""Compare a model with what a pass made of it where they differ, on values that the model itself computes.

Only what the places need is run: the model up to the last of them, and of the changed model the places alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx
import onnx_ir as ir

from burnish.difference import Difference, difference
from burnish.errors import ModelError
from burnish.feeds import batch_dims
from burnish.kv_cache import Case
from burnish.lending import judge, lendable, place_holder
from burnish.model import signature
from burnish.numbering import Side, Unnumbered, operands
from burnish.passes.runner import Verdict
from burnish.regions import Kind, Region, Regions
from burnish.runtime.reference import Reference
from burnish.waypoints import Waypoints
from burnish.weights import in_memory

Arrays = Mapping[str, np.ndarray]

_ROUNDS: Final = 4
_SHARE: Final = 0.1
"""Of what a pass may change outputs by, allowed at one place: what differs there may grow on its way."""
_CHANGED: Final = "@changed"
"""Ends the names of what the changed model computes, beside the values of the model before."""


def compare_regions(
    before: ir.Model, after: ir.Model, cases: Sequence[Case], tolerance: float,
    waypoints: Waypoints | None = None,
) -> Verdict | None:  # fmt: skip
    """How far apart the two are at the changed places; of places where the same was done, at the first.

    Those of them that have weights of their own are compared on one case.

    A value that keeps its name but is another one on purpose (in another layout, say) is no place to compare
    at: what is computed from it is.

    Args:
        before: the model as it was.
        after: what a pass made of a copy of it.
        cases: sizes and feeds, on each of which `before` runs.
        tolerance: allowed `max_rel` of an output; a tenth of it at a place.
        waypoints: what is known of `before` on these cases, from which it is then run on. What is found out
            is added.

    Returns:
        None where they are further apart, or where this cannot say: the whole models have to be compared.
    """
    apart: frozenset[str] = frozenset()
    outputs = {value.name for value in before.graph.outputs}
    for _ in range(_ROUNDS):
        try:
            regions = Regions(before, after, apart)
            kinds = regions.kinds()
            if not kinds:
                judge(after)  # what has changed is no value; the model must still load
            found, made, where = _compared(regions, kinds, cases, waypoints)
        except (Unnumbered, ModelError):
            return None
        beyond = {each.name for case in found for each in case if not each.within(_SHARE * tolerance)}
        if not beyond:
            if waypoints is not None:
                waypoints.add(regions.before, made)
                waypoints.equal(regions.before, regions.after, regions.compared)
            return _verdict(found, cases, where)
        guilty = (kind for kind in kinds if any(region.root in beyond for region in kind.regions))
        further = {region.root for kind in guilty for region in kind.regions} - outputs
        if not further:
            return None
        apart |= further
    return None


def _compared(
    regions: Regions, kinds: Sequence[Kind], cases: Sequence[Case], waypoints: Waypoints | None
) -> tuple[list[list[Difference]], list[Arrays], str]:
    """How far apart the places are on each case, what was computed for that, and which places it was.

    The first place of a kind is compared on every case. The others are covered by it; but where they have
    weights of their own, which no size depends on, those are compared too, on one case that tells.
    """
    first = [kind.regions[0] for kind in kinds]
    own = [region for kind in kinds if kind.own_weights for region in kind.regions[1:]]
    known = [] if waypoints is None else waypoints.of(regions.before)
    narrow = _Places(regions, first, known)
    wide = _Places(regions, [*first, *own], known) if own else narrow
    telling = _telling(cases, batch_dims(signature(regions.before.model).inputs)) if own else ()
    found, made = [], []
    for number, (_, feeds) in enumerate(cases):
        apart, values = (wide if number in telling else narrow).compare(number, feeds)
        found.append(apart)
        made.append(values)
    where = f"at {len(regions.all)} changed values of {len(kinds)} kinds, once a kind"
    if own and len(telling) < len(cases):
        sizes = ", ".join(f"{name}={size}" for name, size in cases[telling[0]][0].items())
        where += f"; {len(own)} of them, equal but for their weights, at {sizes} alone"
    elif own:
        where += f"; {len(own)} of them, equal but for their weights, each"
    return found, made, where


def _telling(cases: Sequence[Case], batches: Collection[str]) -> Sequence[int]:
    """The case at which every weight counts: the largest sizes, the fewest examples; all, where none does.

    Of one element, softmax and the norms make the same whatever the weights before them.
    """

    def order(number: int) -> tuple[int, int]:
        sizes, feeds = cases[number]
        length = math.prod(size for name, size in sizes.items() if name not in batches)
        return -length, sum(array.nbytes for array in feeds.values())

    many = [number for number, (sizes, _) in enumerate(cases) if all(size > 1 for size in sizes.values())]
    return [min(many, key=order)] if many else range(len(cases))


def _verdict(found: Sequence[Sequence[Difference]], cases: Sequence[Case], places: str) -> Verdict:
    furthest = [max(case, key=Difference.judged, default=Difference()) for case in found]
    index = max(range(len(furthest)), key=lambda number: furthest[number].judged())
    return Verdict(furthest[index], tuple(sizes for sizes, _ in cases), cases[index][0], places=places)


@final
class _Places:
    """Both computations of some places, ready to run."""

    def __init__(self, regions: Regions, chosen: Sequence[Region], known: Sequence[Arrays]) -> None:
        self._regions, self._chosen = regions, chosen
        self._roots = {region.root for region in chosen}
        self._known = known
        needed = {name for region in chosen for name in (region.root, *region.leaves)}
        self._constants = {
            name: tensor.numpy() for name, tensor in regions.before.constants.items() if name in needed
        }
        given = self._given()
        captured = {name for name in needed & regions.before.computed.keys() if name not in given}
        self._captured = sorted(captured)
        self._before = self._open_before() if self._captured else None
        self._after: Reference | None = None

    def _given(self) -> Collection[str]:
        """What need not be computed; the changed values themselves always are."""
        return self._known[0].keys() - self._roots if self._known else ()

    def compare(self, case: int, feeds: Arrays) -> tuple[list[Difference], Arrays]:
        """Run both on the same values; how far apart each place is, and what the model before gave.

        Raises:
            ModelError: one of them does not load or run, or a value is no tensor.
        """
        values = {**feeds, **(self._known[case] if self._known else {}), **self._constants}
        made = {} if self._before is None else self._before({name: values[name] for name in self._inputs})
        values |= made
        if not all(isinstance(value, np.ndarray) for value in values.values()):
            raise ModelError("A value is no tensor.", "Compare the whole models.", code="MODEL_RUN")
        changed = self._changed(values)
        return [difference(name, values[name], array) for name, array in changed.items()], made

    def _changed(self, values: Arrays) -> dict[str, np.ndarray]:
        constants = self._regions.after.constants
        made = {region.root: constants[region.root].numpy() for region in self._chosen if not region.nodes}
        computed = [region for region in self._chosen if region.nodes]
        if computed:
            leaves = sorted({leaf for region in computed for leaf in region.leaves})
            if self._after is None:
                self._after = self._open_after(computed, {leaf: values[leaf] for leaf in leaves})
            results = self._after({leaf: values[leaf] for leaf in leaves})
            made |= {region.root: results[region.root + _CHANGED] for region in computed}
        return made

    def _open_before(self) -> Reference:
        side, given = self._regions.before, self._given()
        nodes = _behind(side, self._captured, given)
        read = {each.name or "" for node in nodes for each in operands(node)}
        made = {value.name for node in nodes for value in node.outputs}
        known = [name for name in given if name in read and name not in made]
        self._inputs = [*(name for name in side.inputs if name in read), *known]
        part = _Part(side)
        for name in self._inputs:
            part.proto.graph.input.append(
                ir.to_proto(side.inputs[name])
                if name in side.inputs
                else self._input(name, self._known[0][name])
            )
        return part.open(nodes, [ir.to_proto(side.computed[name]) for name in self._captured], ())

    def _input(self, name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        """A value as an input; how many sizes a Resize gets must be known there."""
        known = array.ndim == 1 and array.dtype == np.int64 and self._regions.length(name) == len(array)
        return _info(name, array, array.shape if known else None)

    def _open_after(self, regions: Sequence[Region], leaves: Arrays) -> Reference:
        side = self._regions.after
        wanted = {node for region in regions for node in region.nodes}
        part = _Part(side)
        part.proto.graph.input.extend(self._input(name, array) for name, array in leaves.items())
        outputs = [ir.to_proto(side.computed[region.root]) for region in regions]
        for info in outputs:
            info.name += _CHANGED
        return part.open([node for node in side.model.graph if node in wanted], outputs, self._regions.cuts)


@final
class _Part:
    """A model of some nodes of another, under the same opsets; large weights are lent."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.proto = onnx.ModelProto(ir_version=side.model.ir_version)
        self.proto.graph.name = "part"
        for domain, version in side.model.graph.opset_imports.items():
            self.proto.opset_import.add(domain=domain, version=version)

    def open(
        self, nodes: Iterable[ir.Node], outputs: Sequence[onnx.ValueInfoProto], renamed: Collection[str]
    ) -> Reference:
        """Ready to run; outputs of nodes under a name of `renamed` get another, as that is an input here."""
        weights: dict[str, np.ndarray] = {}
        graph, held = self.proto.graph, set(renamed)
        known = held | {info.name for info in outputs}
        for node in nodes:
            proto = ir.to_proto(node)
            proto.ClearField("metadata_props")
            for index, name in enumerate(proto.output):
                proto.output[index] = name + _CHANGED if name in renamed else name
            graph.node.append(proto)
            graph.value_info.extend(
                ir.to_proto(value) for value in node.outputs if value.name and value.name not in known
            )
            for name in (value.name or "" for value in operands(node)):
                if name in self._side.constants and name not in held:
                    held.add(name)
                    graph.initializer.append(_initializer(name, self._side.constants[name], weights))
        graph.output.extend(outputs)
        return Reference(self.proto.SerializeToString(), weights=weights)


def _initializer(name: str, tensor: ir.TensorProtocol, weights: dict[str, np.ndarray]) -> onnx.TensorProto:
    array = lendable(tensor)
    if array is not None:
        weights[name] = array
        return place_holder(name, array)
    proto: onnx.TensorProto = ir.to_proto(in_memory(tensor))
    proto.name = name
    return proto


def _behind(side: Side, names: Iterable[str], given: Collection[str]) -> list[ir.Node]:
    """The nodes that the named values need, in order; not those that hold constants or what is `given`."""
    needed: set[ir.Node] = set()
    todo = [side.computed[name] for name in names]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in needed:
            needed.add(node)
            todo += [
                value for value in operands(node) if value.name in side.computed and value.name not in given
            ]
    return [node for node in side.model.graph if node in needed]


def _info(name: str, array: np.ndarray, shape: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    info: onnx.ValueInfoProto = onnx.helper.make_tensor_value_info(
        name, dtype, [None] * array.ndim if shape is None else shape
    )
    return info
