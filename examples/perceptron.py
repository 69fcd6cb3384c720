"""A perceptron of two layers, 100 → 50 → 10, which reads handwritten digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits

import burnish
from common.command import options
from common.table import compare
from common.training import classified, seed, shuffled, train
from common.ways import accuracy, convert

CLASSES, SIDE = 10, 10


class Perceptron(torch.nn.Module):
    """Pixels `[batch, 100]` -> logits `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(SIDE * SIDE, 50)
        self.output = torch.nn.Linear(50, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Two layers with a ReLU between."""
        return self.output(torch.relu(self.hidden(pixels)))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits with an empty frame: images `[n, 10, 10]` in 0..1, and labels, mixed."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    framed = np.pad(images.reshape(-1, 8, 8) / 16, ((0, 0), (1, 1), (1, 1)))
    return framed[order].astype(np.float32), labels[order].astype(np.int64)


def moved(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image shifted by up to a pixel, the frame being empty; then flat."""
    shifts = random.integers(-1, 2, (len(images), 2))
    return np.stack([np.roll(i, s, (0, 1)) for i, s in zip(images, shifts, strict=True)]).reshape(-1, 100)


def main() -> None:
    """Train, convert, compare."""
    quick, output = options(__doc__, "perceptron")
    random, model = seed(), Perceptron()
    images, labels = digits()
    held_out = 797
    learnt, truth = images[held_out:], labels[held_out:]
    batches = (
        (torch.from_numpy(moved(learnt[rows], random)), torch.from_numpy(truth[rows]))
        for rows in shuffled(len(learnt), 64, random)
    )
    train(
        model, batches, lambda batch: classified(model(batch[0]), batch[1]),
        steps=600 if quick else 4000, rate=1e-2,
    )  # fmt: skip

    flat = images.reshape(-1, SIDE * SIDE)
    ways = convert(
        model,
        lambda folder: burnish.export(
            model, {"pixels": torch.from_numpy(flat[:2])}, dynamic={"pixels": {0: "batch"}},
            output_names=["logits"], output=folder,
        ),
        [{"pixels": flat[held_out + at : held_out + at + 32]} for at in range(0, 256, 32)],
        output, measured=False,
    )  # fmt: skip
    test = [({"pixels": flat[:held_out]}, labels[:held_out])]
    compare(
        "Perceptron 100 → 50 → 10, 797 held-out digits", ways,
        metric=("accuracy %", lambda way: 100 * accuracy(way.run, test)),
        timed=("32 images", lambda way: way.run({"pixels": flat[:32]})),
        folder=output, seconds=2 if quick else 10,
    )  # fmt: skip


if __name__ == "__main__":
    main()
