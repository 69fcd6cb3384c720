"""The public functions: export, optimize, quantize, verify. Also what the command line calls.

This is the orchestration: it hands the passes what they need (calibration, a checker, a timer) as plain
callables, and never lets a model out that was not checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import onnx_ir as ir

from burnish.byte_sizes import parse_bytes
from burnish.calibration_data import Samples, given_data
from burnish.checking import DifferentialChecker, executed
from burnish.errors import CalibrationError, MismatchError, RecipeError, TargetError, nearest
from burnish.explaining import Explanation
from burnish.explaining import explain as explained
from burnish.exporting import export as export
from burnish.manifest import Manifest, Receipt
from burnish.model import node_count, signature
from burnish.on_target import on_target
from burnish.passes.base import Numerics
from burnish.passes.recipe import Recipe
from burnish.passes.recipes import optimize_recipe, quantize_recipe
from burnish.passes.runner import OnMismatch, Outcome, Progress, Verdict, run_recipe
from burnish.passes.third_party import package_of
from burnish.sources import ModelLike, Source, left_out, need_output, open_source
from burnish.target import Target, get_target, is_own
from burnish.versions import versions
from burnish.workbench import Workbench, runs_here

if TYPE_CHECKING:
    from burnish.calibration import Calibration


def optimize(
    model: ModelLike,
    *,
    target: str = "cpu",
    recipe: str | Recipe | Path | None = None,
    on_mismatch: OnMismatch = "refuse",
    output: str | os.PathLike[str] | None = None,
    return_receipts: bool = False,
    **options: Any,
) -> Any:
    """Rewrite a model by a recipe; every pass is checked against the model before it.

    Args:
        model: a path (then `output` is needed), an Artifact, an onnx.ModelProto or an onnx_ir.Model.
        target: `cpu`, `openvino`, `cuda` or `tensorrt`.
        recipe: text, a Recipe or a file; default: the recipe for the target.
        on_mismatch: `refuse` raises MismatchError; `rollback` goes on without the wrong pass.
        output: where to write it: an `.onnx` file or a folder.
        return_receipts: return `(model, receipts)` instead of the model alone.
        options: `measured` (False: nothing is timed, the cost table alone says what is slower), `typical`
            (sizes of dynamic dims to measure at), `threads` (of the session that the result will run in; what
            is fastest depends on it), `seed`, `progress`; see `burnish.workbench.Workbench`.
            `explain`: called with a `burnish.explaining.Explanation`, of what was fused and what not.

    Returns:
        A model of the kind that was given (a path: the path written).

    Raises:
        ModelError, RecipeError, TargetError, MismatchError, OutputError.
    """
    measured = bool(options.pop("measured", True))
    chosen = get_target(target)
    default = optimize_recipe(measured=runs_here(chosen))
    return _rewrite(
        model, chosen, read_recipe(recipe, default), output=output, return_receipts=return_receipts,
        on_mismatch=on_mismatch, measured=measured, **options,
    )  # fmt: skip


def quantize(
    model: ModelLike,
    *,
    scheme: Literal["static", "dynamic"] = "static",
    data: Samples | None = None,
    target: str = "cpu",
    recipe: str | Recipe | Path | None = None,
    on_mismatch: OnMismatch = "refuse",
    output: str | os.PathLike[str] | None = None,
    return_receipts: bool = False,
    **options: Any,
) -> Any:
    """Make a model int8 where it is measured faster; see `optimize` for what both share.

    Args:
        model: as for `optimize`.
        scheme: `static` calibrates activations on `data`; `dynamic` measures them at run time.
        data: calibration samples: feeds by input name (a list, or an iterator), a file or folder of `.npz`
            or `.npy` files, images, recordings or texts, or `random` (which the receipt says loudly).
        target: must have int8 kernels for activations.
        recipe: instead of the default one for the scheme.
        on_mismatch: as for `optimize`.
        output: as for `optimize`.
        return_receipts: as for `optimize`.
        options: as for `optimize`, and `calibration` (a method: `minmax`, `moving-average`, `percentile`,
            `entropy`, `mse`, `layerwise-percentile`), `percent` (of values that `percentile` keeps),
            `memory_budget` (bytes for calibration, as a number or text such as `2GiB`), `resume` (False:
            calibrate from the first sample on, whatever an interrupted run has left).

    Raises:
        CalibrationError: `data` is missing, empty, or does not fit the inputs; besides those of `optimize`.
    """
    measured = bool(options.pop("measured", True))
    chosen = get_target(target)
    _need_int8(chosen, scheme)
    options = _with_calibration(options)
    if scheme == "static" and data is None:
        raise CalibrationError(
            "Static quantisation needs calibration data.",
            "Pass data=SAMPLES (.npz files or feeds), or data='random' to try it out.",
            code="CALIB_EMPTY",
        )
    default = quantize_recipe(scheme, measured=runs_here(chosen))
    return _rewrite(
        model, chosen, read_recipe(recipe, default), output=output, return_receipts=return_receipts,
        on_mismatch=on_mismatch, measured=measured, data=data, **options,
    )  # fmt: skip


def _with_calibration(options: dict[str, Any]) -> dict[str, Any]:
    """The options, those of calibration as one; wrong ones are refused before any work."""
    from burnish.calibration import Calibration
    from burnish.runtime.calibrators import need_method

    names = {
        "calibration": "method",
        "percent": "percent",
        "memory_budget": "memory_budget",
        "resume": "resume",
    }
    given = {names[key]: value for key, value in options.items() if key in names and value is not None}
    if "memory_budget" in given:
        given["memory_budget"] = parse_bytes(given["memory_budget"])
    calibration = Calibration(**given)
    need_method(calibration.method, calibration.percent)
    return {key: value for key, value in options.items() if key not in names} | {"calibration": calibration}


def verify(
    a: ModelLike, b: ModelLike, *, tolerance: float = Numerics.ROUNDING.tolerance, seed: int = 0
) -> Verdict:
    """Compare any two models on random inputs, on several assignments of the dynamic dims.

    Args:
        a: the reference; inputs are made from its signature.
        b: the model to compare; its inputs must have the same names.
        tolerance: allowed `max |a - b| / max(1, max |a|)` of each output.
        seed: of the random inputs.

    Raises:
        MismatchError: they differ by more (MISMATCH); the message names the output and the sizes.
    """
    first, second = open_source(a), open_source(b)
    checker = DifferentialChecker(first.manifest, seed=seed)
    verdict = checker(first.model, second.model, Numerics.EXACT)  # noise excuses nothing: the caller decides
    if verdict.difference.within(tolerance):
        return verdict
    if verdict.failure:
        raise MismatchError(
            f"The second model does not run where the first does: {verdict.failure}",
            "Both need the same inputs: names, types and shapes.",
        )
    where = f"output {verdict.difference.name!r} at {dict(verdict.failed_at or {})}"
    raise MismatchError(
        f"The models differ by {verdict.difference.max_rel:.3g} (allowed {tolerance:g}): {where}.",
        "Raise --tolerance if the difference is meant.",
    )


def _rewrite(
    given: ModelLike,
    target: Target,
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] | None,
    return_receipts: bool,
    on_mismatch: OnMismatch,
    measured: bool,
    data: Samples | None = None,
    typical: Mapping[str, int] | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    explain: Callable[[Explanation], object] | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Any:
    need_output(given, output)
    source = open_source(given)
    need_target(source, target)
    with given_data(data, source, seed) as samples:
        bench = Workbench(
            source.manifest, target, samples=samples.first, data=samples.every, typical=typical,
            calibration=calibration, progress=progress, seed=seed, threads=threads,
        )  # fmt: skip
        checker = DifferentialChecker(source.manifest, samples=samples.first, seed=seed, by_region=True)
        outcome = run_recipe(
            recipe, source.model, bench.context(measured=measured), checker,
            on_mismatch=on_mismatch, progress=progress,
        )  # fmt: skip
    notes = [*samples.notes, *left_out(source.attachments, output)]
    receipts = (*outcome.receipts, _deployed(checker, source, outcome, recipe, target, notes))
    manifest = _manifest(source, outcome, receipts, target, recipe)
    if explain is not None:
        explain(explained(recipe, outcome))
    result = source.give_back(outcome.model, manifest, output)
    return (result, receipts) if return_receipts else result


def compare_deployed(
    checker: DifferentialChecker, source: ir.Model, outcome: Outcome, recipe: Recipe
) -> tuple[Numerics, Verdict]:
    """The last check: the end against the start, as deployed (onnxruntime's optimiser on).

    Raises:
        MismatchError: they differ by more than the passes may (MISMATCH_DEPLOYED).
    """
    kept = {r.step for r in outcome.receipts if r.status == "kept"}
    lossy = any(p.numerics is Numerics.LOSSY and str(p) in kept for p in recipe.passes)
    numerics = Numerics.LOSSY if lossy else Numerics.ROUNDING.on(source)
    verdict = checker.deployed(source, outcome.model, numerics)
    if not verdict.keeps(numerics):
        raise MismatchError(
            f"With onnxruntime's optimiser on, output {verdict.difference.name!r} differs from the source "
            f"at {dict(verdict.failed_at or {})}: {verdict.failure or verdict.difference.max_rel}.",
            "Every pass alone kept its promise, so onnxruntime rewrites the result; please report it.",
            code="MISMATCH_DEPLOYED",
        )
    return numerics, verdict


def _deployed(
    checker: DifferentialChecker,
    source: Source,
    outcome: Outcome,
    recipe: Recipe,
    target: Target,
    notes: Sequence[str],
) -> Receipt:
    numerics, verdict = compare_deployed(checker, source.model, outcome, recipe)
    rel = verdict.difference.l2 if numerics.by_norm else verdict.difference.max_rel
    if target.provider == "CPUExecutionProvider":
        notes = (*notes, executed(outcome.model))
    notes = (*notes, *on_target(checker, source.model, outcome.model, target, numerics))
    return Receipt(
        step="deployed", numerics=numerics.name.lower(), max_abs_error=verdict.difference.max_abs,
        max_rel_error=rel, nodes_before=node_count(source.model), nodes_after=node_count(outcome.model),
        assignments=verdict.assignments, notes=(*notes, *verdict.notes(numerics), *checker.notes),
    )  # fmt: skip


def _manifest(
    source: Source, outcome: Outcome, receipts: Sequence[Receipt], target: Target, recipe: Recipe
) -> Manifest:
    before = source.manifest
    theirs = [package_of(type(pass_)).partition(" ")[0] for pass_ in recipe.passes]
    kept = [r.step for r in outcome.receipts if r.status == "kept"]
    text = ",".join(filter(None, (before.recipe, ",".join(kept))))
    model, local = outcome.model, {function.domain for function in outcome.model.functions.values()}
    nodes = [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]
    opset = model.graph.opset_imports.get("", 1)
    portable = not any(node.domain not in local and _is_bound(node, opset) for node in nodes)
    return msgspec.structs.replace(
        signature(outcome.model, before), recipe=text, receipts=(*before.receipts, *receipts),
        target="portable" if portable else target.name, versions=versions(list(filter(None, theirs))),
        files={},
    )  # fmt: skip


def _is_bound(node: ir.Node, opset: int) -> bool:
    """Ops outside the standard run only where the target's runtime has a kernel."""
    return node.domain not in ("", "ai.onnx") or is_own(node.op_type, opset)


def read_recipe(given: str | Recipe | Path | None, default: Recipe) -> Recipe:
    """A recipe as it is, from its text or from a file; the default where none is given.

    Raises:
        RecipeError: it does not parse, or the file cannot be read (RECIPE_FILE).
    """
    if given is None:
        return default
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Path) or os.path.isfile(given) or Path(given).suffix in (".txt", ".recipe"):
        try:
            given = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise RecipeError(
                f"Cannot read the recipe file {os.fspath(given)!r}: {why}.",
                "Give a file, or the recipe as text.", code="RECIPE_FILE",
            ) from error  # fmt: skip
    return Recipe.parse(given)


def need_target(source: Source, target: Target) -> None:
    """A model that was rewritten for one target is not for another.

    Raises:
        TargetError: TARGET_MISMATCH.
    """
    bound = source.manifest.target
    if bound not in ("portable", target.name):
        raise TargetError(
            f"The model was made for {bound}, not for {target.name}.",
            f"Use target {bound}, or start from the model before it was optimized.",
            code="TARGET_MISMATCH",
        )


def _need_int8(target: Target, scheme: str) -> None:
    if scheme not in ("static", "dynamic"):
        raise RecipeError(
            f"There is no quantisation scheme {scheme!r}.", nearest(scheme, ("static", "dynamic")),
            code="SCHEME_UNKNOWN",
        )  # fmt: skip
    has = target.dynamic_int8 if scheme == "dynamic" else target.qdq is not None
    if not has:
        raise TargetError(
            f"Target {target.name!r} has no kernels for {scheme} int8 activations.",
            "Use target cpu, or weight-only quantisation where the target has MatMulNBits.",
            code="TARGET_NO_INT8",
        )
