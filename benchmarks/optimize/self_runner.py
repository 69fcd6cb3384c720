"""burnish as `peer_runner` runs the others: `… self_runner WAY IN.onnx OUT.onnx SIZES TARGET`
prints a JSON line.

It optimises for one thread, as the latencies are measured on one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from burnish.benchmarks.optimize.peer_runner import timed

Sizes = Mapping[str, int]


def _measured(source: str, output: str, sizes: Sizes, target: str) -> None:
    import burnish

    burnish.optimize(source, output=output, target=target, threads=1, typical=sizes)


def _unmeasured(source: str, output: str, sizes: Sizes, target: str) -> None:
    import burnish

    burnish.optimize(source, output=output, target=target, measured=False, threads=1, typical=sizes)


def _alone(source: str, output: str, _sizes: Sizes, target: str) -> None:
    from burnish.model import load_model, save_model, signature
    from burnish.passes.base import Context
    from burnish.passes.recipes import optimize_recipe
    from burnish.passes.runner import run_recipe
    from burnish.target import get_target

    recipe = optimize_recipe(measured=False)
    result = run_recipe(recipe, load_model(source), Context(get_target(target)), None, keep=False).model
    save_model(result, output, signature(result))


WAYS: Final[Mapping[str, Callable[[str, str, Sizes, str], None]]] = {
    "burnish": _measured,
    "burnish, not measured": _unmeasured,
    "burnish, passes alone": _alone,
}
"""How burnish optimises: by default; with every pass checked and nothing timed; with neither."""


def main(way: str, source: str, output: str, sizes: str, target: str) -> None:
    """Optimise, save, and print seconds and peak memory."""
    given = msgspec.json.decode(sizes, type=dict[str, int])
    optimise = WAYS[way]
    print(
        timed(
            lambda model, made: optimise(model, made, given, target), source, output,
            first=lambda model, made: optimise(model, made, {}, target),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
