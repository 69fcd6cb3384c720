"""What the results say: counts, geometric means, and whether each acceptance number is met."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, final

from burnish.benchmarks.optimize.rows import Result, Row
from burnish.benchmarks.optimize.tools import ALONE, OURS, PEERS

DEFAULT, CHECKED = OURS[0], OURS[1]
NOISE: Final = 0.97
"""Slower than this, by the smallest time and by the median, is slower."""
ROOM_MB: Final = 300.0
_MB: Final = 2**20

Results = Sequence[Result]


class Claim(NamedTuple):
    """An acceptance number, and the figure beside it."""

    what: str
    figure: str
    aim: str
    met: bool | None
    """None: there is nothing to judge it by."""


class Tally(NamedTuple):
    """How one tool did."""

    tool: str
    made: int
    valid: int
    equal: int
    left: float | None
    """Nodes left by nodes exported, geometric mean where it is right."""
    speedup: float | None
    """Against the source, geometric mean."""
    seconds: float | None
    """Geometric mean."""


class Beside(NamedTuple):
    """burnish and the best of the peers on one model."""

    model: str
    ours: float
    theirs: float
    peer: str
    more: tuple[str, ...] = ()
    """Operators that burnish has more of than that peer, and by how many: `Add +63`."""


@final
@dataclasses.dataclass(frozen=True)
class Summary:
    """Of the results that have a model to judge."""

    results: Results

    @classmethod
    def of(cls, results: Iterable[Result]) -> Summary:
        """Without the models that could not be made."""
        return cls([result for result in results if not result.failure])

    def family(self, name: str) -> Summary:
        """Of one family alone."""
        return Summary([result for result in self.results if result.family == name])

    def tally(self, tool: str) -> Tally:
        """How a tool did."""
        rows = [row for _, row in self._rows(tool)]
        right = [(result, row) for result, row in self._rows(tool) if row.right]
        left = [row.nodes / base for result, row in right if row.nodes and (base := exported(result))]
        return Tally(
            tool, sum(row.seconds is not None for row in rows), sum(row.valid for row in rows),
            sum(row.right for row in rows), geomean(left),
            geomean(row.speedup for _, row in right if row.speedup),
            geomean(row.seconds for row in rows if row.seconds),
        )  # fmt: skip

    def nodes(self, ours: str) -> list[Beside]:
        """Nodes left by one way of burnish and by the best peer that is right, where both are known."""
        return self._beside(ours, lambda row: row.nodes, min)

    def speed(self, ours: str = DEFAULT) -> list[Beside]:
        """Speed-up over the source of burnish and of the best peer that is right."""
        return self._beside(ours, lambda row: row.speedup, max)

    def ceiling(self) -> float | None:
        """How much faster than the best peer it would be if all but the source's products took no time.

        Geometric mean; the products are matrix products, convolutions and recurrences, as onnxruntime runs
        them in the source; what attention multiplies inside one kernel is not counted.
        """
        shares = {result.model: result.products for result in self.results}
        best = {each.model: each.theirs for each in self.speed()}
        return geomean(
            1 / (share * best[model]) for model, share in shares.items() if share and model in best
        )

    def slower(self, ours: str = DEFAULT) -> list[tuple[str, float]]:
        """Models on which burnish's result is slower than the source beyond noise, and by what."""
        return [
            (result.model, row.speedup)
            for result, row in self._rows(ours)
            if row.speedup is not None and row.p50_speedup is not None
            and max(row.speedup, row.p50_speedup) < NOISE
        ]  # fmt: skip

    def time(self, ours: str, peer: str) -> float | None:
        """Seconds of burnish by seconds of a peer, geometric mean where both end."""
        pairs = ((row, result.row(peer)) for result, row in self._rows(ours))
        return geomean(
            row.seconds / other.seconds for row, other in pairs if row.seconds and other and other.seconds
        )

    def memory(self, tool: str, factor: float = 1.3) -> list[Beside]:
        """Peak megabytes of a tool, and `factor` times the model's bytes plus 300 MB, by model."""
        return [
            Beside(result.model, row.peak_mb, factor * result.size / _MB + ROOM_MB, "")
            for result, row in self._rows(tool)
            if row.peak_mb is not None
        ]

    def _rows(self, tool: str) -> list[tuple[Result, Row]]:
        return [(result, row) for result in self.results if (row := result.row(tool)) is not None]

    def _beside(
        self, ours: str, figure: Callable[[Row], float | None], best: Callable[..., tuple[float, str]]
    ) -> list[Beside]:
        found = []
        for result, row in self._rows(ours):
            own = figure(row)
            peers = [
                (value, peer.tool)
                for peer in map(result.row, PEERS)
                if peer is not None and peer.right and (value := figure(peer)) is not None
            ]
            if row.right and own is not None and peers:
                value, tool = best(peers)
                found.append(Beside(result.model, own, value, tool, _more(row, result.row(tool))))
        return found


