"""What a model computes on the cases of a check, at points on its way, for the models that passes make of it.

A pass is checked at the places that it changed, on values that the model computes. To have those, the model
is not run from its inputs each time: a run starts from the values of an earlier one. They are known by what
computes them, whatever the names; of two models that were found equal, what is known of one is known of both.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final, final

import numpy as np
import onnx_ir as ir

from burnish.kv_cache import Case
from burnish.numbering import Key, Numbering, Side, Unnumbered, operands, tensor_key

_ROOM: Final = 400_000_000  # bytes of values that are kept, of all cases together
_SHARE: Final = 4  # one value may take that part of them
_POINTS: Final = 16

Values = Mapping[str, np.ndarray]


@final
class Waypoints:
    """The values known on each of some cases.

    Args:
        cases: in their order.
        found: what a run of `model` gave on each; it need not be everything.
    """

    def __init__(self, cases: Sequence[Case], model: ir.Model, found: Sequence[Values]) -> None:
        self.cases = cases
        self._arrays: dict[Key, tuple[np.ndarray, ...]] = {}
        self._numbering = Numbering(frozenset(value.name or "" for value in model.graph.inputs))
        self._held: list[Mapping[str, ir.TensorProtocol]] = []  # as long as their addresses are in keys
        with contextlib.suppress(Unnumbered):  # such a model is compared as a whole
            side = Side(model)
            self._held = [side.constants]
            self.add(side, found)

    def of(self, side: Side) -> list[dict[str, np.ndarray]]:
        """What is known of a model on each case, by name; the rest is forgotten.

        Raises:
            Unnumbered: a node reads what no earlier one makes.
        """
        keys = self._numbering.computed(side)
        known = {name: self._arrays[key] for name, key in keys.items() if key in self._arrays}
        self._arrays = {keys[name]: arrays for name, arrays in known.items()}
        return [{name: arrays[case] for name, arrays in known.items()} for case in range(len(self.cases))]

    def add(self, side: Side, found: Sequence[Values]) -> None:
        """Keep what a run of a model gave on each case, the smallest first, as far as there is room.

        Raises:
            Unnumbered: a node reads what no earlier one makes.
        """
        keys = self._numbering.computed(side)
        names = set(keys).intersection(*found) if found else set()
        names = {name for name in names if all(isinstance(values[name], np.ndarray) for values in found)}
        sizes = {name: sum(values[name].nbytes for values in found) for name in names}
        left = _ROOM - sum(array.nbytes for arrays in self._arrays.values() for array in arrays)
        for name in sorted(names, key=lambda name: (sizes[name], name)):
            if keys[name] not in self._arrays and sizes[name] <= min(left, _ROOM // _SHARE):
                self._arrays[keys[name]] = tuple(values[name] for values in found)
                left -= sizes[name]

    def equal(self, before: Side, after: Side, names: Collection[str]) -> None:
        """Learn that the values of these names are the same in both.

        Raises:
            Unnumbered: a node reads what no earlier one makes.
        """
        old, new = self._numbering.computed(before), self._numbering.computed(after)
        for name in names:
            if (arrays := self._arrays.get(old.get(name))) is not None and name in new:
                self._arrays[new[name]] = arrays
        self._held = [before.constants, after.constants]


@final
class Results:
    """What a model gives on each of some cases; a copy of it is known by what it computes.

    Args:
        model: may be changed afterwards.
        found: its outputs on each case.
    """

    def __init__(self, model: ir.Model, found: Sequence[Values]) -> None:
        self._found = list(found)
        self._numbering = Numbering(frozenset(value.name or "" for value in model.graph.inputs))
        self._held: list[Mapping[str, ir.TensorProtocol]] = []  # as long as their addresses are in keys
        self._key = self._of(model, hold=True)

    def of(self, model: ir.Model) -> list[Values] | None:
        """The outputs of a model that computes the same; None where it does not, or that cannot be told."""
        return self._found if self._key is not None and self._key == self._of(model) else None

    def _of(self, model: ir.Model, *, hold: bool = False) -> Key | None:
        try:
            side = Side(model)
            keys = self._numbering.computed(side)
        except Unnumbered:
            return None
        if hold:
            self._held.append(side.constants)
        keys |= {name: tensor_key(tensor) for name, tensor in side.constants.items()}
        outputs = tuple((value.name, keys.get(value.name or "")) for value in model.graph.outputs)
        inputs = tuple((value.name, str(value.type), str(value.shape)) for value in model.graph.inputs)
        return inputs, outputs, tuple(sorted(model.opset_imports.items()))


def results(model: ir.Model, found: Sequence[Values]) -> Results | None:
    """The outputs among what a model gave on each case; None where some are missing or too large to keep."""
    names = [value.name or "" for value in model.graph.outputs]
    if not all(isinstance(values.get(name), np.ndarray) for values in found for name in names):
        return None
    kept = [{name: values[name] for name in names} for values in found]
    size = sum(array.nbytes for values in kept for array in values.values())
    return Results(model, kept) if size <= _ROOM // _SHARE else None


def fitting(values: Values, cases: int) -> Values:
    """Of what was found on one of so many cases, what there is room for: the smallest."""
    left, kept = _ROOM // cases, {}
    for name, array in sorted(values.items(), key=lambda item: (np.size(item[1]), item[0])):
        if isinstance(array, np.ndarray) and array.nbytes <= left:
            left -= array.nbytes
            kept[name] = array
    return kept


def waypoints(model: ir.Model) -> list[str]:
    """Values at which a model can be cut: at points between its nodes across which the fewest values go.

    All values that go across such a point, of a known type; the nodes between two points are about as many.
    """
    nodes = list(model.graph)
    last = {value: index for index, node in enumerate(nodes) for value in operands(node)}
    live: set[ir.Value] = set()
    ends: dict[int, list[ir.Value]] = collections.defaultdict(list)
    across: list[int] = []
    for index, node in enumerate(nodes):
        live.difference_update(ends.pop(index, ()))
        for value in node.outputs:
            if last.get(value, -1) > index:
                live.add(value)
                ends[last[value]].append(value)
        across.append(len(live))
    chosen = _narrowest(across)
    made = {value: index for index, node in enumerate(nodes) for value in node.outputs}
    return [
        value.name
        for value, index in made.items()
        if value.name and value.dtype is not None and isinstance(value.type, ir.TensorType)
        and any(index <= point < last.get(value, -1) for point in chosen)
    ]  # fmt: skip


def _narrowest(across: Sequence[int]) -> list[int]:
    """One index of each of some equal stretches: where the number is smallest."""
    length = -(-len(across) // _POINTS) or 1
    stretches = [range(start, min(start + length, len(across))) for start in range(0, len(across), length)]
    return [min(stretch, key=across.__getitem__) for stretch in stretches]
