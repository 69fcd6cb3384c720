"""Graphs with a cache, driven one way, however their exporter names things and splits the work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, final

import numpy as np
import torch

from burnish.benchmarks.export.cases import Loaded
from burnish.benchmarks.export.judge import Arrays, Product, Runner, to_numpy
from burnish.exporter.quiet import evaluating, quiet

_CACHE: Final = re.compile(r"^(?:input\.|output\.)?(?:past_key_values|present|cache_params)\.(.+)$")
_TYPES: Final = {
    "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_, "tensor(int32)": np.int32, "tensor(double)": np.float64,
}  # fmt: skip


class Stepper(Protocol):
    """A graph, or several, that decode."""

    single: bool
    """Takes one token at a time after the first step."""
    whole_first: bool
    """The first step may have any number of tokens even so."""

    def begin(self, batch: int, given: Mapping[str, Any], optimiser: str) -> None:
        """Forget all; `given`: what the encoder takes, as torch tensors."""

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Tokens `[batch, sequence]` and the mask of all so far -> logits, the last token's at `[:, -1]`."""

    def fixed(self) -> str:
        """Dims of inputs that must vary and are numbers; "" where there is none."""


def stepper_of(product: Product, case: Loaded) -> Stepper:
    """What drives an exporter's graphs.

    Raises:
        Exception: onnxruntime cannot load one.
    """
    runners = {role: Runner(path) for role, path in product.files.items()}
    if product.style == "causal":
        return Causal(runners["model"], runners.get("prefill"))
    return Translator(runners, case)


