"""`burnish bisect`: the single rewrite that changes a result, as small models that go with a bug report."""

from __future__ import annotations

import io
import os
import shlex
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import msgspec
import numpy as np
import onnx
import onnx_ir as ir

from burnish.api import compare_deployed, need_target, read_recipe
from burnish.checking import DifferentialChecker
from burnish.errors import BurnishError
from burnish.feeds import sizes_of
from burnish.files import Data, write_together
from burnish.kv_cache import Case
from burnish.minimal import Place, Promise, smallest_place
from burnish.model import EXTERNAL_THRESHOLD, node_count, signature, to_bytes
from burnish.passes.base import Context, Pass
from burnish.passes.recipe import Recipe
from burnish.passes.recipes import optimize_recipe
from burnish.passes.runner import Culprit, Progress, Verdict, WrongRewriteError, named, run_recipe
from burnish.sources import ModelLike, Source, need_folder, open_source
from burnish.target import Target, get_target
from burnish.versions import versions
from burnish.weights import weight_bytes
from burnish.workbench import Workbench

Arrays = Mapping[str, np.ndarray]

_SHOWN: Final = 40  # nodes of a small model that are written out in the report
_FEW: Final = 8  # elements of a constant that are


class Bisection(msgspec.Struct, frozen=True, rename={"pass_": "pass"}):
    """The first rewrite after which the results differ, and what was written of it."""

    pass_: str
    """As in a recipe."""
    package: str
    """What the pass is called in messages, with the package that it is from."""
    rewrite: int
    """Which of its rewrites it is, from 1."""
    rewrites: int
    node: str
    """Of the model before; empty where the pass is wrong as a whole."""
    value: str
    """The first value at which the two differ; an output where they cannot be cut smaller."""
    nodes: tuple[int, int]
    """Of the part before the rewrite and after it."""
    output: str
    """The output of the whole model that differs most; empty where the model after does not run."""
    sizes: dict[str, int]
    """Of the dynamic dims, there."""
    difference: float
    """Of that output, as the pass's promise measures it; infinite where it does not run."""
    allowed: float
    at_value: float
    """Of `value` in the two parts."""
    failure: str
    """Why the model after the rewrite does not run, if so."""
    files: tuple[str, ...]
    """Before, after, inputs, report; none where nothing was to be written."""
    command: str
    """Shows it again: with the part before the rewrite, where that is enough."""
    report: str


