"""The embedded default: a small convolutional net, trained here in seconds on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from burnish.benchmarks.demo.job import OUTPUT, Batch, Job, Stages
from burnish.benchmarks.demo.keep import Keeper

TRAINING: Final = 747
"""Of 1,797 images, so that 1,050 are held out."""

EPOCHS: Final = 10
CALIBRATION: Final = 64
_BATCH: Final = 32
_RATE: Final = 3e-3
_SEED: Final = 0


def make_job(
    stages: Stages, *, training: int = TRAINING, epochs: int = EPOCHS, cache: Path | None = None
) -> Job:
    """Train the net on the first part of the (shuffled) digits; the rest is held out.

    Args:
        stages: told of progress.
        training: how many images the net is trained on.
        epochs: how often it sees each.
        cache: folder for torch's logits of the held-out images.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_SEED).permutation(len(labels))
    pixels = (images[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    classes = labels[order].astype(np.int64)
    net = _train(pixels[:training], classes[:training], epochs, stages)
    rest = range(training, len(classes), _BATCH)
    held_out = [Batch({"image": pixels[i : i + _BATCH]}, classes[i : i + _BATCH]) for i in rest]
    return Job(
        "digits", net, example={"image": torch.from_numpy(pixels[:2])}, dynamic={"image": {0: "batch"}},
        calibration=[{"image": pixels[i : i + 1]} for i in range(CALIBRATION)],
        held_out=held_out, timed={"image": pixels[training : training + 1]}, shape="batch 1 × 8 × 8 pixels",
        data=f"{len(classes) - training:,} held-out images of scikit-learn's digits; net trained here on "
        f"{training:,}",
        keep=Keeper("digits", cache), key=None,
    )  # fmt: skip


def make_net() -> Any:
    """Three convolutions with batch norm, mean over the pixels, a linear head: logits of an image."""
    return _Digits()


class _Digits(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        layers: list[Any] = []
        for before, after in ((1, 32), (32, 64), (64, 64)):
            layers += [
                torch.nn.Conv2d(before, after, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(after),
                torch.nn.ReLU(),
            ]
        self.features = torch.nn.Sequential(*layers[:6], torch.nn.MaxPool2d(2), *layers[6:])
        self.head = torch.nn.Linear(64, 10)

    def forward(self, image: Any) -> dict[str, Any]:
        """Logits [batch, 10] of images [batch, 1, 8, 8] float32 in 0 to 1."""
        return {OUTPUT: self.head(self.features(image).mean((2, 3)))}


def _train(images: np.ndarray, labels: np.ndarray, epochs: int, stages: Stages) -> Any:
    with (
        stages(f"Training a small convolutional net on {len(labels)} digits") as tell,
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(_SEED)
        net = make_net().train()
        optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
        pairs = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
        loader = torch.utils.data.DataLoader(pairs, batch_size=_BATCH, shuffle=True, drop_last=True)
        for epoch in range(epochs):
            tell("", epoch, epochs)
            for batch, wanted in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(batch)[OUTPUT], wanted).backward()
                optimizer.step()
    return net.eval()
