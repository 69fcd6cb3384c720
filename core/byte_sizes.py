"""Sizes in bytes as people write them: 500MB, 2GiB."""

from __future__ import annotations

import re
from typing import Final

from burnish.errors import InputError

_UNITS: Final = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """Bytes: a number as it is, or text such as `500MB` (powers of 1000) and `2GiB` (of 1024).

    Raises:
        InputError: it is no size above 0 (INPUT_SIZE).
    """
    match = _SIZE.fullmatch(str(text).strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise InputError(
            f"{str(text)!r} is not a size in bytes.", "Write it as 500MB, 2GiB or 1500000000.",
            code="INPUT_SIZE",
        )  # fmt: skip
    return size


def show_bytes(size: int) -> str:
    """Three digits and a unit of powers of 1000: `1.25 GB`."""
    for unit, worth in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= worth:
            return f"{size / worth:.3g} {unit}" if size < 999.5 * worth else f"{size / worth:.0f} {unit}"
    return f"{size} bytes"
