"""Networks that are in no zoo, at the sizes that people use: a tagger, a U-Net, torch's own Transformer."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from burnish.benchmarks.export.handmade import Made

_WORDS: Final = 20_000
_TAGS: Final = 17
_TEXT: Final = {0: "batch", 1: "sequence"}


class Tagger(nn.Module):  # type: ignore[misc]
    """Two bidirectional LSTM layers of 256 units over word embeddings, and a tag for every word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, 300)
        self.layers = nn.LSTM(300, 256, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(512, _TAGS)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[batch, sequence]` -> `[batch, sequence, 17]`."""
        states, _ = self.layers(self.embedding(tokens))
        found: Tensor = self.head(states)
        return found


class Encoder(nn.Module):  # type: ignore[misc]
    """`nn.TransformerEncoder`: six layers of width 512, eight heads, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, 512)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """`[batch, sequence]`, `[batch, sequence]` (1: a token) -> `[batch, sequence, 512]`."""
        found: Tensor = self.layers(self.embedding(tokens), src_key_padding_mask=padding_mask == 0)
        return found


class _Block(nn.Module):  # type: ignore[misc]
    """Two convolutions with GroupNorm and SiLU, and a shortcut."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(32, into), nn.SiLU(), nn.Conv2d(into, out, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(image)) + self.shortcut(image)
        return found


class UNet(nn.Module):  # type: ignore[misc]
    """The convolutions of a diffusion model's U-Net: 64, 128 and 256 channels, down and up again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)
        self.down = nn.ModuleList([_Block(64, 64), _Block(64, 128), _Block(128, 256)])
        self.up = nn.ModuleList([_Block(256 + 128, 128), _Block(128 + 64, 64)])

    def forward(self, image: Tensor) -> Tensor:
        """`[batch, 4, 64, 64]` -> the same."""
        hidden: Tensor = self.stem(image)
        kept: list[Tensor] = []
        for block in self.down:
            hidden = block(hidden if not kept else functional.avg_pool2d(hidden, 2))
            kept.append(hidden)
        for block, across in zip(self.up, kept[-2::-1], strict=True):
            hidden = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = block(torch.cat([hidden, across], 1))
        found: Tensor = self.head(hidden)
        return found


def _tokens() -> Tensor:
    return torch.randint(0, _WORDS, (2, 16), generator=torch.Generator().manual_seed(0))


def tagger() -> Made:
    """The LSTM tagger."""
    return Made(Tagger(), {"tokens": _tokens()}, {"tokens": _TEXT})


def encoder() -> Made:
    """torch's own Transformer encoder."""
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[-1, 8:] = 0
    return Made(Encoder(), {"tokens": _tokens(), "padding_mask": mask},
                {"tokens": _TEXT, "padding_mask": _TEXT})  # fmt: skip


def unet() -> Made:
    """The U-Net."""
    image = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    return Made(UNet(), {"image": image}, {"image": {0: "batch"}})
