"""What the acceptance run found, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from burnish.benchmarks.acceptance import smollm2, whisper
from burnish.benchmarks.measure import machine, versions


class Report(msgspec.Struct, frozen=True):
    """Everything that one run found; None: that part was not asked for."""

    smollm2: list[smollm2.Facts] | None
    whisper: whisper.Facts | None
    seconds: dict[str, float]
    """Of every stage."""

    @property
    def holds(self) -> bool:
        """True where everything that was measured is what issue 3 asks for."""
        found = [*(self.smollm2 or ()), *([self.whisper] if self.whisper else ())]
        return all(each.holds for each in found)


def write(report: Report, folder: Path) -> None:
    """Write decode.json and decode.md."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"found": report, "holds": report.holds, "machine": machine(), "versions": versions()}
    (folder / "decode.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
    (folder / "decode.md").write_text("\n".join(markdown(report)) + "\n", encoding="utf-8")


def markdown(report: Report) -> Iterator[str]:
    """The lines of the report."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield "# Real models, from file to words\n"
    yield f"{machine().get('cpu', '')}; {libraries}. Written by `make bench-decode`.\n"
    if report.smollm2:
        yield from _smollm2(report.smollm2)
    if report.whisper:
        yield from _whisper(report.whisper)


def _smollm2(found: list[smollm2.Facts]) -> Iterator[str]:
    yield "## SmolLM2-135M-Instruct from GGUF (Q4_1)\n"
    yield (
        "PyTorch runs the dequantised weights in float32 (so 4-bit results look better than against the "
        "original model). Greedy decoding against transformers' `generate`, from chat prompts; perplexity by "
        f"the graph token by token with its cache, of {smollm2.READ:,} tokens a text.\n"
    )
    texts = [text.name for text in found[0].texts]
    titles = " | ".join(f"perplexity: {name}" for name in texts)
    yield f"| weights | MB | largest error when exported | tokens like PyTorch's | {titles} |"
    yield "|---|---|---|---|" + "---|" * len(texts)
    yield f"| PyTorch | | | | {' | '.join(f'{text.torch:.4f}' for text in found[0].texts)} |"
    for facts in found:
        same = ", ".join(f"{answer.same}/{answer.tokens}" for answer in facts.answers)
        read = " | ".join(f"{text.graph:.4f} ({text.apart:.4%} off)" for text in facts.texts)
        errors = ", ".join(f"{step} {error:.1e}" for step, error in facts.errors.items())
        yield f"| {facts.weights} | {facts.megabytes:.0f} | {errors} | {same} | {read} |"
    yield ""
    for answer in found[0].answers:
        yield f"- *{answer.prompt}* {' '.join(answer.text.split())}"
    yield ""
    for facts in found:
        yield from (f"- {facts.weights}: {note}" for note in facts.notes)
    yield ""


def _whisper(facts: whisper.Facts) -> Iterator[str]:
    errors, words = (sum(getattr(clip, name) for clip in facts.clips) for name in ("errors", "words"))
    yield "## Whisper tiny.en (float16 weights, run in float32)\n"
    yield (
        f"Five clips of LibriVox through the exported encoder and decoder: {errors} of {words} words wrong, "
        f"{facts.word_error_rate:.1%}.\n"
    )
    yield "| clip | heard by the graphs | same words as PyTorch | same tokens | errors |"
    yield "|---|---|---|---|---|"
    for clip in facts.clips:
        same = ["no", "yes"][clip.torch == clip.graph]
        tokens = ["no", "yes"][clip.same_tokens]
        yield f"| {clip.name[-4:]} | {clip.graph} | {same} | {tokens} | {clip.errors}/{clip.words} |"
