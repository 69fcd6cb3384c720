"""A traced layer written again, for the layers of a stack that were not traced."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import onnx_ir as ir

from burnish.exporter.layer_nodes import Pairing, UnlikeError, by_layer, moved, pair, same_constant
from burnish.exporter.layers import Stack
from burnish.exporter.origins import SCOPES, read_list

_NUMBER: Final = re.compile(r"(\d+)")
_ELSEWHERE: Final = frozenset({"namespace", "pkg.torch.onnx.fx_node"})
"""Metadata of torch's that is true of the traced layer only."""

Weight = Callable[[str], Any]
"""The torch parameter or buffer of the whole model by its name; None: there is none."""


@final
@dataclasses.dataclass
class Interface:
    """The inputs and outputs of a graph by the names that the module has for them."""

    inputs: dict[str, ir.Value]
    outputs: dict[str, ir.Value]
    copied: dict[str, str] = dataclasses.field(default_factory=dict)
    """Inputs that were added, and which each is like."""


def replay(graph: ir.Graph, stack: Stack, interface: Interface, weight: Weight) -> bool:
    """Write, in place, the layers of a stack that were not traced; the traced ones are compared first.

    Args:
        graph: of torch, of a model that has the first `stack.kept` layers only.
        stack: which layers.
        interface: of the graph; inputs and outputs of the new layers are added to it, not to the graph.
        weight: finds the weights of the new layers.

    Returns:
        False where the graph holds nothing of the stack.

    Raises:
        UnlikeError: the layers are not the same in the graph. It may have been changed by then.
    """
    layers = by_layer(graph, stack)
    if layers:
        _Writer(graph, stack, interface, weight, pair(layers, stack)).write()
    return bool(layers)


def series(first: str, second: str) -> Callable[[int], str] | None:
    """What two names are the beginning of: `h.1.k`, `h.2.k`, then `h.3.k`; None where it is nothing.

    They differ in numbers only, each of which grows by as much from name to name.
    """
    ones, others = _NUMBER.split(first), _NUMBER.split(second)
    if len(ones) != len(others) or ones[::2] != others[::2] or first == second:
        return None
    starts = [int(number) for number in ones[1::2]]
    steps = [int(number) - start for number, start in zip(others[1::2], starts, strict=True)]

    def name(place: int) -> str:
        numbers = [str(start + step * place) for start, step in zip(starts, steps, strict=True)]
        return "".join(text + number for text, number in zip(ones[::2], [*numbers, ""], strict=True))

    return name if min(steps) >= 0 and (name(0), name(1)) == (first, second) else None


