"""What exporting a large model costs: `burnish export` of a random Llama folder in bf16 against torch alone.

    python -m burnish.benchmarks.export_memory --billion 1.3 --output build/export-memory

Each export runs in a process of its own, whose resident memory is sampled; the peak of the whole run is what
the kernel counted (VmHWM). The promise: at most 1.5 x the bytes of the weights it writes + 1.5 GB.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import psutil

from burnish.benchmarks.measure import machine
from burnish.files import write_file
from burnish.runtime.machine import versions

SHAPES: Final = {
    0.1: (768, 2048, 12, 12), 1.3: (2048, 5504, 24, 16), 3.0: (2560, 6912, 36, 20),
    7.0: (4096, 11008, 32, 32),
}  # fmt: skip
"""Hidden size, feed-forward size, layers and heads by billions of parameters."""
VOCABULARY: Final = 32_000
FACTOR, SLACK = 1.5, 1.5e9
"""The promise: peak <= FACTOR x bytes of weights written + SLACK."""
TIME: Final = 1.2
"""The aim: seconds <= TIME x torch.onnx.export alone."""
_EVERY: Final = 0.25  # seconds between samples

_BURNISH: Final = "import sys; from burnish.cli import main; sys.argv[0] = 'burnish'; main()"
_TORCH: Final = "from burnish.benchmarks.export_memory_peer import torch_alone; torch_alone()"
_TRANSFORMERS: Final = (
    "from burnish.benchmarks.export_memory_peer import transformers_exporter; transformers_exporter()"
)
_OPTIMUM: Final = (
    "import sys; from optimum.exporters.onnx import main_export; main_export(sys.argv[1], sys.argv[2], "
    "task='text-generation-with-past', do_validation=False, no_post_process=True, local_files_only=True, "
    "library_name='transformers', dtype='fp32')"
)


class Cost(msgspec.Struct, frozen=True):
    """What one export took."""

    name: str
    seconds: float
    peak_bytes: int
    """VmHWM: the largest resident set, pages of memory-mapped files included."""
    peak_private_bytes: int
    """The largest unique set of the samples: what no other process shares."""
    written_bytes: int
    comparing_s: float = 0.0
    """Of the seconds: comparing with PyTorch, at several sizes and in decoding."""
    failure: str = ""


def make_folder(folder: Path, billion: float) -> int:
    """A Llama with random weights in bf16, a shard a layer, so that one layer is in memory at a time.

    Returns:
        Bytes of its weights.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    hidden, inner, layers, heads = SHAPES[billion]
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048,
        tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(_shards(hidden, inner, layers), start=1):
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        tensors = {
            key: (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)
            if len(shape) > 1
            else torch.ones(shape, dtype=torch.bfloat16)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shapes, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_file(folder / "model.safetensors.index.json", json.dumps(index).encode())
    return total


def _shards(hidden: int, inner: int, layers: int) -> Iterator[Mapping[str, tuple[int, ...]]]:
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield {
            **{f"{at}.self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"},
            **{f"{at}.mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")},
            f"{at}.mlp.down_proj.weight": (hidden, inner),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    yield {
        "model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }  # fmt: skip


def watch(name: str, command: list[str], output: Path) -> Cost:
    """Run a command; sample its memory until it ends."""
    start = time.perf_counter()
    log = output.with_name(f"{name.split()[0]}.log")
    peak = private = 0
    with open(log, "wb") as file:
        process = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            try:
                peak = max(peak, _high_water(process.pid))
                private = max(private, process.memory_full_info().uss)
            except (psutil.Error, OSError, ValueError):  # it has just ended
                break
            time.sleep(_EVERY)
        status = process.wait()
    seconds = time.perf_counter() - start
    failure = "" if status == 0 else f"exit {status}: {_last_line(log)}"
    return Cost(name, seconds, peak, private, _written(output), _comparing(output), failure)


def _comparing(output: Path) -> float:
    """What `burnish export` says that its comparisons took."""
    found = output / "timings.json"
    steps: dict[str, float] = json.loads(found.read_bytes())["seconds"] if found.is_file() else {}
    return sum(steps.values())


def _high_water(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return max(found, default=0)  # none of a process that has just ended


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _written(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else output.parent.glob(f"{output.name}*")
    return sum(path.stat().st_size for path in files if path.is_file())


def measure(billion: float, work: Path, peers: Path | None = None) -> list[Cost]:
    """Export the folder in every way, one after the other; what they write is removed.

    Args:
        billion: parameters.
        work: folder for the model and the files.
        peers: Python of the environment of optimum-onnx; None: burnish and torch alone.
    """
    folder = work / f"llama-{billion}b"
    if not (folder / "model.safetensors.index.json").is_file():
        make_folder(folder, billion)
    ways = [("burnish export", sys.executable, _BURNISH, "burnish.out")]
    ways.append(("torch.onnx.export", sys.executable, _TORCH, "torch.out.onnx"))
    if peers is not None:
        ways.append(("transformers.exporters", sys.executable, _TRANSFORMERS, "transformers.out.onnx"))
        ways.append(("optimum-onnx", str(peers), _OPTIMUM, "optimum.out"))
    costs = []
    for name, python, code, file in ways:
        output = work / file
        arguments = (
            ["export", str(folder), "-o", str(output)] if code is _BURNISH else [str(folder), str(output)]
        )
        costs.append(watch(name, [python, "-P", "-c", code, *arguments], output))
        for path in work.glob(f"{file}*"):
            _remove(path)
    return costs


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def limit(cost: Cost) -> float:
    """The promised peak in bytes, for what was written."""
    return FACTOR * cost.written_bytes + SLACK


def report(billion: float, costs: list[Cost]) -> str:
    """The measurements as Markdown."""
    ours, theirs, *others = costs
    rows = "\n".join(
        f"| {c.name} | {c.written_bytes / 1e9:.2f} | {c.peak_bytes / 1e9:.2f} | "
        f"{c.peak_private_bytes / 1e9:.2f} | {c.seconds:.0f} | {c.comparing_s:.0f} | {c.failure or 'yes'} |"
        for c in costs
    )
    kept = "kept" if ours.peak_bytes <= limit(ours) and not ours.failure else "BROKEN"
    beside = "".join(
        f"- {ours.seconds / other.seconds:.2f} x {other.name}.\n" for other in others if not other.failure
    )
    ratio, exporting = (s / theirs.seconds for s in (ours.seconds, ours.seconds - ours.comparing_s))
    memory = f"{ours.peak_bytes / 1e9:.2f} GB of the promised {limit(ours) / 1e9:.2f} GB"
    place = f"{machine()['cpu']}, {psutil.cpu_count()} cores, load average {psutil.getloadavg()[0]:.1f}"
    return f"""# Exporting a random {billion} B Llama, stored in bf16

Regenerated by `make bench-export-memory`. Each export ran in a process of its own, one after the other.
`burnish export` loads, converts to float32, exports with KV cache, compares with PyTorch at several sizes and
in greedy decoding, hashes and writes. `torch.onnx.export` loads as float32, exports the same module with its
defaults and saves with external data; `transformers.exporters` and `optimum-onnx` (task
text-generation-with-past) likewise. They compare nothing.

| | written GB | peak RSS GB | peak USS GB | seconds | of them comparing | worked |
|---|---|---|---|---|---|---|
{rows}

- Memory: {memory} (1.5 x written + 1.5 GB): {kept}.
- Time: {ratio:.2f} x torch.onnx.export alone with everything that is compared (aim: {TIME});
  {exporting:.2f} x without the comparisons.
{beside}- Machine: {place} at the end.
"""


@click.command()
@click.option(
    "--billion", type=click.Choice([str(size) for size in SHAPES]), default="1.3", show_default=True
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/export-memory"))
@click.option("--peers", type=click.Path(path_type=Path),
              help="Python of an environment with requirements/peers-export.txt.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), help="Folder for a .json and a .md.")
def main(billion: str, output: Path, peers: Path | None, results: Path | None) -> None:
    """Measure and report."""
    output.mkdir(parents=True, exist_ok=True)
    costs = measure(float(billion), output, peers)
    where = results or output
    where.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "billion": float(billion), "costs": costs, "limit_bytes": limit(costs[0]), "machine": machine(),
        "versions": versions(),
    }  # fmt: skip
    name, text = f"export-memory-{billion}b", report(float(billion), costs)
    write_file(where / f"{name}.json", msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    write_file(where / f"{name}.md", text.encode())
    click.echo(text)
    if costs[0].failure or costs[0].peak_bytes > limit(costs[0]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
