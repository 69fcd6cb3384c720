"""The command line: one command a file, imported on use (`burnish --help` loads no torch, no onnxruntime)."""

from __future__ import annotations

import importlib
from typing import Final, cast, final

import click

from burnish._version import __version__
from burnish.cli.common import fail
from burnish.errors import BurnishError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "export": (
        "burnish.cli.export:export",
        "Export a PyTorch model to ONNX, checked against PyTorch.",
    ),
    "optimize": ("burnish.cli.optimize:optimize", "Rewrite a model by a recipe of checked passes."),
    "quantize": (
        "burnish.cli.quantize:quantize",
        "Make a model int8, where that is measured faster.",
    ),
    "run": ("burnish.cli.run:run", "Run a model once on given or random inputs."),
    "bench": ("burnish.cli.bench:bench", "Time models side by side, interleaved in one run."),
    "inspect": (
        "burnish.cli.inspect:inspect",
        "Show what is in a model: inputs, ops, sizes, receipts.",
    ),
    "diff": ("burnish.cli.diff:diff", "Show how two models differ: ops, weights, torch modules."),
    "verify": ("burnish.cli.verify:verify", "Check that two models compute the same."),
    "bisect": ("burnish.cli.bisect:bisect", "Find the one rewrite that changes a result, as a small model."),
    "passes": ("burnish.cli.passes:passes", "List the passes, or show one with its options."),
    "calibrate-costs": (
        "burnish.cli.calibrate_costs:calibrate_costs",
        "Measure which operators are faster on this machine; `optimize` goes by it.",
    ),
    "doctor": (
        "burnish.cli.doctor:doctor",
        "Say what works on this machine, and how to get the rest.",
    ),
}


@final
class LazyGroup(click.Group):
    """A group that imports a command when it is asked for, and prints typed errors as two lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work they do."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table: no command is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a typed error becomes two lines (or JSON) and exit status 1."""
        try:
            return super().invoke(ctx)
        except BurnishError as error:
            fail(error, as_json=bool(ctx.meta.get("burnish.json")))
            ctx.exit(1)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="burnish")
def main() -> None:
    """PyTorch → ONNX → fast. Every rewrite checked.

    \b
    burnish optimize model.onnx -o fast.onnx
    burnish COMMAND --help
    """
