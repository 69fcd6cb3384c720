"""The training loop of all examples: AdamW, warm-up and cosine, clipped gradients."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Losses = Callable[[Any], tuple[torch.Tensor, float]]
"""A batch -> its loss, and the share of right answers in it."""

Log = Callable[[int, dict[str, float]], None]
"""Is told the number of the step and its figures by name."""


def seed(number: int = 0) -> np.random.Generator:
    """Make torch repeatable; the generator is for everything else."""
    torch.manual_seed(number)
    return np.random.default_rng(number)


def train(
    module: torch.nn.Module,
    batches: Iterator[Any],
    losses: Losses,
    *,
    steps: int,
    rate: float = 3e-3,
    decay: float = 0.01,
    warmup: float = 0.1,
    clip: float = 1.0,
    log: Log | None = None,
) -> None:
    """Train the module in place, and leave it in eval mode.

    Args:
        module: what is trained: its parameters that want gradients.
        batches: as many as there are steps, at least.
        losses: runs the module.
        steps: of the optimiser.
        rate: the highest learning rate.
        decay: weight decay of matrices; biases, norms and the like have none.
        warmup: share of the steps in which the rate rises from 0; then it falls by a cosine to 0.
        clip: the norm that the gradient of one step is cut to.
        log: is told loss, accuracy and learning rate of every step.
    """
    wanted = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in wanted if weight.dim() > 1], "weight_decay": decay},
        {"params": [weight for weight in wanted if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps, warmup))
    module.train()
    for step, batch in zip(range(steps), batches, strict=False):
        loss, accuracy = losses(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(wanted, clip)
        optimizer.step()
        schedule.step()
        if log is not None:
            log(step, {"loss": loss.item(), "accuracy": accuracy, "rate": schedule.get_last_lr()[0]})
    module.eval()


def classified(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Cross entropy of logits `[..., classes]` against labels `[...]`, and the share that is right."""
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    return loss, (logits.argmax(-1) == labels).float().mean().item()


def shuffled(count: int, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers below `count` in batches of `size`, epoch after epoch, without end."""
    while True:
        order = random.permutation(count)
        yield from (order[at : at + size] for at in range(0, max(count - size, 0) + 1, size))


def _factor(step: int, steps: int, warmup: float) -> float:
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