def cache_pairs(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """The output that each cache input is next fed from, by what is left of their names."""
    ends = {m.group(1): name for name in outputs if (m := _CACHE.match(name))}
    return {name: ends[m.group(1)] for name in inputs if (m := _CACHE.match(name)) and m.group(1) in ends}


def cache_inputs(inputs: Iterable[str]) -> list[str]:
    """The inputs that hold a cache."""
    return [name for name in inputs if _CACHE.match(name)]


def positions(mask: np.ndarray, length: int) -> np.ndarray:
    """Places of the last `length` tokens, counted by the mask."""
    counted: np.ndarray = np.clip(mask.cumsum(-1) - 1, 0, None)[:, mask.shape[1] - length :]
    return counted.astype(np.int64)


def _grows(runner: Runner) -> bool:
    return any(not isinstance(d, int) for n in cache_inputs(runner.inputs) for d in runner.inputs[n][1:])


def _zeros(runner: Runner, batch: int, skip: Sequence[str] = ()) -> Arrays:
    """An empty cache: no tokens, states of zeros."""
    made: Arrays = {}
    for name in cache_inputs(runner.inputs):
        if name not in skip:
            first, *rest = runner.inputs[name] or [1]
            shape = [first if isinstance(first, int) else batch]
            shape += [d if isinstance(d, int) else 0 for d in rest]
            made[name] = np.zeros(shape, _TYPES[runner.types[name]])
    return made


def _plain(runner: Runner, ids: np.ndarray, mask: np.ndarray, name: str = "input_ids") -> Arrays:
    """Tokens, mask and positions, as far as the graph takes them."""
    seen = mask if _grows(runner) or not cache_inputs(runner.inputs) else mask[:, -ids.shape[1] :]
    made = {
        name: ids, "attention_mask": seen, "position_ids": positions(mask, ids.shape[1]),
        "cache_position": np.arange(mask.shape[1] - ids.shape[1], mask.shape[1]),
    }  # fmt: skip
    return {
        key: array.astype(_TYPES[runner.types[key]]) for key, array in made.items() if key in runner.inputs
    }


@final
class Causal:
    """A decoder with its cache in one graph; perhaps another for the prompt."""

    def __init__(self, model: Runner, prefill: Runner | None) -> None:
        self._model, self._prefill = model, prefill
        self._pairs = cache_pairs(list(model.inputs), model.outputs)
        self.single = isinstance(model.inputs["input_ids"][1], int)
        self.whole_first = prefill is not None
        self._cache: Arrays = {}
        self._started, self._optimiser, self._batch = False, "off", 1

    def begin(self, batch: int, given: Mapping[str, Any], optimiser: str) -> None:
        """See `Stepper`."""
        self._cache = _zeros(self._model, batch)
        self._started, self._optimiser, self._batch = False, optimiser, batch

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """See `Stepper`."""
        if self._prefill is not None and not self._started:
            found = self._prefill(_plain(self._prefill, ids, mask), self._optimiser)
            pairs = cache_pairs(list(self._model.inputs), list(found))
        else:
            found = self._model(_plain(self._model, ids, mask) | self._cache, self._optimiser)
            pairs = self._pairs
        self._started = True
        self._cache |= {name: found[output] for name, output in pairs.items()}
        return found["logits"]

    def fixed(self) -> str:
        """See `Stepper`."""
        wanted = ["input_ids", *cache_inputs(list(self._model.inputs))]
        bad = [n for n in wanted if self._model.inputs[n] and isinstance(self._model.inputs[n][0], int)]
        return ", ".join(f"{name}[0]={self._model.inputs[name][0]}" for name in bad[:3])


@final
class Translator:
    """An encoder-decoder: burnish's and optimum's graphs, or transformers' with the encoder in PyTorch."""

    def __init__(self, runners: Mapping[str, Runner], case: Loaded) -> None:
        self._encoder = runners.get("encoder")
        self._first, self._next = runners.get("first"), runners["decoder"]
        self._case = case
        self._ids = next(n for n in ("decoder_input_ids", "input_ids") if n in self._next.inputs)
        self.whole_first = self._first is not None
        self.single = self.whole_first or isinstance(self._next.inputs[self._ids][1], int)
        self._cache: Arrays = {}
        self._always: Arrays = {}
        self._started, self._optimiser = False, "off"

    def begin(self, batch: int, given: Mapping[str, Any], optimiser: str) -> None:
        """See `Stepper`; runs the encoder."""
        self._optimiser, self._started = optimiser, False
        encoded = self._encoded(given)
        hidden = encoded.get("last_hidden_state")
        pairs = cache_pairs(list(self._next.inputs), list(encoded))
        self._cache = _zeros(self._next, batch, list(pairs))
        self._cache |= {name: encoded[output] for name, output in pairs.items()}
        self._always = {}
        if hidden is not None:
            self._always |= dict.fromkeys(
                ("encoder_hidden_states", "encoder_outputs.last_hidden_state"), hidden
            )
        if "attention_mask" in given:
            mask = to_numpy(given["attention_mask"]).astype(np.int64)
            self._always |= dict.fromkeys(("encoder_attention_mask", "attention_mask"), mask)

    def _encoded(self, given: Mapping[str, Any]) -> Arrays:
        if self._encoder is not None:
            feeds = {name: to_numpy(tensor) for name, tensor in given.items() if name in self._encoder.inputs}
            return self._encoder(feeds, self._optimiser)
        with evaluating(self._case.module), quiet():
            encoder = self._case.module.get_encoder()
            return {"last_hidden_state": to_numpy(encoder(**given, return_dict=True)[0])}

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """See `Stepper`."""
        runner = self._first if self._first is not None and not self._started else self._next
        place = {
            "decoder_position_ids": positions(mask, ids.shape[1]),
            "cache_position": positions(mask[:1], ids.shape[1])[0],
            "decoder_attention_mask": mask,
        }  # fmt: skip
        names = {n for n in ("decoder_input_ids", "input_ids") if n in runner.inputs}
        offered = self._always | place | dict.fromkeys(names, ids.astype(np.int64)) | self._cache
        found = runner({n: a for n, a in offered.items() if n in runner.inputs}, self._optimiser)
        pairs = cache_pairs(list(self._next.inputs), list(found))
        self._cache |= {name: found[output] for name, output in pairs.items()}
        self._started = True
        return found["logits"]

    def fixed(self) -> str:
        """See `Stepper`."""
        bad = [
            f"{name}[0]={shape[0]}"
            for runner in (self._encoder, self._first, self._next) if runner is not None
            for name, shape in runner.inputs.items() if len(shape) > 1 and isinstance(shape[0], int)
        ]  # fmt: skip
        return ", ".join(bad[:3])


def torch_logits(case: Loaded, ids: np.ndarray, mask: np.ndarray, given: Mapping[str, Any]) -> np.ndarray:
    """What the module says of the last of all tokens, without any cache: `[batch, vocab]`."""
    import inspect

    takes = inspect.signature(case.module.forward).parameters
    tokens = torch.from_numpy(ids)
    with evaluating(case.module), quiet():
        if case.form == "encoder-decoder":
            found = case.module(**given, decoder_input_ids=tokens, use_cache=False)
        else:
            place = {"position_ids": torch.from_numpy(positions(mask, ids.shape[1]))}
            place = place if "position_ids" in takes else {}
            masked = torch.from_numpy(mask)
            found = case.module(input_ids=tokens, attention_mask=masked, use_cache=False, **place)
    return to_numpy(found.logits[:, -1])
