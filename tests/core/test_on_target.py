"""The result on its target: judged against the source there. The CPU stands in for a device."""

from collections.abc import Mapping

import onnx_ir as ir
import pytest

import burnish
from burnish import checking, on_target
from burnish.checking import DifferentialChecker
from burnish.difference import Difference
from burnish.errors import MismatchError, ProviderError
from burnish.manifest import Manifest
from burnish.passes.base import Numerics
from burnish.passes.runner import Verdict
from burnish.runtime.options import Options
from burnish.runtime.session import Session
from burnish.sources import open_source
from burnish.target import TARGETS
from burnish.testing import parse

TEXT = "g (float[n, 4] x) => (float[n, 4] y) { a = Identity (x)  y = Relu (a) }"
OTHER = "g (float[n, 4] x) => (float[n, 4] y) { y = Abs (x) }"
CUDA = TARGETS["cuda"]


def models() -> tuple[ir.Model, ir.Model, Manifest]:
    source = open_source(parse(TEXT))
    return source.model, parse(OTHER), source.manifest


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is not there is taken for one that is."""
    monkeypatch.setattr(on_target, "runs_here", lambda _: True)


def say(monkeypatch: pytest.MonkeyPatch, said: Mapping[bool, Verdict | ProviderError]) -> None:
    """What the checker finds: of the source itself (True), and of the result (False)."""

    def deployed(_: object, source: object, result: object, *_rest: object) -> Verdict:
        found = said[source is result]
        if isinstance(found, ProviderError):
            raise found
        return found

    monkeypatch.setattr(DifferentialChecker, "deployed", deployed)


def off(error: float) -> Verdict:
    return Verdict(Difference("y", error, error, error), ({"n": 1},), {"n": 1})


def found() -> tuple[str, ...]:
    source, result, manifest = models()
    checker = DifferentialChecker(manifest)
    return on_target.on_target(checker, source, result, CUDA, Numerics.ROUNDING)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("own", "made"), [(1e-6, 2e-5), (1e-3, 3e-3)])
def test_a_result_that_is_as_right_as_the_source_is_kept(
    monkeypatch: pytest.MonkeyPatch, own: float, made: float
) -> None:
    say(monkeypatch, {True: off(own), False: off(made)})
    assert found() == (
        f"on cuda, {made:.2g} off the source on the CPU at most; the source itself is {own:.2g} off",
    )


@pytest.mark.usefixtures("here")
def test_a_result_that_is_further_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, {True: off(1e-5), False: off(2e-3)})
    with pytest.raises(MismatchError, match=r"On cuda, output 'y' is 0\.002 off") as caught:
        found()
    assert caught.value.code == "MISMATCH_TARGET"


@pytest.mark.usefixtures("here")
def test_a_result_that_the_target_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ProviderError("1 of 2 nodes: Det x1.", "Use the CPU.")
    say(monkeypatch, {True: off(0.0), False: refused})
    assert found() == ("not run on cuda: 1 of 2 nodes: Det x1.",)
    say(monkeypatch, {True: refused, False: off(1e-6)})
    assert found()[0].endswith("the source itself does not run there: 1 of 2 nodes: Det x1.")
    say(monkeypatch, {True: refused, False: off(1e-3)})
    with pytest.raises(MismatchError, match="does not run there"):
        found()


def test_a_target_that_is_not_here_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_target, "runs_here", lambda _: False)
    assert found() == ()


def test_what_is_judged_really_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a session on the provider, which is the CPU's here."""
    asked = []

    def opened(source: bytes, provider: str, *, options: Options) -> Session:
        asked.append(provider)
        return Session(source, "cpu", options=options)

    monkeypatch.setattr(checking, "Session", opened)
    source, result, manifest = models()
    checker = DifferentialChecker(manifest)
    assert checker.deployed(source, source, Numerics.ROUNDING, "cuda").difference.max_rel == 0.0
    assert checker.deployed(source, result, Numerics.ROUNDING, "cuda").difference.max_rel > 0.1
    assert asked == ["cuda", "cuda"]


def test_it_is_said_in_the_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.api.on_target", lambda *_: ("on cuda, all is well",))
    _, receipts = burnish.optimize(parse(TEXT), target="cuda", return_receipts=True)
    assert "on cuda, all is well" in receipts[-1].notes
