"""Why burnish is not right on a case: what stands in the way, and where upstream knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXPLAINED: Final[Mapping[str, str]] = {}
"""One or two sentences by case; every key is a case of the table or of the zoo."""