def bisect(
    model: ModelLike,
    recipe: str | Recipe | Path | None = None,
    *,
    inputs: Sequence[Arrays] | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    target: str = "cpu",
    measured: bool = True,
    typical: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Bisection | None:
    """Find the first rewrite of a recipe that moves an output beyond what its pass promises.

    Args:
        model: a path, an Artifact, an onnx.ModelProto or an onnx_ir.Model.
        recipe: text, a Recipe or a file; default: the recipe for the target.
        inputs: `.npz` file, folder of them, or feeds: what is judged by; None: random inputs at several sizes
            of every dynamic dim.
        output: `NAME.onnx`: the nodes before the rewrite; written with it are `NAME.after.onnx`, what both
            start from as `NAME.npz`, and the report as `NAME.txt`.
        target: as for `burnish.optimize`; so are `measured`, `typical`, `seed` and `progress`.

    Returns:
        None: every pass keeps its promise, alone and as deployed.

    Raises:
        ModelError, RecipeError, TargetError, InputError, CalibrationError, OutputError, PassError.
        MismatchError: no pass is wrong, but onnxruntime's optimiser makes something else of the result
            (MISMATCH_DEPLOYED).
    """
    if output is not None:
        need_folder(_names(output)[0])
    source, chosen = open_source(model), get_target(target)
    need_target(source, chosen)
    passes = read_recipe(recipe, optimize_recipe(measured=chosen.provider.startswith("CPU")))
    cases = None if inputs is None else _cases(inputs, source)
    samples = [feeds for _, feeds in cases or ()]
    bench = Workbench(source.manifest, chosen, samples=samples, typical=typical, progress=progress, seed=seed)
    checker = DifferentialChecker(source.manifest, samples=samples, seed=seed, cases=cases)
    try:
        outcome = run_recipe(
            passes, source.model, bench.context(measured=measured), checker, progress=progress
        )
    except WrongRewriteError as error:
        found = _Found(error.culprit, checker, chosen)
        return found.written(_command(model, passes, inputs, target, seed), output)
    compare_deployed(checker, source.model, outcome, passes)
    return None


def _cases(inputs: Sequence[Arrays] | str | os.PathLike[str], source: Source) -> list[Case]:
    from burnish.runtime.inputs import InputChecker
    from burnish.runtime.samples import read_samples

    specs = source.manifest.inputs
    check = InputChecker(specs, source.manifest.dims)
    where = Path(inputs) if isinstance(inputs, (str, os.PathLike)) else inputs
    found: list[Case] = []
    for number, sample in enumerate(read_samples(where, specs)):
        feeds, _ = check(sample)
        found.append((sizes_of(specs, feeds) | {"sample": number}, feeds))
    return found


def _command(model: ModelLike, recipe: Recipe, inputs: object, target: str, seed: int) -> str:
    """The whole of it again, as far as a command line can say it."""
    given = os.fspath(model) if isinstance(model, (str, os.PathLike)) else "MODEL"
    words = ["burnish", "bisect", given, "--recipe", str(recipe)]
    if inputs is not None:
        words += ["--inputs", os.fspath(inputs) if isinstance(inputs, (str, os.PathLike)) else "INPUTS"]
    words += ["--target", target] if target != "cpu" else []
    return shlex.join([*words, *(["--seed", str(seed)] if seed else [])])


def _names(output: str | os.PathLike[str]) -> tuple[Path, Path, Path, Path]:
    """The files that are written for `NAME.onnx`."""
    path = Path(output)
    stem = path.name.removesuffix(".onnx")
    before, after, inputs, report = (f"{stem}{end}" for end in (".onnx", ".after.onnx", ".npz", ".txt"))
    return path.with_name(before), path.with_name(after), path.with_name(inputs), path.with_name(report)


@final
class _Found:
    """A rewrite that is wrong, cut down to where it is."""

    def __init__(self, culprit: Culprit, checker: DifferentialChecker, target: Target) -> None:
        self._culprit, self._target = culprit, target
        self._lossy = culprit.numerics.by_norm
        cases = checker.cases(culprit.before, culprit.after, culprit.numerics)
        promise = Promise(culprit.numerics, fails=bool(culprit.verdict.failure))
        cut = smallest_place(culprit.before, culprit.after, cases, promise)
        self._place = cut or _whole(culprit, cases)
        self._after_inputs = self._place.inputs if cut else checker.fitted(culprit.after, self._place.inputs)
        self._is_cut = cut is not None

    def written(self, command: str, output: str | os.PathLike[str] | None) -> Bisection:
        """What was found; also written to files, if asked for."""
        place, culprit = self._place, self._culprit
        again = self._is_cut and _shows_again(place, culprit.pass_, self._target)
        names = () if output is None or self._is_large() else _names(output)
        if again and names:
            command = _command(names[0], Recipe((culprit.pass_,)), names[2], self._target.name, 0)
        found = self._told(command, tuple(map(str, names)))
        if names:
            write_together(dict(zip(names, self._contents(found.report), strict=True)))
        return found

    def _is_large(self) -> bool:
        return (
            sum(weight_bytes(model) for model in (self._place.before, self._place.after)) > EXTERNAL_THRESHOLD
        )

    def _contents(self, report: str) -> tuple[Data, ...]:
        place = self._place
        more = {f"after/{name}": a for name, a in self._after_inputs.items() if a is not place.inputs[name]}
        return to_bytes(place.before), to_bytes(place.after), _npz({**place.inputs, **more}), report.encode()

    def _told(self, command: str, files: tuple[str, ...]) -> Bisection:
        culprit, place, verdict = self._culprit, self._place, self._culprit.verdict
        guilty = culprit.rewrite
        found = Bisection(
            pass_=str(culprit.pass_), package=named(culprit.pass_), rewrite=culprit.number,
            rewrites=culprit.count, node=guilty.node if guilty else "", value=place.value,
            nodes=(node_count(place.before), node_count(place.after)), output=verdict.difference.name,
            sizes=dict(verdict.failed_at or {}), difference=self._judged(verdict.difference.max_rel, verdict),
            allowed=culprit.numerics.tolerance, at_value=place.difference.judged(lossy=self._lossy)[0],
            failure=place.failure or verdict.failure, files=files, command=command, report="",
        )  # fmt: skip
        lines = _report(found, place, guilty.value if guilty else "", cut=self._is_cut)
        return msgspec.structs.replace(found, report="\n".join(lines))

    def _judged(self, relative: float, verdict: Verdict) -> float:
        return verdict.difference.l2 if self._lossy else relative


def _whole(culprit: Culprit, cases: Sequence[Case]) -> Place:
    """The models themselves, on the inputs on which they differ most."""
    at = culprit.verdict.failed_at
    feeds = next((feeds for sizes, feeds in cases if sizes == at), cases[0][1])
    apart, failure = culprit.verdict.difference, culprit.verdict.failure
    return Place(apart.name, culprit.before, culprit.after, feeds, apart, failure=failure)


def _shows_again(place: Place, pass_: Pass, target: Target) -> bool:
    """True when the pass makes the same mistake on the small model alone."""
    manifest = signature(place.before)
    checker = DifferentialChecker(manifest, cases=[({}, place.inputs)], samples=[place.inputs])
    try:
        run_recipe(Recipe((pass_,)), place.before, Context(target=target), checker)
    except WrongRewriteError:
        return True
    except BurnishError:
        return False
    return False


def _report(found: Bisection, place: Place, made: str, *, cut: bool) -> list[str]:
    sizes = ", ".join(f"{name}={size}" for name, size in found.sizes.items())
    where = f" at {sizes}" if sizes else ""
    at = f": node {found.node!r} (value {made!r})" if made else ""
    lines = [f"{found.package} changes the result by its rewrite {found.rewrite} of {found.rewrites}{at}."]
    if found.output:
        lines.append(
            f"Output {found.output!r} differs by {found.difference:.3g}{where}, allowed is {found.allowed:g}."
        )
    if found.failure:
        lines.append(f"It does not run: {found.failure}")
    before, after = found.nodes
    if cut:
        differs = "" if found.failure else f" differs by {found.at_value:.3g}"
        lines.append(f"Value {found.value!r}{differs}: {before} nodes before, {after} after.")
    else:
        lines.append(f"No smaller part could be cut out: {before} nodes before, {after} after.")
    for title, path in zip(
        ("Before", "After", "What both start from", "This text"), found.files, strict=False
    ):
        lines.append(f"{title}: {path}")
    lines += [f"Again: {found.command}", *_models(place)]
    return [*lines, "", "Versions: " + ", ".join(f"{name} {v}" for name, v in versions().items())]


def _models(place: Place) -> list[str]:
    """Both parts as ONNX text, where they are small, and the shapes of what they start from."""
    shown = [f"  {name}: {array.dtype}{list(array.shape)}" for name, array in place.inputs.items()]
    lines = ["", "Inputs:", *shown]
    for title, model in (("Before:", place.before), ("After:", place.after)):
        if node_count(model) <= _SHOWN:
            nodes = [onnx.printer.to_text(node).strip() for node in ir.to_proto(model).graph.node]
            lines += ["", title, *_constants(model), *(f"  {x}" for text in nodes for x in text.splitlines())]
    return lines


def _constants(model: ir.Model) -> Iterator[str]:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.size <= _FEW and tensor.dtype != ir.DataType.STRING:
            yield f"  {name} = {tensor.dtype.name.lower()} {tensor.numpy().tolist()}"


def _npz(arrays: Arrays) -> bytes:
    """As numpy.savez writes them; any name will do, and the same arrays give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()
