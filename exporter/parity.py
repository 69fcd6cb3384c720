"""Is the exported graph the module? Both run on the same inputs, at several sizes of every dynamic dim.

The graph is run by a callable that the caller gives: this package never imports onnxruntime.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from burnish.difference import Difference, worst
from burnish.errors import BurnishError, ExportError, MismatchError
from burnish.exporter.lattice import lattice
from burnish.exporter.padding import padding_cleared
from burnish.exporter.rounding import own_rounding
from burnish.exporter.torch_export import Exported
from burnish.feeds import Assignment, dynamic_dims, is_batch, make_feeds, sizes_of
from burnish.manifest import DimRange, Receipt
from burnish.model import node_count
from burnish.passes.base import Numerics
from burnish.provenance import origins

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

_Arrays = dict[str, np.ndarray]

_WANTED: Final = 4
_AS_ROUNDED: Final = 10  # times: sums in another order may round some times as far as torch did
_MOST_ROUNDED: Final = 5e-3
_RANDOM: Final = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# The least precise floating type of the outputs says how far two ways of computing may drift apart.
_TOLERANCES: Final = {"float16": 5e-3, "bfloat16": 4e-2}


def check_parity(exported: Exported, run: Run, *, tolerance: float | None = None, seed: int = 0) -> Receipt:
    """Compare a module with its export; batch 1, 2, 3, length 1 and the largest sizes included.

    Sizes that the module itself refuses are left out, and the receipt says so.

    Args:
        exported: the module and its graph.
        run: runs the graph: feeds by input name -> outputs by name.
        tolerance: allowed `max |a - b| / max(1, max |a|)`; default by type: 1e-4 for float32. Without one,
            10 times as far as torch's float32 is from its float64 is right too, up to 5e-3; a note says so.
        seed: of the random inputs.

    Returns:
        The receipt of step `export`.

    Raises:
        MismatchError: an output differs by more, or the graph does not run (EXPORT_PARITY).
        ExportError: the module itself runs at none of the sizes (EXPORT_REFERENCE), or gives another result
            each time (EXPORT_RANDOM).
    """
    start = time.perf_counter()
    found: list[Difference] = []
    failures: dict[str, list[Assignment]] = {}
    compared: list[Assignment] = []
    wrong: list[MismatchError] = []
    notes = list(exported.notes)
    usual = lattice(exported.signature.inputs, exported.signature.dims, exported.parameters)
    wanted = len(usual) + len(exported.doubtful)
    for number, assignment in enumerate([*usual, *exported.doubtful, *_steps(exported, usual)]):
        if number >= wanted and len(compared) >= _WANTED:
            break
        feeds = make_feeds(exported.signature.inputs, assignment, seed=seed + number)
        try:
            feeds, reference = _accepted(exported, feeds)
        except Exception as error:  # noqa: BLE001 - the module is anybody's code; the note says what it said
            failures.setdefault(next(iter(str(error).splitlines()), ""), []).append(assignment)
            continue
        try:
            apart, said = _compare(exported, reference, run, feeds, assignment, tolerance)
        except MismatchError as error:
            wrong.append(error)
        else:
            found.append(apart)
            notes += said
        compared.append(assignment)
    if wrong:
        raise _largest(wrong)
    notes += [_left_out(why, sizes) for why, sizes in failures.items()]
    if not found:
        raise _nowhere(exported, notes[-1])
    furthest = max(found, key=lambda apart: apart.max_rel)
    nodes = node_count(exported.model)
    return Receipt(
        step="export", numerics=Numerics.ROUNDING.name.lower(), nodes_before=nodes, nodes_after=nodes,
        max_abs_error=max(apart.max_abs for apart in found), max_rel_error=furthest.max_rel,
        assignments=tuple(compared), notes=tuple(notes), seconds=time.perf_counter() - start,
    )  # fmt: skip


def _nowhere(exported: Exported, why: str) -> ExportError:
    return ExportError(
        f"The module runs at none of the sizes that were tried: {why}.",
        "Give the ranges of the dynamic dims, such as batch=2:8."
        if dynamic_dims(exported.signature.inputs)
        else "Let it run on random inputs of these shapes too, not on the example inputs only.",
        code="EXPORT_REFERENCE",
    )


def _accepted(exported: Exported, feeds: _Arrays) -> tuple[_Arrays, _Arrays]:
    """Feeds that the module takes, and its outputs.

    Integers that are no tokens may be lengths or places, of which few are valid: where the module fails on
    random ones, the example's are tried, then the example's but none above the smallest size, or below it.
    """
    try:
        return feeds, exported.reference(feeds)
    except Exception:
        for given in _with_example_integers(exported, feeds):
            with contextlib.suppress(Exception):
                return given, exported.reference(given)
        raise


def _with_example_integers(exported: Exported, feeds: _Arrays) -> Iterator[_Arrays]:
    integers = {
        spec.name: _repeated(exported.example[spec.name], feeds[spec.name].shape)
        for spec in exported.signature.inputs
        if spec.meaning == "values" and np.issubdtype(feeds[spec.name].dtype, np.integer)
    }
    smallest = min(
        (
            feeds[spec.name].shape[axis]
            for spec in exported.signature.inputs
            for axis, dim in enumerate(spec.shape or ())
            if isinstance(dim, str) and not is_batch(dim)
        ),
        default=0,
    )
    if integers:
        yield {**feeds, **integers}
        for top in (smallest, smallest - 1):
            yield {**feeds, **{name: np.minimum(each, max(top, 0)) for name, each in integers.items()}}


def _repeated(example: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The example at another shape of the same rank: its own values repeated, or cut off."""
    for axis, size in enumerate(shape):
        example = np.take(example, np.arange(size) % max(1, example.shape[axis]), axis=axis)
    return example


