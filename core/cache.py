"""The folder in which burnish keeps what it fetched or measured."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$BURNISH_CACHE`, or `~/.cache/burnish`."""
    chosen = os.environ.get("BURNISH_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "burnish"
