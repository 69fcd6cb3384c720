"""What of torch stands aside while it traces: all of it computes the same, in operators that ONNX has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from burnish.exporter.adaptive import windows_of_any_size
from burnish.exporter.grids import grids_in_arithmetic
from burnish.exporter.masks import masks_as_given
from burnish.exporter.recurrent import lengths_kept
from burnish.exporter.subtraction import fractions_less_integers


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Inside, torch is traced through these; a module must not be run there to see what it really does."""
    with (
        masks_as_given(), lengths_kept(), grids_in_arithmetic(), windows_of_any_size(),
        fractions_less_integers(),
    ):  # fmt: skip
        yield