def _largest(errors: Sequence[MismatchError]) -> MismatchError:
    """The first error, with the largest of the sizes at which the graph is wrong."""
    errors[0].sizes = max(
        (error.sizes or {} for error in errors), key=lambda sizes: math.prod(sizes.values())
    )
    return errors[0]


def _steps(exported: Exported, usual: Sequence[Assignment]) -> Iterator[Assignment]:
    """Multiples of the example sizes, where the module fails at the usual ones: for dims with a step."""
    specs, dims = exported.signature.inputs, exported.signature.dims
    names = dynamic_dims(specs)
    example = sizes_of(specs, exported.example)
    steps = [
        {name: _within(example[name] * factor, dims.get(name)) for name in names} for factor in (1, 2, 3, 4)
    ]
    yield from (each for index, each in enumerate(steps) if each not in usual and each not in steps[:index])


def _within(size: int, allowed: DimRange | None) -> int:
    return size if allowed is None or allowed.max is None else min(size, allowed.max)


def _left_out(why: str, sizes: Sequence[Assignment]) -> str:
    more = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    return f"not compared at {_spell(sizes[0])}{more}: the module fails there ({why})"


def _compare(
    exported: Exported,
    reference: dict[str, np.ndarray],
    run: Run,
    feeds: Mapping[str, np.ndarray],
    assignment: Assignment,
    tolerance: float | None,
) -> tuple[Difference, list[str]]:
    """How far apart they are, and what is to be said of it."""
    try:
        actual = run(feeds)
    except BurnishError as error:
        raise _mismatch(f"does not run at {_spell(assignment)}: {error.what}", assignment) from error
    ignore = padding_cleared(exported.signature, feeds)
    apart = worst(ignore(reference), ignore(actual))
    allowed = tolerance if tolerance is not None else _tolerance(reference)
    if not apart.within(allowed):
        _need_repeatable(exported, reference, feeds, allowed)
        single = reference[apart.name] if tolerance is None else None
        own = own_rounding(exported.module, exported.reference, feeds, apart.name, single)
        if apart.within(min(_AS_ROUNDED * own, _MOST_ROUNDED)):
            where = f"output {apart.name!r} at {_spell(assignment)}"
            return apart, [f"{where}: {apart.max_rel:.1e} apart, where torch's own rounding is {own:.1e}"]
        raise _mismatch(
            f"differs from the module in output {apart.name!r} at {_spell(assignment)}: "
            f"{apart.max_rel:.3g} (allowed {allowed:g})",
            assignment,
        )
    return apart, []


def _need_repeatable(
    exported: Exported, reference: dict[str, np.ndarray], feeds: Mapping[str, np.ndarray], allowed: float
) -> None:
    """Where the module itself gives something else on the same inputs, that is what is wrong."""
    apart = worst(reference, exported.reference(feeds))
    if apart.within(allowed):
        return
    drawn = [node for node in exported.model.graph.all_nodes() if node.op_type in _RANDOM]
    where = next((str(origin) for node in drawn for origin in origins(node.metadata_props)), "")
    why = f": it draws random numbers{where}" if where else ""
    raise ExportError(
        f"The module gives another {apart.name!r} each time it runs on the same inputs{why}.",
        "Draw random numbers outside the module and pass them in; let forward change nothing that it reads.",
        code="EXPORT_RANDOM",
    )


def _tolerance(outputs: Mapping[str, np.ndarray]) -> float:
    types = {array.dtype.name for array in outputs.values()}
    return max(_TOLERANCES.get(name, Numerics.ROUNDING.tolerance) for name in types)


def _mismatch(what: str, sizes: Assignment) -> MismatchError:
    return MismatchError(
        f"The exported graph {what}.",
        "torch exported it wrongly: try another opset, or rewrite that part of the module.",
        code="EXPORT_PARITY", sizes=sizes,
    )  # fmt: skip


def _spell(assignment: Assignment) -> str:
    return ", ".join(f"{name}={size}" for name, size in assignment.items()) or "its fixed sizes"
