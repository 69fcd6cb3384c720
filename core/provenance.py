"""Where a node comes from: the path of the torch module, its class, and the line of code that made it.

A node lists its origins in three entries of `metadata_props` with one line for each origin, so that line N
of all three is origin N. A node as exported has one origin; a fused node has those of all it replaced, in
the order in which they stood in the graph.

    burnish.module   encoder.layer.0.attention.self.query
    burnish.class    Linear
    burnish.source   transformers/models/bert/modeling_bert.py:145 in forward

The root module's path is empty, as in `torch.nn.Module.named_modules`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Final, final

MODULE: Final = "burnish.module"
CLASS: Final = "burnish.class"
SOURCE: Final = "burnish.source"
KEYS: Final = (MODULE, CLASS, SOURCE)
"""What the exporter and the passes keep in a node's metadata."""

MOST: Final = 24
"""Origins of one node; those beyond are told as one (see `bounded`), so that metadata stays small."""
LONGEST: Final = 200
"""Characters of a class or line; longer ones lose their middle. Paths stay whole: they are looked up."""
JOINED: Final = "…"
"""The class of the origin that stands for those beyond `MOST`."""


@final
@dataclasses.dataclass(frozen=True)
class Origin:
    """A place in the torch model: which module, of which class, and which line of its code."""

    module: str
    """Path from the root, as in a state dict; empty: the root module itself."""
    kind: str = ""
    """Name of the module's class, without its package."""
    source: str = ""
    """`package/file.py:LINE in FUNCTION`, never a path of the machine that exported."""

    def __str__(self) -> str:
        """` in block.0 (Block) at file.py:4 in forward`, as much of it as is known, for messages."""
        part = f"{self.module} ({self.kind})" if self.module and self.kind else self.module or self.kind
        return (f" in {part}" if part else "") + (f" at {self.source}" if self.source else "")


def origins(metadata: Mapping[str, str]) -> tuple[Origin, ...]:
    """The origins that a node's metadata lists; none where nothing is known."""
    if MODULE not in metadata:
        return ()
    return _read(*[metadata.get(key, "") for key in KEYS])


@functools.lru_cache(maxsize=1 << 14)
def _read(*texts: str) -> tuple[Origin, ...]:
    """The origins in the texts of `KEYS`; every pass asks for those of every node."""
    modules = texts[KEYS.index(MODULE)].count("\n") + 1  # what a foreign tool wrote may be uneven
    lines = itertools.zip_longest(*[text.split("\n") for text in texts], fillvalue="")
    return tuple([Origin(*parts) for parts in itertools.islice(lines, modules)])


def write_origins(metadata: MutableMapping[str, str], found: Iterable[Origin]) -> None:
    """Let a node's metadata list these origins instead of those it has; each once, in order, bounded."""
    kept = bounded(found)
    for key in KEYS:
        metadata.pop(key, None)
    if not kept:
        return
    metadata[MODULE] = "\n".join(_flat(origin.module) for origin in kept)
    for key, lines in ((CLASS, [o.kind for o in kept]), (SOURCE, [o.source for o in kept])):
        if any(lines):
            metadata[key] = "\n".join(map(_line, lines))


def bounded(found: Iterable[Origin]) -> tuple[Origin, ...]:
    """The distinct origins in order; where there are more than `MOST`, the last one stands for the rest.

    It names the nearest module that holds all of the rest, so that `common_module` stays what it was.
    """
    distinct = tuple(dict.fromkeys(found))
    if len(distinct) <= MOST:
        return distinct
    rest = distinct[MOST - 1 :]
    return (*distinct[: MOST - 1], Origin(common_module(rest), JOINED))


def common_module(found: Iterable[Origin]) -> str:
    """The path of the nearest module that holds all of these origins."""
    paths = {origin.module for origin in found}
    if len(paths) == 1:
        return paths.pop()
    shared = []
    for parts in zip(*(path.split(".") if path else [] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def home_module(found: Iterable[Origin]) -> str:
    """The path of the module where a node is counted: the deepest that holds more than half of its origins.

    A fused attention thus counts at its layer's attention, though it swallowed a mask of the root's too.
    Where no layer (a module with a number) holds as much, as all share what was swallowed, it is the one that
    holds twice as much as any other.
    """
    paths = [origin.module for origin in found]
    while True:
        home = _majority(paths)
        inside = (path.removeprefix(home).strip(".") for path in paths if _is_in(path, home))
        below = Counter(path.partition(".")[0] for path in inside)
        (most, count), *others = [*below.most_common(2), ("", 0)]
        if not most.isdecimal() or count < 2 * max(0, *(number for _, number in others)):
            return home
        paths = [path for path in paths if _is_in(path, f"{home}.{most}".strip("."))]


def _majority(paths: Sequence[str]) -> str:
    held = Counter(module for path in paths for module in ancestors(path))
    return max((module for module, count in held.items() if 2 * count > len(paths)), key=len, default="")


def _is_in(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(f"{module}.")


def ancestors(path: str) -> list[str]:
    """The paths that lead to a module, from the root to the module itself."""
    parts = path.split(".") if path else []
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


def label(path: str, shown: set[str]) -> str:
    """A module's path within the nearest one `shown` above it, indented below that."""
    above = [module for module in ancestors(path)[:-1] if module in shown]
    rest = path.removeprefix(above[-1]).lstrip(".") if above else path
    return "  " * len(above) + (rest or "(model)")


def _flat(text: str) -> str:
    return " ".join(text.split("\n"))


def _line(text: str) -> str:
    text = _flat(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 + 1 :]}"
