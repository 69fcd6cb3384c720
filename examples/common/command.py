"""The command line that every example has."""

import argparse
from pathlib import Path
from typing import NamedTuple


class Options(NamedTuple):
    """What was asked for."""

    quick: bool
    output: Path


def options(story: str | None, name: str) -> Options:
    """Read `--quick` and `--output`; the folder is made.

    Args:
        story: the example's docstring, for `--help`.
        name: of the folder below `build/examples` that artifacts go to by default.
    """
    parser = argparse.ArgumentParser(description=story)
    parser.add_argument("--quick", action="store_true", help="less data and training: to see it run")
    parser.add_argument("--output", type=Path, default=Path("build/examples") / name)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    return Options(given.quick, given.output)
