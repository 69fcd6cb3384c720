"""An LSTM that tells the topic of a news text (Reuters R8), with its training in TensorBoard.

`tensorboard --logdir build/examples/lstm/logs` shows loss, accuracy and learning rate.
"""

import numpy as np
import torch
from tensorboardX import SummaryWriter

import burnish
from common.command import options
from common.table import compare
from common.texts import PADDING, numbered, reuters, vocabulary
from common.training import classified, seed, shuffled, train
from common.ways import accuracy, convert

WORDS, WIDTH, LONGEST = 8000, 96, 64


class Classifier(torch.nn.Module):
    """Word numbers `[batch, sequence]`, 0 for padding -> logits `[batch, topics]`."""

    def __init__(self, words: int, topics: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(words, WIDTH, padding_idx=PADDING)
        self.lstm = torch.nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True, dropout=0.2)
        self.head = torch.nn.Linear(WIDTH, topics)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Two layers of LSTM; the mean of their states over the words; a linear head."""
        states, _ = self.lstm(self.embedding(input_ids))
        kept = (input_ids != PADDING).unsqueeze(-1).to(states.dtype)
        return self.head((states * kept).sum(1) / kept.sum(1).clamp(min=1))


def main() -> None:
    """Train with logs, convert, compare."""
    quick, output = options(__doc__, "lstm")
    random = seed()
    learnt, held_out = reuters(1000, 300) if quick else reuters(5485, 2189)
    topics = sorted({topic for topic, _ in learnt})
    known = vocabulary([text for _, text in learnt], WORDS)
    ids = [numbered([text], known, LONGEST) for _, text in learnt]
    labels = np.array([topics.index(topic) for topic, _ in learnt])

    def batch(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(ids[row].shape[1] for row in rows)
        padded = [np.pad(ids[row][0], (0, width - ids[row].shape[1])) for row in rows]
        return torch.from_numpy(np.stack(padded)), torch.from_numpy(labels[rows])

    model = Classifier(len(known) + 2, len(topics))
    with SummaryWriter(str(output / "logs")) as writer:

        def log(step: int, figures: dict[str, float]) -> None:
            for name, value in figures.items():
                writer.add_scalar(f"train/{name}", value, step)

        train(
            model, map(batch, shuffled(len(ids), 32, random)),
            lambda pair: classified(model(pair[0]), pair[1]),
            steps=100 if quick else 1000, rate=4e-3, log=log,
        )  # fmt: skip

    ways = convert(
        model,
        lambda folder: burnish.export(
            model, {"input_ids": batch(np.arange(2))[0]}, output=folder, output_names=["logits"],
            dynamic={"input_ids": {0: "batch", 1: ("sequence", 1, 512)}},
        ),
        [{"input_ids": each} for each in sorted(ids[:64], key=lambda each: -each.shape[1])],
        output,
    )  # fmt: skip
    test = [
        ({"input_ids": numbered([text for _, text in part], known, LONGEST)},
         np.array([topics.index(topic) for topic, _ in part]))
        for part in (held_out[at : at + 32] for at in range(0, len(held_out), 32))
    ]  # fmt: skip
    one = next(each for each in ids if each.shape[1] == LONGEST)
    compare(
        f"LSTM, {len(held_out):,} test texts of Reuters R8 (8 topics)", ways,
        metric=("accuracy %", lambda way: 100 * accuracy(way.run, test)),
        timed=(f"one text of {LONGEST} words", lambda way: way.run({"input_ids": one})),
        folder=output, seconds=2 if quick else 10,
    )  # fmt: skip


if __name__ == "__main__":
    main()
