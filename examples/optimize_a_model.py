"""Optimise any .onnx file and see what was done: `python optimize_a_model.py MODEL.onnx OUT.onnx`."""

import sys

import burnish


def main(source: str, output: str) -> None:
    """Optimise, print a line for every pass that changed something, and verify the written file."""
    _, receipts = burnish.optimize(source, output=output, return_receipts=True)
    for receipt in receipts:
        if receipt.rewrites:
            print(f"{receipt.step}: {receipt.rewrites} rewrites, largest error {receipt.max_abs_error:.1e}")
    print(burnish.verify(source, output).difference)


if __name__ == "__main__":
    main(*sys.argv[1:])