@final
class _Writer:
    """Writes the layers after the last traced one, one after another."""

    def __init__(
        self, graph: ir.Graph, stack: Stack, interface: Interface, weight: Weight, pairing: Pairing
    ) -> None:
        self._graph, self._stack, self._interface, self._weight = graph, stack, interface, weight
        self._pairing, self._last = pairing, stack.kept - 1
        self._outputs = self._of_layers()
        self._values = {value.name for node in graph for value in node.outputs}
        self._values |= {value.name for value in (*graph.inputs, *graph.initializers.values())}
        self._nodes = {node.name for node in graph}
        self._end = pairing.nodes[-1]

    def write(self) -> None:
        """All missing layers; what used the last traced one then uses the last of all."""
        own = set(self._pairing.nodes)
        results = {value: value for value in self._pairing.values.values()}
        after = [(*use, value) for value in results for use in value.uses() if use[0] not in own]
        final = {
            name: value
            for name, value in self._interface.outputs.items()
            if value in results and name not in self._outputs
        }
        weights = self._all_weights()
        for number in range(self._stack.kept, self._stack.count):
            results = self._layer(number, results, weights)
        for user, place, value in after:
            user.replace_input_with(place, results[value])
        for name, value in final.items():
            self._interface.outputs[name] = results[value]

    def _layer(
        self, number: int, before: Mapping[ir.Value, ir.Value], weights: Mapping[ir.Value, ir.Value]
    ) -> dict[ir.Value, ir.Value]:
        """One layer more; results of the last traced layer -> of this one.

        Args:
            number: of the layer.
            before: the same of the layer before.
            weights: initializers of the two compared layers.
        """
        taken = {of_last: before[self._pairing.values[of_last]] for of_last in self._pairing.carried.values()}
        taken |= {other: self._input(one, other, number) for one, other in self._pairing.inputs.items()}
        taken |= {other: self._initializer(one, other, number) for one, other in weights.items()}
        for node in self._pairing.nodes:
            again = self._again(node, taken, number)
            taken |= zip(node.outputs, again.outputs, strict=True)
            self._graph.insert_after(self._end, again)
            self._end = again
        for name in self._outputs:
            made = taken[self._interface.outputs[name]]
            self._interface.outputs[self._outputs[name](self._step(number))] = made
        return {value: taken[value] for value in before}

    def _again(self, node: ir.Node, taken: Mapping[ir.Value, ir.Value], number: int) -> ir.Node:
        results = [self._like(value, self._value_name(value, number)) for value in node.outputs]
        return ir.Node(
            node.domain, node.op_type,
            [value if value is None else taken.get(value, value) for value in node.inputs],
            node.attributes.values(), overload=node.overload, outputs=results, version=node.version,
            name=_free(f"{node.name}_layer{number}", self._nodes), doc_string=node.doc_string,
            metadata_props=self._metadata(node.metadata_props, number),
        )  # fmt: skip

    def _metadata(self, metadata: Mapping[str, str], number: int) -> dict[str, str]:
        """Metadata of torch's with the paths of another layer."""
        kept = {key: text for key, text in metadata.items() if key not in _ELSEWHERE}
        if SCOPES in kept:
            paths = [moved(path, self._stack, self._last, number) for path in read_list(metadata, SCOPES)]
            kept[SCOPES] = repr(paths)
        return kept

    def _of_layers(self) -> dict[str, Callable[[int], str]]:
        """Outputs of the last layer that every layer has one of, with what those are called."""
        names: dict[ir.Value, list[str]] = {}
        for name, value in self._interface.outputs.items():
            names.setdefault(value, []).append(name)
        found = {}
        for one, other in self._pairing.values.items():
            for name in names.get(one, []):
                pairs = [(last, series(name, last)) for last in names.get(other, [])]
                goes_on = [(last, called) for last, called in pairs if called is not None]
                if len(goes_on) != 1:
                    raise UnlikeError(f"output {name} has no counterpart in the next layer")
                found[goes_on[0][0]] = goes_on[0][1]
        return found

    def _input(self, one: ir.Value, other: ir.Value, number: int) -> ir.Value:
        known = {value: name for name, value in self._interface.inputs.items()}
        called = series(known[one], known[other])
        if called is None:
            raise UnlikeError(f"inputs {known[one]} and {known[other]} are not of a series")
        name = called(self._step(number))
        self._interface.inputs[name] = self._like(other, _free(name, self._values))
        self._interface.copied[name] = known[other]
        return self._interface.inputs[name]

    def _all_weights(self) -> dict[ir.Value, ir.Value]:
        """Initializers of the two layers, those that no node uses too."""
        found = dict(self._pairing.weights)
        paired, layer = set(found.values()), self._stack.layer(self._last) + "."
        for name, value in self._graph.initializers.items():
            if name.startswith(layer) and value not in paired:
                before = self._stack.layer(self._last - 1) + "." + name.removeprefix(layer)
                if before not in self._graph.initializers:
                    raise UnlikeError(f"{before} is missing")
                found[self._graph.initializers[before]] = value
        return found

    def _initializer(self, one: ir.Value, other: ir.Value, number: int) -> ir.Value:
        """The weight of another layer, or a constant again."""
        before, name = one.name or "", other.name or ""
        layer = self._stack.layer(self._last) + "."
        constant: Any = other.const_value
        if name.startswith(layer) and self._is_weight(other):
            rest = name.removeprefix(layer)
            called = f"{self._stack.layer(number)}.{rest}"
            if before != f"{self._stack.layer(self._last - 1)}.{rest}" or called in self._graph.initializers:
                raise UnlikeError(f"{before} goes with {name}, or {called} is there already")
            tensor = type(constant)(self._weight(called), name=called)
        elif same_constant(one, other):
            goes_on = series(before, name)
            called = name if goes_on is None else goes_on(self._step(number))
            tensor = constant
        else:
            raise UnlikeError(f"{before} and {name} are different constants")
        value = self._like(other, _free(called, self._values))
        value.const_value = tensor
        self._graph.register_initializer(value)
        return value

    def _is_weight(self, value: ir.Value) -> bool:
        """True where an initializer is the parameter or buffer that its name says."""
        raw: Any = getattr(value.const_value, "raw", None)
        tensor = self._weight(value.name or "")
        if raw is None or tensor is None:
            return False
        return bool((raw.data_ptr(), raw.shape) == (tensor.data_ptr(), tensor.shape))

    def _value_name(self, value: ir.Value, number: int) -> str:
        return _free(f"{value.name}_layer{number}", self._values)

    def _step(self, number: int) -> int:
        """Which of a series: the first of it is of the last traced layer but one."""
        return number - self._last + 1

    @staticmethod
    def _like(value: ir.Value, name: str) -> ir.Value:
        shape = None if value.shape is None else ir.Shape(list(value.shape))
        return ir.Value(name=name, shape=shape, type=value.type, metadata_props=dict(value.metadata_props))


def _free(name: str, taken: set[str | None]) -> str:
    """The name, or one like it that is free; it is taken then."""
    free = next(
        each
        for each in itertools.chain([name], (f"{name}_{n}" for n in itertools.count(1)))
        if each not in taken
    )
    taken.add(free)
    return free
