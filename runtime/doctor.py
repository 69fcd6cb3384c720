"""What works on this machine, what does not and how to get it. Every provider is tried in a child process."""

from __future__ import annotations

import concurrent.futures
import os
from typing import Final

import msgspec

from burnish.runtime.gpu import gpus
from burnish.runtime.libraries import CUDA_FIX
from burnish.runtime.machine import Machine, installed, machine, versions
from burnish.runtime.probe import Answer, Request, probe
from burnish.target import TARGETS

TELEMETRY: Final = "ORT_DISABLE_TELEMETRY"


class ProviderReport(msgspec.Struct, frozen=True):
    """Whether a provider runs a model here."""

    name: str
    works: bool
    """A tiny model was run in a child process and its numbers were right."""
    why: str
    """What was found, or what went wrong, in words."""
    missing: tuple[str, ...] = ()
    """Shared libraries that do not load."""
    fixes: tuple[str, ...] = ()
    """Commands to run, or what to install."""


class Report(msgspec.Struct, frozen=True):
    """What `burnish doctor` found."""

    versions: dict[str, str]
    machine: Machine
    telemetry: str
    """`off`, or `on` and why."""
    providers: tuple[ProviderReport, ...]
    problems: tuple[str, ...]
    """What to change, in words; empty where nothing is wrong."""

    def provider(self, name: str) -> ProviderReport:
        """The report of one provider."""
        return next(report for report in self.providers if report.name == name)


def diagnose(*, timeout: float = 120.0) -> Report:
    """Look at everything; takes seconds, since each provider is tried.

    Args:
        timeout: seconds that one provider may take.
    """
    here = machine()
    return Report(
        versions=versions(),
        machine=msgspec.structs.replace(here, gpus=gpus()),
        telemetry=telemetry(os.environ.get(TELEMETRY)),
        providers=check_providers(timeout=timeout),
        problems=(*wheel_problems(), *limit_problems(here)),
    )


def check_providers(*, timeout: float = 120.0) -> tuple[ProviderReport, ...]:
    """Try every provider, at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(TARGETS)) as pool:
        answers = pool.map(lambda name: probe(Request(name), timeout=timeout), TARGETS)
        return tuple(provider_report(name, answer) for name, answer in zip(TARGETS, answers, strict=True))


def provider_report(name: str, answer: Answer) -> ProviderReport:
    """What a child's answer says of a provider."""
    found = answer.availability
    if found is None:
        return ProviderReport(name, answer.ok, answer.why)
    why = f"runs; {found.why}" if answer.ok else answer.why
    return ProviderReport(name, answer.ok, why, found.missing, found.fixes)


def telemetry(value: str | None) -> str:
    """What that value of ORT_DISABLE_TELEMETRY means: onnxruntime's uploader runs unless it is `1`."""
    if value == "1":
        return "off"
    return f"on: {TELEMETRY} is {value!r}; set it to 1 before onnxruntime is imported"


def wheel_problems() -> tuple[str, ...]:
    """Both wheels of onnxruntime write the same files: the one installed last wins, in part."""
    if installed("onnxruntime") is None or installed("onnxruntime-gpu") is None:
        return ()
    fix = f"pip uninstall onnxruntime onnxruntime-gpu; {CUDA_FIX}"
    return (f"onnxruntime and onnxruntime-gpu are both installed and overwrite each other: {fix}",)


def limit_problems(here: Machine) -> tuple[str, ...]:
    """Limits that make other software on this machine start too many threads."""
    threads = here.threads
    if threads.quota is None or threads.quota >= threads.logical:
        return ()
    problem = (
        f"the cgroup allows {threads.quota:g} CPUs of {threads.logical}: burnish uses {threads.intra_op} "
        f"threads; set OMP_NUM_THREADS={threads.intra_op} for other libraries"
    )
    return (problem,)
