"""The place at which one rewrite made a model compute something else, as two models of a few nodes.

Both start from the same values, which the model before the rewrite computes, and end in the same value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.difference import Difference, difference
from burnish.errors import ModelError
from burnish.kv_cache import Case
from burnish.lending import judge
from burnish.model import copy_model, expose
from burnish.numbering import Side, Unnumbered, operands
from burnish.passes.base import Numerics
from burnish.regions import Region, Regions

Arrays = Mapping[str, np.ndarray]

_ROUNDS: Final = 4
_FEW: Final = 60  # nodes that are taken from the model before, to start where the one after starts


@final
@dataclasses.dataclass(frozen=True)
class Place:
    """Two models that ought to give the same for the same inputs."""

    value: str
    """What both compute."""
    before: ir.Model
    after: ir.Model
    inputs: Arrays
    """Of both, as the model before the rewrite computes them."""
    difference: Difference
    failure: str = ""
    """Why the second does not run, if so; the difference is then infinite."""
    reshaped: bool = False
    """It has another shape or type, as a value may that keeps its name and not its layout."""


@final
@dataclasses.dataclass(frozen=True)
class Promise:
    """What a pass may do to an output, and what it did."""

    numerics: Numerics
    fails: bool = False
    """The model after it does not run."""

    def kept(self, place: Place) -> bool:
        """True where no more differs than is allowed of an output."""
        return place.difference.within(self.numerics.tolerance, lossy=self.numerics.by_norm)

    def judged(self, place: Place) -> tuple[float, float]:
        """What places are ordered by."""
        return place.difference.judged(lossy=self.numerics.by_norm)


def smallest_place(
    before: ir.Model, after: ir.Model, cases: Sequence[Case], promise: Promise
) -> Place | None:
    """The first place that differs, on the smallest inputs on which one does.

    Args:
        before: a model.
        after: the same after a rewrite that changes an output.
        cases: sizes, and feeds on which `before` runs.
        promise: what is allowed of an output.

    Returns:
        None where no part can be cut out: functions, inputs with defaults, values that are no tensors, or a
        rewrite that changed the interface.
    """
    small = sorted((feeds for _, feeds in cases), key=lambda f: sum(array.size for array in f.values()))
    weak: list[Place] = []
    try:
        for feeds in small:
            place = _differing(before, after, feeds, promise)
            if place is not None and not promise.kept(place):
                return place
            weak += [place] if place is not None else []
    except (Unnumbered, ModelError):
        return None
    return max(weak, key=promise.judged, default=None)


def _differing(before: ir.Model, after: ir.Model, feeds: Arrays, promise: Promise) -> Place | None:
    """The first value that differs beyond the tolerance; else the one that differs most; None: none does.

    Values of another layout are looked through, as `region_check.compare_regions` does; what still does not
    fit at the end is taken as it is.
    """
    outputs = {value.name for value in before.graph.outputs}
    apart: frozenset[str] = frozenset()
    last: Place | None = None
    for _ in range(_ROUNDS):
        cut = _Cut(Regions(before, after, apart), feeds)
        places = list(cut.places())
        wrong = [place for place in places if not promise.kept(place)]
        plain = [p for p in wrong if (p.failure if promise.fails else not (p.failure or p.reshaped))]
        if plain:
            return cut.together(plain[0])
        if not wrong:
            most = max(places, key=promise.judged, default=None)
            return most if most is not None and most.difference.max_abs > 0 else last
        last = last or wrong[0]
        further = {place.value for place in wrong} - outputs
        if not further:
            break
        apart |= further
    return last


@final
class _Cut:
    """The changed values of a model, each with what it is computed from, and the arrays of all of them.

    Raises:
        ModelError: the model before does not run.
    """

    def __init__(self, regions: Regions, feeds: Arrays) -> None:
        self._regions = regions
        before = regions.before
        order = {name: number for number, name in enumerate(before.computed)}
        changed = sorted(regions.all, key=lambda region: order.get(region.root, -1))
        self._changed = {region.root: region for region in changed}
        self._starts = {region.root: self._start(region) for region in changed}
        named = {name for root, starts in self._starts.items() for name in (root, *starts)}
        needed = sorted(named & before.computed.keys())
        self._values = dict(feeds) | dict(judge(expose(before.model, needed))(feeds, needed))
        held = named & before.constants.keys()
        self._values |= {name: before.constants[name].numpy() for name in held}

    def places(self) -> Iterator[Place]:
        """Every changed value, in the order in which they are computed."""
        for root, starts in self._starts.items():
            if all(isinstance(self._values.get(name), np.ndarray) for name in (root, *starts)):
                yield self._place([root], starts)

    def together(self, place: Place) -> Place:
        """The same with the other values that the new nodes there make, where that shows the same."""
        nodes = set(self._changed[place.value].nodes)
        others = [root for root, region in self._changed.items() if nodes & {*region.nodes}]
        roots = [place.value, *(root for root in others if root != place.value)]
        starts = sorted({name for root in roots for name in self._starts[root]} - {*roots})
        both = self._regions.before.computed.keys() & self._regions.after.computed.keys()
        plain = both.issuperset(roots) and all(isinstance(self._values[name], np.ndarray) for name in roots)
        if len(roots) == 1 or not plain:
            return place
        found = self._place(roots, starts)
        return found if found.difference == place.difference else place

    def _start(self, region: Region) -> list[str]:
        """The values that both computations start from."""
        sides = self._regions.before, self._regions.after
        after = [name for name in region.leaves if name not in sides[1].constants]
        before = _bounds(sides[0], region.root, after, most=_FEW)
        if before is None:
            before = _bounds(sides[0], region.root, self._regions.cuts, most=None)
        return sorted({*after, *(before or ())})

    def _place(self, roots: Sequence[str], starts: Sequence[str]) -> Place:
        """What computes the values `roots`, before and after; the first is compared."""
        inputs, value = {name: self._values[name] for name in starts}, roots[0]
        expected = {root: self._values[root] for root in roots}
        before, after = (
            _part(side, inputs, expected) for side in (self._regions.before, self._regions.after)
        )
        judge(before)(inputs)
        try:
            actual = judge(after)(inputs)[value]
        except ModelError as error:
            nowhere = Difference(value, math.inf, math.inf, math.inf)
            return Place(value, before, after, inputs, nowhere, failure=error.what)
        apart = difference(value, expected[value], actual)
        reshaped = expected[value].shape != actual.shape or expected[value].dtype != actual.dtype
        return Place(value, before, after, inputs, apart, reshaped=reshaped)


def _bounds(side: Side, root: str, stop: Collection[str], *, most: int | None) -> list[str] | None:
    """Where the computation of a value starts, at `stop` or at inputs; None: more than `most` nodes away."""
    found: dict[str, None] = {}
    seen: set[ir.Node] = set()
    todo = [side.computed[root]] if root in side.computed else []
    while todo:
        value = todo.pop()
        name = value.name or ""
        if name in side.constants:
            continue
        if name in side.inputs or (name in stop and name != root):
            found[name] = None
            continue
        node = value.producer()
        if node is not None and node not in seen:
            seen.add(node)
            todo += operands(node)
        if most is not None and len(seen) > most:
            return None
    return list(found)


def _part(side: Side, inputs: Arrays, outputs: Arrays) -> ir.Model:
    """What computes values from others, as a model of its own; inputs have the sizes given."""
    model = copy_model(side.model)
    names = [name for name in inputs if name in side.computed or name in side.inputs]
    if not outputs.keys() & side.constants.keys():
        graph = ir.convenience.extract(model.graph, names, list(outputs))
    else:
        (name,) = outputs
        graph = _constant(name, side.constants[name], model.graph.opset_imports)
    for name in sorted(graph.initializers):  # extract leaves them in any order
        graph.initializers[name] = graph.initializers.pop(name)
    known = {value.name for value in graph.inputs}
    graph.inputs.extend(ir.Value(name=name) for name in inputs if name not in known)
    for value in graph.inputs:
        array = inputs[value.name or ""]
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    for value in graph.outputs:
        array = outputs[value.name or ""]
        value.type = value.type or ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = value.shape or ir.Shape([None] * array.ndim)
    graph.name = "part"
    return ir.Model(graph, ir_version=model.ir_version)


def _constant(name: str, tensor: ir.TensorProtocol, opsets: Mapping[str, int]) -> ir.Graph:
    """A graph that gives a constant."""
    node = ir.node("Constant", [], {"value": tensor})
    node.outputs[0].name = name
    return ir.Graph([], node.outputs, nodes=[node], opset_imports=dict(opsets))
