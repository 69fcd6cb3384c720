"""Do the shapes that torch wrote into the graph hold at other sizes? Where not, they go.

Seen in torch 2.13: an LSTM with a dynamic length is exported as a loop, right at every length, but with the
example's length as a constant in the declared shapes. A pass that believes them breaks the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from burnish.exporter.tidy import all_values

Shapes = Sequence[tuple[int, ...]]
Sizes = Mapping[str, int]


def correct_shapes(
    model: ir.Model, names: Sequence[str], runs: tuple[tuple[Sizes, Shapes], tuple[Sizes, Shapes]]
) -> list[str]:
    """Correct what outputs declare against two runs of the module; return the names of those that were wrong.

    Where one was, the shapes of all inner values are dropped too: they come from the same hand.

    Args:
        model: its outputs are in the order of `names`.
        names: of the outputs.
        runs: the sizes of the dynamic dims, no two alike, and the shape of every output, in each run.
    """
    wrong = []
    for index, (name, value) in enumerate(zip(names, model.graph.outputs, strict=True)):
        seen = [shapes[index] for _, shapes in runs]
        if value.shape is None or not len(value.shape) == len(seen[0]) == len(seen[1]):
            continue
        pairs = list(zip(*seen, strict=True))
        holds = [_holds(dim, pair, runs) for dim, pair in zip(value.shape, pairs, strict=True)]
        if not all(holds):
            value.shape = ir.Shape(
                [
                    dim if right else _dim(pair, runs)
                    for dim, right, pair in zip(value.shape, holds, pairs, strict=True)
                ]
            )
            wrong.append(name)
    if wrong:
        kept = {*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()}
        for value in all_values(model):
            if value not in kept:
                value.shape = None
    return wrong


def _holds(
    dim: int | ir.SymbolicDim,
    pair: tuple[int, ...],
    runs: tuple[tuple[Sizes, Shapes], tuple[Sizes, Shapes]],
) -> bool:
    if isinstance(dim, int):
        return all(size == dim for size in pair)
    named = [sizes.get(dim.value or "") for sizes, _ in runs]
    return None in named or list(pair) == named


def _dim(
    pair: tuple[int, ...], runs: tuple[tuple[Sizes, Shapes], tuple[Sizes, Shapes]]
) -> int | ir.SymbolicDim:
    (first, _), (second, _) = runs
    if pair[0] == pair[1]:
        return pair[0]
    fits = [name for name in first if (first[name], second[name]) == pair]
    return ir.SymbolicDim(fits[0] if fits else None)
