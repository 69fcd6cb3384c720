"""burnish as `peer_runner` runs the others: `… self_runner WAY IN.onnx OUT.onnx SIZES` prints a JSON line.

It optimises for one thread, as the latencies are measured on one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from burnish.benchmarks.optimize.peer_runner import timed

Sizes = Mapping[str, int]


def _measured(source: str, output: str, sizes: Sizes) -> None:
    import burnish

    burnish.optimize(source, output=output, threads=1, typical=sizes)


def _unmeasured(source: str, output: str, sizes: Sizes) -> None:
    import burnish

    burnish.optimize(source, output=output, measured=False, threads=1, typical=sizes)


def _alone(source: str, output: str, _sizes: Sizes) -> None:
    from burnish.model import load_model, save_model, signature
    from burnish.passes.base import Context
    from burnish.passes.recipes import optimize_recipe
    from burnish.passes.runner import run_recipe

    recipe = optimize_recipe(measured=False)
    result = run_recipe(recipe, load_model(source), Context(), None, keep=False).model
    save_model(result, output, signature(result))


WAYS: Final[Mapping[str, Callable[[str, str, Sizes], None]]] = {
    "burnish": _measured,
    "burnish, not measured": _unmeasured,
    "burnish, passes alone": _alone,
}
"""How burnish optimises: by default; with every pass checked and nothing timed; with neither."""


def main(way: str, source: str, output: str, sizes: str) -> None:
    """Optimise, save, and print seconds and peak memory."""
    given = msgspec.json.decode(sizes, type=dict[str, int])
    optimise = WAYS[way]
    print(
        timed(
            lambda model, made: optimise(model, made, given), source, output,
            first=lambda model, made: optimise(model, made, {}),
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
