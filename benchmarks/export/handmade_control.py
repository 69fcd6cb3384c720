"""Hand-made networks that branch, loop, scatter and choose."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTH: Final = 16


class Branch(nn.Module):  # type: ignore[misc]
    """One of two layers, by the mean of the input: `torch.cond`."""

    def __init__(self) -> None:
        super().__init__()
        self.warm, self.cold = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""
        found: Tensor = torch.cond(
            hidden.mean() > 0, lambda x: self.warm(x).relu(), lambda x: self.cold(x).tanh(), (hidden,)
        )
        return found


class Nested(nn.Module):  # type: ignore[misc]
    """A branch inside a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""

        def inner(x: Tensor) -> Tensor:
            found: Tensor = torch.cond(x.max() > 2, lambda y: y / 2, lambda y: y + 1, (x,))
            return found

        found: Tensor = torch.cond(hidden.sum() > 0, inner, lambda x: x - 1, (self.layer(hidden),))
        return found


class Loop(nn.Module):  # type: ignore[misc]
    """Repeated until small, or eight times: `torch.while_loop`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""
        from torch._higher_order_ops.while_loop import while_loop

        def more(count: Tensor, x: Tensor) -> Tensor:
            return (count < 8) & (x.abs().max() > 0.5)

        def again(count: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return count + 1, 0.7 * self.layer(x).tanh()

        found: Tensor = while_loop(more, again, (torch.tensor(0), hidden))[1]
        return found


class Recurrence(nn.Module):  # type: ignore[misc]
    """A state-space layer, step by step: torch's `scan`."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(_WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""
        from torch._higher_order_ops.scan import scan

        decay = self.decay.sigmoid()

        def step(state: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
            state = decay * state + given
            return state, state.clone()

        _, states = scan(step, hidden.new_zeros(hidden.shape[0], _WIDTH), hidden.transpose(0, 1), dim=0)
        found: Tensor = states.transpose(0, 1)
        return found


class Unrolled(nn.Module):  # type: ignore[misc]
    """A loop over a fixed number of steps, in Python, that rewrites its state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        """`[batch, sequence, 16]` -> the same."""
        state = hidden
        for index, layer in enumerate(self.layers):
            state = state + layer(state).sigmoid() * (index + 1)
            if state.shape[1] > 0:
                state = state - state.mean(1, keepdim=True)
        return state


class Scatter(nn.Module):  # type: ignore[misc]
    """Rows put at chosen places, one added where several meet."""

    def forward(self, hidden: Tensor, places: Tensor) -> Tensor:
        """`[batch, sequence, 16]`, `[batch, 2]` -> `[batch, sequence, 16]`."""
        index = places[..., None].expand(-1, -1, hidden.shape[2])
        added = hidden.scatter_add(1, index, torch.ones_like(index, dtype=hidden.dtype))
        rows = torch.arange(hidden.shape[0])[:, None]
        changed = added.clone()
        changed[rows, places] = changed[rows, places] * 2
        return changed


class Pooled(nn.Module):  # type: ignore[misc]
    """Depthwise convolution, BatchNorm, max pooling with ceil, adaptive pooling, a padded border."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.Hardswish(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        """`[batch, 3, height, width]` -> `[batch, 4]`."""
        found: Tensor = self.head(functional.adaptive_avg_pool2d(self.stem(image), 1).flatten(1))
        return found


class Spectrum(nn.Module):  # type: ignore[misc]
    """The magnitude of a Fourier transform, filtered, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(33))

    def forward(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, 64]` -> magnitudes `[batch, 33]`, filtered `[batch, 64]`."""
        spectrum = torch.fft.rfft(wave)
        return spectrum.abs(), torch.fft.irfft(spectrum * self.gain, n=64)


class Chosen(nn.Module):  # type: ignore[misc]
    """The rows whose first number is positive: as many as the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_WIDTH, 4)

    def forward(self, rows: Tensor) -> Tensor:
        """`[count, 16]` -> `[chosen, 4]`."""
        found: Tensor = self.layer(rows[(rows[:, 1] > 0).nonzero().squeeze(1)])
        return found
