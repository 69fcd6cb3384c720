"""Dims that are sums of others, such as `past_sequence + sequence`: taken apart and added up.

torch.export ties dims like that, and onnxruntime takes any text for the name of a dim. A sum is not a
dim of its own: its size follows from those of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SUM: Final = re.compile(r"\w+(?: \+ \w+)+")


_COMPUTED: Final = re.compile(r"[*/()+]|\d -|- \d")


def parts_of(dim: str) -> tuple[str, ...]:
    """The terms of a sum (names, and numbers as text); a plain name has none."""
    return tuple(dim.split(" + ")) if _SUM.fullmatch(dim) else ()


def is_name(dim: str) -> bool:
    """True for a name or a sum; False for what is computed otherwise, such as `2*height` or `n//4`."""
    return not _COMPUTED.search(dim) or bool(parts_of(dim))


def names_of(dim: str) -> tuple[str, ...]:
    """The dims whose sizes say that of `dim`: itself, or the names in its sum."""
    return tuple(part for part in parts_of(dim) if not part.isdecimal()) or (dim,)


def size_of(dim: str, sizes: Mapping[str, int]) -> int | None:
    """The size of a name or a sum; None where a part has no size."""
    found = [int(part) if part.isdecimal() else sizes.get(part) for part in parts_of(dim) or (dim,)]
    known = [size for size in found if size is not None]
    return sum(known) if len(known) == len(found) else None
