"""Networks that people write by hand, each with something that exporters stumble over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from burnish.benchmarks.export import handmade_control as control

_WIDTH: Final = 16
_WORDS: Final = 50


@final
@dataclasses.dataclass(frozen=True)
class Made:
    """A network with inputs and what of them varies."""

    module: Any
    inputs: dict[str, Any]
    dynamic: dict[str, dict[int, str]]
    sizes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Sizes to judge at, where the usual ones do not fit."""


Build = Callable[[], Made]


class Recurrent(nn.Module):  # type: ignore[misc]
    """Embedding, a recurrent layer, a linear layer on its last state."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        self.layers = kind(_WIDTH, _WIDTH, batch_first=True, **options)
        self.head = nn.Linear(_WIDTH * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[batch, sequence]` -> `[batch, 3]`."""
        states, _ = self.layers(self.embedding(tokens))
        found: Tensor = self.head(states[:, -1])
        return found


class Packed(nn.Module):  # type: ignore[misc]
    """A bidirectional LSTM over sequences of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(_WIDTH, _WIDTH, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """`[batch, sequence, 16]` and `[batch]` -> `[batch, longest, 32]`."""
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        states, _ = self.layers(packed)
        padded, _ = pad_packed_sequence(states, batch_first=True)
        return padded


class Decoder2d(nn.Module):  # type: ignore[misc]
    """Convolution, GroupNorm, ConvTranspose, PixelShuffle, a resize to another image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(4, 8), nn.SiLU())
        self.up = nn.ConvTranspose2d(8, 16, 3, stride=2, padding=1, output_padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, image: Tensor) -> Tensor:
        """`[batch, 3, height, width]` -> `[batch, 4, height, width]`."""
        large = self.shuffle(self.up(self.down(image)))
        return functional.interpolate(large, size=image.shape[2:], mode="bilinear", align_corners=False)


class Warp(nn.Module):  # type: ignore[misc]
    """A spatial transformer: an affine grid, and the image sampled there."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 6))

    def forward(self, image: Tensor) -> Tensor:
        """`[batch, 3, height, width]` -> the same, warped."""
        affine = 0.1 * self.where(image).view(-1, 2, 3) + torch.eye(2, 3)
        grid = functional.affine_grid(affine, list(image.shape), align_corners=False)
        return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


class Einsum(nn.Module):  # type: ignore[misc]
    """Attention written with einsum, causal by a mask made of comparisons, with a window and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)

    def forward(self, hidden: Tensor, padding_mask: Tensor) -> Tensor:
        """`[batch, sequence, 16]`, `[batch, sequence]` (1: a token) -> `[batch, sequence, 16]`."""
        query, key, value = self.qkv(hidden).unflatten(-1, (3, 4, 4)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 2
        place = torch.arange(hidden.shape[1])
        causal = place[:, None] >= place[None, :]
        near = (place[:, None] - place[None, :]).abs() < 4
        seen = (causal & near)[None, None] & padding_mask[:, None, None, :].bool()
        seen = seen | torch.eye(hidden.shape[1], dtype=torch.bool)
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)


class Tied(nn.Module):  # type: ignore[misc]
    """`nn.Transformer`, encoder and decoder sharing feed-forward layers, embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        self.transformer = nn.Transformer(_WIDTH, 4, 2, 2, 32, batch_first=True, dropout=0.0)
        pairs = zip(self.transformer.encoder.layers, self.transformer.decoder.layers, strict=True)
        for one, two in pairs:
            two.linear1, two.linear2 = one.linear1, one.linear2
        self.head = nn.Linear(_WIDTH, _WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """`[batch, sequence]`, `[batch, target]` -> `[batch, target, 50]`."""
        length = target.shape[1]
        causal = torch.full((length, length), float("-inf")).triu(1)
        hidden = self.transformer(self.embedding(source), self.embedding(target), tgt_mask=causal)
        found: Tensor = self.head(hidden)
        return found


class Experts(nn.Module):  # type: ignore[misc]
    """Four experts; each token goes to the two that a router chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(_WIDTH, 4)
        self.up = nn.Parameter(torch.randn(4, _WIDTH, 32) / 4)
        self.down = nn.Parameter(torch.randn(4, 32, _WIDTH) / 6)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""
        flat = hidden.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2, dim=-1)
        gates = torch.zeros(flat.shape[0], 4).scatter(1, chosen, weights / weights.sum(-1, keepdim=True))
        inner = functional.gelu(torch.einsum("th,ehf->tef", flat, self.up))
        mixed = torch.einsum("tef,efh,te->th", inner, self.down, gates)
        return mixed.view_as(hidden)


