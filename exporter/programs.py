"""A `torch.export.ExportedProgram` as a source: its own example inputs, dynamic dims and their ranges.

torch keeps no names of dims in a program, only symbols; they are named after where they are: `batch` where a
dim is axis 0 of every input that has a dynamic one, else `INPUT_dim_AXIS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

from burnish.errors import ExportError
from burnish.exporter.dims import DimSpec, Dynamic
from burnish.exporter.needs import torch
from burnish.exporter.source import TorchSource

_UNBOUNDED: Final = 2**31


def program_source(
    program: Any, inputs: Any = None, description: str = "torch: ExportedProgram"
) -> TorchSource:
    """A program that torch has traced already, as it is.

    Args:
        program: a `torch.export.ExportedProgram`.
        inputs: example inputs by parameter name, or a tuple; default: those that the program holds.
        description: where it came from, in words.

    Raises:
        ExportError: it holds no example inputs, and none are given (EXPORT_INPUTS).
    """
    if inputs is None:
        inputs = _examples(program)
    return TorchSource(
        Program(program), inputs, program_dims(program), description=description, program=program
    )


class Program(torch.nn.Module):  # type: ignore[misc]
    """The module that a program is, with modes as any module has (which a program's own refuses to change).

    Its parameters are the program's. It is what the graph is compared with.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        run = program.module(check_guards=False)
        self.__dict__["_run"] = run  # not a part of this module: switching its mode would raise
        self.__dict__["_weights"] = dict(program.state_dict)
        self.__dict__["_positional"] = _parameters(program)[: _positional(program)]
        self.__dict__["forward"] = run.forward
        self.training = False

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """All weights of the program, buffers included."""
        return iter(self.__dict__["_weights"].values())

    def __call__(self, **named: Any) -> Any:
        """What the program computes from inputs by parameter name."""
        first = [named[name] for name in self.__dict__["_positional"]]
        rest = {name: value for name, value in named.items() if name not in self.__dict__["_positional"]}
        return self.__dict__["_run"](*first, **rest)


def program_dims(program: Any) -> Dynamic:
    """The dynamic dims of a program's inputs, with the ranges that the program allows."""
    places = dict(_places(program))
    axes: dict[str, list[tuple[str, int]]] = {}
    for (name, axis), symbol in places.items():
        axes.setdefault(str(symbol), []).append((name, axis))
    inputs = {name for name, _ in places}
    found: dict[str, dict[int, DimSpec]] = {}
    for (name, axis), symbol in places.items():
        if not symbol.is_Symbol:
            continue
        where = axes[str(symbol)]
        everywhere = {given for given, index in where if index == 0} == inputs
        label = "batch" if everywhere else f"{where[0][0]}_dim_{where[0][1]}"
        low, high = _range(program.range_constraints, symbol)
        found.setdefault(name, {})[axis] = (label, max(low, 1) if everywhere else low, high)
    return found


def _examples(program: Any) -> dict[str, Any]:
    if program.example_inputs is None:
        raise ExportError(
            "The ExportedProgram holds no example inputs.",
            "Give them by parameter name, as a dict of tensors (--inputs FILE.npz).",
            code="EXPORT_INPUTS",
        )
    given, named = program.example_inputs
    return dict(zip(_parameters(program), given, strict=False)) | dict(named)


def _parameters(program: Any) -> list[str]:
    """The names of the parameters, positional ones first."""
    return list(inspect.signature(program.module(check_guards=False).forward).parameters)


def _positional(program: Any) -> int:
    """How many of the parameters are given by position."""
    return len(program.call_spec.in_spec.child(0).children())


def _places(program: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    """(input, axis) and the symbol of every dynamic axis."""
    wanted = {name for name in program.graph_signature.user_inputs if isinstance(name, str)}
    for node in program.graph.find_nodes(op="placeholder"):
        shape = getattr(node.meta.get("val"), "shape", ()) if node.name in wanted else ()
        for axis, size in enumerate(shape):
            if isinstance(size, torch.SymInt):
                yield (node.name, axis), size.node.expr


def _range(constraints: Mapping[Any, Any], symbol: Any) -> tuple[int, int | None]:
    bounds = constraints.get(symbol)
    if bounds is None:
        return 1, None
    top = int(bounds.upper) if bounds.upper < _UNBOUNDED else None
    return max(0, int(bounds.lower)), top
