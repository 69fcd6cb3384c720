"""burnish as `peer_runner` runs the others: in a process of its own, with seconds and peak memory."""

from __future__ import annotations

import json
import sys
import time

from burnish.benchmarks.peer_runner import peak_mb


def main(source: str, output: str, measured: str) -> None:
    """Optimise, save, and print seconds and peak memory."""
    import burnish

    started = time.perf_counter()
    burnish.optimize(source, output=output, measured=measured == "measured")
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(peak_mb())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