class Scan(nn.Module):  # type: ignore[misc]
    """A diagonal state-space layer as a cumulative sum in log space: no loop."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(_WIDTH))
        self.mix = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""
        place = torch.arange(hidden.shape[1], dtype=hidden.dtype)
        decay = -functional.softplus(self.decay)
        apart = (place[:, None] - place[None, :]).tril()
        kernel = torch.exp(apart[..., None] * decay) * torch.ones_like(apart).tril()[..., None]
        return torch.einsum("qkd,bkd->bqd", kernel, self.mix(hidden))


class Detector(nn.Module):  # type: ignore[misc]
    """Boxes and scores, the best eight by TopK, overlapping ones set to zero (NMS of a fixed length)."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Linear(_WIDTH, 4), nn.Linear(_WIDTH, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, 20, 16]` -> boxes `[batch, 8, 4]`, scores `[batch, 8]`."""
        scores, best = self.scores(features).sigmoid().squeeze(-1).topk(8, dim=1)
        corner = self.boxes(features).gather(1, best[..., None].expand(-1, -1, 4))
        low = corner[..., :2]
        boxes = torch.cat([low, low + corner[..., 2:].abs()], -1)
        kept = torch.ones_like(scores)
        for index in range(1, 8):
            overlap = _overlap(boxes[:, :index], boxes[:, index : index + 1]) > 0.5
            hidden = (overlap & (kept[:, :index] > 0)).any(1, keepdim=True)
            kept = torch.cat([kept[:, :index], (~hidden).to(kept.dtype), kept[:, index + 1 :]], 1)
        return boxes, scores * kept


def _overlap(one: Tensor, two: Tensor) -> Tensor:
    low, high = torch.maximum(one[..., :2], two[..., :2]), torch.minimum(one[..., 2:], two[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / ((one[..., 2:] - one[..., :2]).prod(-1) + (two[..., 2:] - two[..., :2]).prod(-1) - shared)


def _tokens(batch: int = 2, sequence: int = 7) -> Tensor:
    return torch.arange(batch * sequence).reshape(batch, sequence) * 7 % _WORDS


def _real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


_TEXT: Final = {0: "batch", 1: "sequence"}
_IMAGE: Final = {0: "batch", 2: "height", 3: "width"}
_SIDES: Final[dict[str, tuple[int, ...]]] = {"height": (16, 23), "width": (16, 31)}


def _recurrent(kind: Any, **options: Any) -> Build:
    def build() -> Made:
        torch.manual_seed(0)
        return Made(Recurrent(kind, **options), {"tokens": _tokens()}, {"tokens": _TEXT})

    return build


def _of(kind: Callable[[], nn.Module], inputs: dict[str, Tensor], dynamic: dict[str, dict[int, str]],
        sizes: Mapping[str, tuple[int, ...]] | None = None) -> Build:  # fmt: skip
    def build() -> Made:
        torch.manual_seed(0)
        return Made(kind(), inputs, dynamic, sizes or {})

    return build


_HIDDEN: Final = {"hidden": _real(2, 7, _WIDTH)}
_PICTURE: Final = {"image": _real(2, 3, 16, 20)}

HANDMADE: Final[Mapping[str, Build]] = {
    "lstm": _recurrent(nn.LSTM),
    "lstm-two-layers-bidirectional": _recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": _recurrent(nn.GRU),
    "gru-bidirectional": _recurrent(nn.GRU, bidirectional=True),
    "rnn-tanh": _recurrent(nn.RNN),
    "lstm-packed": _of(
        Packed, {"features": _real(3, 7, _WIDTH), "lengths": torch.tensor([7, 3, 5])},
        {"features": _TEXT, "lengths": {0: "batch"}}, {"sequence": (7,)},
    ),
    "convtranspose-groupnorm-resize": _of(Decoder2d, _PICTURE, {"image": _IMAGE}, _SIDES),
    "grid-sample": _of(Warp, _PICTURE, {"image": _IMAGE}, _SIDES),
    "einsum-masks": _of(
        Einsum, _HIDDEN | {"padding_mask": torch.ones(2, 7, dtype=torch.int64)},
        {"hidden": _TEXT, "padding_mask": _TEXT},
    ),
    "transformer-tied": _of(
        Tied, {"source": _tokens(), "target": _tokens(2, 5)},
        {"source": _TEXT, "target": {0: "batch", 1: "target"}},
    ),
    "moe-routing": _of(Experts, _HIDDEN, {"hidden": _TEXT}),
    "state-space-scan": _of(Scan, _HIDDEN, {"hidden": _TEXT}),
    "topk-nms": _of(Detector, {"features": _real(2, 20, _WIDTH)}, {"features": {0: "batch"}}),
    "torch-cond": _of(control.Branch, _HIDDEN, {"hidden": _TEXT}),
    "torch-cond-nested": _of(control.Nested, _HIDDEN, {"hidden": _TEXT}),
    "torch-while-loop": _of(control.Loop, _HIDDEN, {"hidden": _TEXT}),
    "torch-scan": _of(control.Recurrence, _HIDDEN, {"hidden": _TEXT}),
    "python-loop": _of(control.Unrolled, _HIDDEN, {"hidden": _TEXT}),
    "index-put-scatter": _of(control.Scatter, _HIDDEN | {"places": torch.tensor([[0, 2], [1, 3]])},
                             {"hidden": _TEXT, "places": {0: "batch"}}, {"sequence": (4, 7, 12)}),
    "batchnorm-pooling": _of(control.Pooled, _PICTURE, {"image": _IMAGE}, _SIDES),
    "complex-fft": _of(control.Spectrum, {"wave": _real(2, 64)}, {"wave": {0: "batch"}}),
    "nonzero-rows": _of(control.Chosen, {"rows": _real(6, _WIDTH)}, {"rows": {0: "count"}},
                        {"count": (4, 6, 11)}),
}  # fmt: skip
"""How each is made, by name."""
