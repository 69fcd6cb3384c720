"""Run one peer optimizer on one model: `python peer_runner.py TOOL IN.onnx OUT.onnx` prints a JSON line.

Started by `burnish.benchmarks.peers` with the Python of the peers' own environment (requirements/peers.txt),
so it imports nothing of burnish.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnx


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    result: onnx.ModelProto = onnxslim.slim(model)
    return result


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    result: onnx.ModelProto = onnxsim.simplify(model)[0]
    return result


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxscript import ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    rewritten, _ = optimize_for_ort(ir.serde.deserialize_model(model))
    result: onnx.ModelProto = ir.serde.serialize_model(rewritten)
    return result


def _onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    import tempfile

    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


TOOLS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "OnnxSlim": _onnxslim,
    "onnxsim": _onnxsim,
    "onnxscript optimize_for_ort": _onnxscript,
    "onnxruntime EXTENDED": _onnxruntime,
}


def peak_mb() -> float:
    """Peak resident memory of this process in MB (getrusage would count the parent's before exec)."""
    with open("/proc/self/status", encoding="ascii") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kilobytes) / 1024


def main(tool: str, source: str, output: str) -> None:
    """Optimise, save, and print seconds and peak memory."""
    model = onnx.load(source)
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = TOOLS[tool](model)
    seconds = time.perf_counter() - started
    onnx.save(result, output)
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(peak_mb())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
