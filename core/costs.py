"""The cost table: how long an operator takes against other ways to write it, as measured on a machine.

One table ships with the package, one is the user's own, in the cache folder; `burnish calibrate-costs` writes
both. What was measured holds for one target, one class of machines and one release of onnxruntime, and is
used nowhere else. Passes get it as `Costs`, a plain value.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, final

import msgspec

from burnish.cache import cache_root
from burnish.errors import BurnishError, shown
from burnish.files import write_file
from burnish.reader import open_regular

FORMAT: Final = 1
MARGIN: Final = 1.05
"""How many times as long an operator must take to count as slower; below it, fewer nodes win."""
_SHIPPED: Final = "costs.json"
_MAX_BYTES: Final = 1 << 26
_WIDEST: Final = ("AVX512", "AVX2", "SVE", "NEON")


@final
class CostTableError(BurnishError):
    """A cost table that cannot be read."""

    default_code = "COSTS_INVALID"


class Ratio(msgspec.Struct, frozen=True):
    """Time of one thing by the time of another, in turns in one run: above 1 the other one is faster."""

    value: float
    low: float
    """The smallest that any part of the rounds gave: what is certain beyond noise."""
    high: float
    """The largest."""
    rounds: int = 1

    @classmethod
    def exactly(cls, value: float) -> Ratio:
        """A ratio without noise."""
        return cls(value, value, value)

    def rounded(self) -> Ratio:
        """To three digits behind the point: what a table keeps."""
        return Ratio(round(self.value, 3), round(self.low, 3), round(self.high, 3), self.rounds)

    def exceeds(self, margin: float) -> bool | None:
        """Whether it is above a margin; None: some rounds say so, others do not."""
        if self.low > margin:
            return True
        return None if self.high > margin else False

    def __str__(self) -> str:
        return f"{self.value:.2f} × ({self.low:.2f}–{self.high:.2f})"


class Form(msgspec.Struct, frozen=True):
    """A way to write something, another way, and for what: the key of the table."""

    op: str
    """The operator with its domain, such as `com.microsoft::BiasGelu`."""
    instead: str
    """The operators that it is compared with, such as `Add+Gelu`."""
    variant: str
    """The optional inputs, outputs and attributes that are used."""
    dtype: str
    size: tuple[int, ...]
    """The class of its sizes, rounded to powers of two or four: what they mean depends on the operator."""


class Cost(msgspec.Struct, frozen=True):
    """What was measured for a form: time of `op` by time of `instead`."""

    form: Form
    ratio: Ratio


class Run(msgspec.Struct, frozen=True):
    """Costs measured on one machine with one release of onnxruntime."""

    target: str
    machine: str
    """The class of machines that it speaks for; see `machine_class`."""
    cpu: str
    features: tuple[str, ...]
    onnxruntime: str
    costs: tuple[Cost, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is used for: target, class of machines, release of onnxruntime."""
        return self.target, self.machine, release(self.onnxruntime)


class CostTable(msgspec.Struct, frozen=True):
    """A file of costs."""

    runs: tuple[Run, ...] = ()
    version: int = FORMAT

    def run(self, key: tuple[str, str, str]) -> Run | None:
        """The run for a target, class of machines and release of onnxruntime."""
        return next((run for run in self.runs if run.key == key), None)

    def with_run(self, run: Run) -> CostTable:
        """The table with the costs of a run in the place of those that it had for the same forms."""
        before = self.run(run.key)
        known = {cost.form: cost for cost in (*(before.costs if before else ()), *run.costs)}
        costs = tuple(known[form] for form in sorted(known, key=_order))
        others = [other for other in self.runs if other.key != run.key]
        joined = [*others, msgspec.structs.replace(run, costs=costs)]
        return CostTable(tuple(sorted(joined, key=lambda each: each.key)))


@final
@dataclasses.dataclass(frozen=True)
class Known:
    """A measured ratio, and which table it is from."""

    ratio: Ratio
    table: Literal["shipped", "own"]


@final
@dataclasses.dataclass(frozen=True)
class Costs:
    """What passes may ask: which form is faster on the target, as far as the tables know."""

    known: Mapping[Form, Known] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """A typical size for each dynamic dim, by name."""

    def of(self, form: Form | None) -> Known | None:
        """What the tables know of a form; None: nothing."""
        return None if form is None else self.known.get(form)

    def prefers_other(self, form: Form | None, margin: float = MARGIN) -> bool | None:
        """True: what the form is compared with is faster; False: it is not; None: not known beyond noise."""
        known = self.of(form)
        return None if known is None else known.ratio.exceeds(margin)


def machine_class(features: Iterable[str], threads: int) -> str:
    """Machines on which the same form wins: `x86_64 AVX512, 2 threads`.

    Threads count up to 1, 2, 4, 8 …: a session of 6 is one of 4.
    """
    widest = next((name for name in _WIDEST if name in set(features)), "no vectors")
    count = 1 << (max(1, threads).bit_length() - 1)
    return f"{platform.machine()} {widest}, {count} thread{'s' if count > 1 else ''}"


def gpu_class(capability: str) -> str:
    """GPUs on which the same form wins: those of one compute capability, such as `NVIDIA 9.0`."""
    return f"NVIDIA {capability}"


def release(version: str) -> str:
    """Major and minor number of a version."""
    return ".".join(version.split(".")[:2])


def own_path() -> Path:
    """Where the user's own table is."""
    return cache_root() / _SHIPPED


def shipped_path() -> Path:
    """Where the table is that ships with the package."""
    return Path(__file__).with_name(_SHIPPED)


def read_table(path: Path) -> CostTable:
    """A table from its file; an empty one where there is no file.

    Raises:
        CostTableError: the file is damaged, of a newer format, or cannot be read (COSTS_INVALID).
    """
    try:
        with open_regular(path, follow=True) as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise _broken(path, "it is too large to be one")
        table = msgspec.json.decode(content, type=CostTable)
    except FileNotFoundError:
        return CostTable()
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _broken(path, str(error)) from error
    if table.version != FORMAT:
        raise _broken(path, f"its format is {table.version}, this burnish reads {FORMAT}")
    return table


def _broken(path: Path, why: str) -> CostTableError:
    return CostTableError(
        f"Cannot use the cost table '{shown(path)}': {shown(why)}.",
        "Delete the file and run `burnish calibrate-costs` again.",
    )


def write_table(path: Path, table: CostTable) -> None:
    """Write a table, one cost a line.

    Raises:
        OutputError: OUTPUT_PATH or DISK_FULL.
    """
    write_file(path, "".join(_lines(table)).encode())


def _lines(table: CostTable) -> Iterator[str]:
    yield f'{{"version": {table.version}, "runs": ['
    for number, run in enumerate(table.runs):
        head = _json(msgspec.structs.replace(run, costs=())).removesuffix("[]}")
        yield f"{',' if number else ''}\n{head}["
        yield ",".join(f"\n{_json(cost)}" for cost in run.costs)
        yield "]}"
    yield "\n]}\n"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _order(form: Form) -> tuple[object, ...]:
    return form.op, form.instead, form.variant, form.dtype, form.size


def load_costs(key: tuple[str, str, str], sizes: Mapping[str, int]) -> Costs:
    """What both tables know for a target, class of machines and release; the user's own wins.

    Raises:
        CostTableError: one of them cannot be used.
    """
    known: dict[Form, Known] = {}
    for path, table in ((shipped_path(), "shipped"), (own_path(), "own")):
        run = read_table(path).run(key)
        known |= {cost.form: Known(cost.ratio, table) for cost in (run.costs if run else ())}  # type: ignore[arg-type]
    return Costs(known, sizes)
