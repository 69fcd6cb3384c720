"""optimum-onnx on one folder: `python optimum_runner.py FOLDER TASK OUTPUT` prints a JSON line.

Started with the Python of the peers' own environment (requirements/peers-export.txt), so it imports nothing
of burnish.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import warnings

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def memory_mb(field: str) -> float:
    """Resident memory now (VmRSS) or at its peak (VmHWM), in MB."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(next(line.split()[1] for line in status if line.startswith(field))) / 1024


def main(source: str, task: str, output: str) -> None:
    """Export without its own validation; print processor seconds and memory added, or the error."""
    import torch
    from optimum.exporters.onnx import main_export

    torch.set_num_threads(1)
    before = memory_mb("VmRSS")
    started = time.process_time()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            main_export(
                source, output, task=task, do_validation=False, no_post_process=True, local_files_only=True,
                library_name="transformers",
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever it is, the table says it
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}))
        return
    seconds = time.process_time() - started
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(memory_mb("VmHWM") - before)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
