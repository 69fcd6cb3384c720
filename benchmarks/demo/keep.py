"""Arrays that are the same in every run, kept in the cache folder under the hash of what they come from."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from burnish.benchmarks.kit import cache_root


@final
class Keeper:
    """Computes arrays once for each key.

    Args:
        name: of the demo; starts the file names.
        cache: instead of `burnish.benchmarks.kit.cache_root()`.
    """

    def __init__(self, name: str, cache: Path | None = None) -> None:
        self.reused: list[str] = []
        """What came from an earlier run."""
        self._name = name
        self._folder = (cache or cache_root()) / "demo"

    def __call__(
        self, what: str, key: object, make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays that `make` gave when it was first called with that key (plain data)."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = self._folder / f"{self._name}-{what.replace(' ', '-')}-{digest}.npz"
        found = _read(path)
        if found is not None:
            self.reused.append(what)
            return found
        made = dict(make())
        _write(path, made)
        return made


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Whole or not at all; a cache that cannot be written only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            given: dict[str, Any] = dict(arrays)
            np.savez(file, **given)
        os.replace(file.name, path)
    except OSError:
        return
