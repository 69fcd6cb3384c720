"""Run one peer optimizer on one model: `python peer_runner.py TOOL IN.onnx OUT.onnx TYPE` prints a JSON line.

Started by `burnish.benchmarks.optimize.tools` with the Python of the peers' own environment
(requirements/peers.txt), so it imports nothing of burnish. Each loads, optimises and saves as its users do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx

Run = Callable[[str, str, str], None]
"""The model's path, the result's path, onnxruntime's model type."""
Job = Callable[[str, str], object]
"""The model's path, the result's path."""


def _onnxslim(source: str, output: str, _kind: str) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), output)


def _onnxsim(source: str, output: str, _kind: str) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], output)


def _onnxoptimizer(source: str, output: str, _kind: str) -> None:
    import onnxoptimizer

    # passes=None: all that fuse or eliminate.
    onnx.save(onnxoptimizer.optimize(onnx.load(source), passes=None, fixed_point=True), output)


def _onnxscript(source: str, output: str, _kind: str) -> None:
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.external_data.load_to_model(ir.load(source))
    rewritten, _ = optimize_for_ort(model)
    ir.save(rewritten, output)


def _onnxruntime(source: str, output: str, _kind: str) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = output
    # Otherwise the result refers to the source's data file, by a path that is none beside the result.
    data = os.path.basename(output) + ".data"
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
    options.log_severity_level = 4
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _onnxruntime_python(source: str, output: str, kind: str) -> None:
    # It imports torch to see whether a GPU is AMD's: a stand-in spares the environment a gigabyte.
    torch = types.ModuleType("torch")
    torch.version = types.SimpleNamespace(hip=None)  # type: ignore[attr-defined]
    sys.modules.setdefault("torch", torch)
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(source, model_type=kind, num_heads=0, hidden_size=0).save_model_to_file(output)


TOOLS: dict[str, Run] = {
    "onnxsim": _onnxsim,
    "OnnxSlim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
    "onnxruntime EXTENDED": _onnxruntime,
    "onnxruntime Python": _onnxruntime_python,
}


def peak_mb() -> float:
    """Peak resident memory of this process in MB (getrusage would count the parent's before exec)."""
    with open("/proc/self/status", encoding="ascii") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kilobytes) / 1024


def timed(run: Job, source: str, output: str, first: Job) -> str:
    """What it costs to make `output` of `source`, as a JSON line: seconds, peak_mb.

    `first` runs on a model of one node before, so that imports are in no tool's seconds.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
            first(_one_node(folder), os.path.join(folder, "made.onnx"))
        started = time.perf_counter()
        run(source, output)
        seconds = time.perf_counter() - started
    return json.dumps({"seconds": round(seconds, 3), "peak_mb": round(peak_mb())})


def _one_node(folder: str) -> str:
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "one", [x], [y])
    path = os.path.join(folder, "one.onnx")
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def main(tool: str, source: str, output: str, kind: str) -> None:
    """Optimise, save, and print seconds and peak memory."""

    def run(given: str, made: str) -> None:
        TOOLS[tool](given, made, kind)

    print(timed(run, source, output, first=run))


if __name__ == "__main__":
    main(*sys.argv[1:])