def _more(ours: Row, theirs: Row | None) -> tuple[str, ...]:
    """The operators of which there are most too many, four at most."""
    other = theirs.ops if theirs is not None else {}
    apart = {op: count - other.get(op, 0) for op, count in ours.ops.items()}
    return tuple(f"{op} +{apart[op]}" for op in sorted(apart, key=apart.__getitem__)[:-5:-1] if apart[op] > 0)


def exported(result: Result) -> int | None:
    """Nodes of the source."""
    source = result.row("source")
    return source.nodes if source is not None else None


def geomean(values: Iterable[float]) -> float | None:
    """The geometric mean; None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def claims(summary: Summary) -> list[Claim]:
    """Every acceptance number, with its figure."""
    return [*_correct(summary), *_few(summary), *_fast(summary), *_cheap(summary)]


def _correct(summary: Summary) -> list[Claim]:
    rows = [row for result in summary.results if (row := result.row(DEFAULT)) is not None]
    right = sum(row.right for row in rows)
    met = right == len(rows) if rows else None
    return [Claim("valid and equal", f"{right} of {len(rows)}", "all", met)]


def _few(summary: Summary) -> list[Claim]:
    """Of what comes out by default, and before a slow kernel is written out in more, faster nodes."""
    return [claim for way in (DEFAULT, ALONE) for claim in _fewer(summary.nodes(way), way)]


def _fewer(found: Sequence[Beside], way: str) -> list[Claim]:
    fewer = sum(each.ours < each.theirs for each in found)
    more = sum(each.ours > each.theirs for each in found)
    of, suffix = f"of {len(found)}", way.removeprefix(DEFAULT)
    return [
        Claim(f"fewer nodes than the best peer{suffix}", f"on {fewer} {of}", "≥ 90 %",
              fewer >= 0.9 * len(found) if found else None),
        Claim(f"more nodes than the best peer{suffix}", f"on {more} {of}", "never",
              not more if found else None),
    ]  # fmt: skip


def _fast(summary: Summary) -> list[Claim]:
    made = []
    for family, name, aim in (
        ("transformer", "transformers", 1.15),
        ("convolution", "convolutional nets", 1.0),
    ):
        found = summary.family(family).speed()
        mean = geomean(each.ours / each.theirs for each in found)
        made.append(_claim(f"latency against the best peer, {len(found)} {name}", mean, aim, least=True))
    slow = summary.slower()
    timed = sum(row.speedup is not None for result in summary.results if (row := result.row(DEFAULT)))
    figure = f"on {len(slow)} of {timed}"
    return [*made, Claim("slower than the raw file", figure, "never", not slow if timed else None)]


def _cheap(summary: Summary) -> list[Claim]:
    made = [
        _claim(
            f"time against {peer}, {ALONE.partition(', ')[2]}", summary.time(ALONE, peer), aim, least=False
        )
        for peer, aim in (("onnxsim", 0.3), ("OnnxSlim", 0.2))
    ]
    found = summary.memory(ALONE)
    within = sum(each.ours <= each.theirs for each in found)
    aim = f"≤ 1.3 × the model + {ROOM_MB:.0f} MB"
    return [*made, Claim("peak memory, passes alone", f"on {within} of {len(found)}", aim,
                         within == len(found) if found else None)]  # fmt: skip


def _claim(what: str, mean: float | None, aim: float, *, least: bool) -> Claim:
    sign = "≥" if least else "≤"
    if mean is None:
        return Claim(what, "-", f"{sign} {aim:g} ×", None)
    return Claim(what, f"{mean:.2f} ×", f"{sign} {aim:g} ×", mean >= aim if least else mean <= aim)
