"""An encoder-decoder Transformer whose encoder and decoder share their feed-forward layers.

It learns to read dates ("the 3rd of march, 1987" -> "1987-03-03"), made up at random.
"""

import numpy as np
import torch

import burnish
from common.command import options
from common.dates import LENGTH, PADDING, SIZE, START, dates, text
from common.table import compare
from common.training import classified, seed, train
from common.ways import Run, convert

WIDTH, HEADS, INNER, LAYERS, LONGEST = 64, 4, 256, 2, 40


class Transformer(torch.nn.Module):
    """Letters `[batch, length]` and `[batch, decoded]` -> logits `[batch, decoded, letters]`."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = torch.nn.Embedding(SIZE, WIDTH)
        self.places = torch.nn.Embedding(LONGEST, WIDTH)
        shape = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": INNER, "dropout": 0.0,
                 "batch_first": True, "norm_first": True}  # fmt: skip
        norms = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.encoder = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(**shape), LAYERS, norms[0], enable_nested_tensor=False
        )
        self.decoder = torch.nn.TransformerDecoder(
            torch.nn.TransformerDecoderLayer(**shape), LAYERS, norms[1]
        )
        for reader, writer in zip(self.encoder.layers, self.decoder.layers, strict=True):
            writer.linear1, writer.linear2 = reader.linear1, reader.linear2
        self.head = torch.nn.Linear(WIDTH, SIZE)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logits of the letter after each of the target's."""
        padding = source == PADDING
        seen = self.encoder(self.embed(source), src_key_padding_mask=padding)
        future = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        found = self.decoder(
            self.embed(target), seen, tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=padding
        )
        return self.head(found)

    def embed(self, letters: torch.Tensor) -> torch.Tensor:
        """What a letter is and where it stands, `[batch, length, 64]`."""
        return self.letters(letters) + self.places(torch.arange(letters.shape[1]))


def decode(run: Run, source: np.ndarray) -> np.ndarray:
    """The likeliest date, letter by letter: `[batch, 11]` with START before it."""
    target = np.full((len(source), 1), START)
    for _ in range(LENGTH):
        letters = run({"source": source, "target": target})["logits"][:, -1].argmax(-1)
        target = np.concatenate([target, letters[:, None]], axis=1)
    return target


def shared(folder: str, model: burnish.Artifact) -> str:
    """How often the weights of the feed-forward layers are stored, in words."""
    weights = [value.const_value for value in model.model.graph.initializers.values()]
    found = [weight for weight in weights if weight.size == WIDTH * INNER]
    return (
        f"{folder}: {len(found)} feed-forward matrices for {2 * 2 * LAYERS} uses, "
        f"{sum(weight.nbytes for weight in found):,} bytes"
    )


def main() -> None:
    """Train, convert, compare, read some dates."""
    quick, output = options(__doc__, "transformer")
    random, model = seed(), Transformer()

    def losses(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float]:
        source, target = batch
        return classified(model(source, target[:, :-1]), target[:, 1:])

    batches = (tuple(map(torch.from_numpy, dates(32 if quick else 64, random))) for _ in iter(int, 1))
    train(model, batches, losses, steps=250 if quick else 2000, rate=3e-3)

    source, target = dates(512, random)
    rows = [slice(at, at + 1) for at in range(64)]
    ways = convert(
        model,
        lambda folder: burnish.export(
            model, {"source": torch.from_numpy(source[:2]), "target": torch.from_numpy(target[:2, :-1])},
            dynamic={"source": {0: "batch", 1: ("length", 1, LONGEST)},
                     "target": {0: "batch", 1: ("decoded", 1, LONGEST)}},
            output_names=["logits"], output=folder,
        ),
        [{"source": source[row], "target": target[row, :-1]} for row in rows], output, measured=False,
    )  # fmt: skip
    test, truth = dates(200 if quick else 1000, random)
    stored = [shared(way.name, burnish.Artifact.open(output / way.name)) for way in ways[1:]]
    found = decode(ways[-1].run, test[:3])
    said = [f"int8 reads {text(row)!r} as {text(date)}" for row, date in zip(test, found, strict=False)]
    compare(
        f"Transformer with shared feed-forward layers, {len(test):,} dates", ways,
        metric=("exact %", lambda way: 100 * float((decode(way.run, test) == truth).all(1).mean())),
        timed=("one date, decoded letter by letter", lambda way: decode(way.run, test[:1])),
        folder=output, seconds=2 if quick else 10,
        remarks=[*stored, *said],
    )  # fmt: skip


if __name__ == "__main__":
    main()
