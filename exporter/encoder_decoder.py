"""An encoder-decoder model as two graphs, `encoder` and `decoder`, with a cache for both attentions.

`encoder`: what the encoder takes -> `present.N.encoder.key` / `.value`, the keys and values of every
cross-attention, computed once. `decoder`: `decoder_input_ids` `[batch, sequence]`, those as
`past_key_values.N.encoder.*`, and `past_key_values.N.decoder.*` -> `logits` and `present.N.decoder.*`. Where
the encoder takes text, the decoder takes its `encoder_attention_mask` too.

Which module is the encoder, and what the decoder keeps, is read from the model: `get_encoder()` and the cache
that it returns.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Mapping
from typing import Any, Final

from burnish.errors import ExportError
from burnish.exporter.cache import Layout, Slot, layout_of
from burnish.exporter.causal import PAST, PRESENT, last_token, only_last, past_dims, past_examples, past_range
from burnish.exporter.dims import Assumed, DimSpec
from burnish.exporter.example_inputs import BATCH, Examples, longest, make_examples, need_run, run
from burnish.exporter.modules import parameter, seen_through
from burnish.exporter.needs import need, torch
from burnish.exporter.source import Recast, TorchParts, TorchSource

ENCODER: Final = "encoder"
DECODER: Final = "decoder"
_SEQUENCE, _PAST = 3, 5
_ALIKE: Final = 1e-2  # far above rounding, far below what a wrong mask makes of logits


def encoder_decoder_source(model: Any, *, last_logits_only: bool = True) -> TorchParts:
    """A transformers encoder-decoder, in eval mode, as its two graphs.

    Raises:
        ExportError: its cache is not understood (EXPORT_CACHE), or it runs on no example inputs
            (EXPORT_INPUTS).
    """
    examples = _encoder_examples(model)
    hidden = _hidden(model, examples)
    own, cross = _layouts(model, examples, hidden)
    text = "attention_mask" in examples.inputs
    length = next((dims.get(1) for dims in examples.dynamic.values() if text), None)
    fixed = None if length is not None or _varies(examples) else hidden.shape[1]

    def recast(name: str) -> Recast:
        def make(model: Any) -> Any:
            return encoder_decoder_source(model, last_logits_only=last_logits_only).parts[name].module

        return Recast(model, make)

    parts = {
        ENCODER: _encoder(model, examples, cross),
        DECODER: _decoder(
            model, own, cross, hidden, masked=text, several=_takes_several(model, examples, hidden),
            length=None if fixed else _renamed(length), last_logits_only=last_logits_only,
        ),
    }  # fmt: skip
    return TorchParts(
        {name: dataclasses.replace(part, recast=recast(name)) for name, part in parts.items()}, model=model
    )


def _encoder_examples(model: Any) -> Examples:
    """What the encoder takes, of the whole model's inputs."""
    made = make_examples(model)
    inputs = {name: tensor for name, tensor in made.inputs.items() if not name.startswith("decoder_")}
    return Examples(inputs, {name: dims for name, dims in made.dynamic.items() if name in inputs})


def _varies(examples: Examples) -> bool:
    """True where the encoder's length follows from a dynamic axis beside the batch."""
    return any(len(dims) > 1 for dims in examples.dynamic.values())


def _renamed(length: DimSpec | None) -> DimSpec:
    return (
        dataclasses.replace(length, name="encoder_sequence")
        if isinstance(length, Assumed)
        else "encoder_sequence"
    )


def start_token(model: Any) -> int:
    """The token that decoding starts from, as the generation's or the model's configuration says; else 0."""
    configs = (
        getattr(model, "generation_config", None),
        model.config,
        model.config.get_text_config(decoder=True),
    )
    for name, config in itertools.product(("decoder_start_token_id", "bos_token_id"), configs):
        start = getattr(config, name, None)
        if isinstance(start, int):
            return start
    return 0


def _start(model: Any, batch: Any) -> Any:
    return torch.full((batch, 1), start_token(model), dtype=torch.int64)


def _layouts(model: Any, examples: Examples, hidden: Any) -> tuple[Layout, Layout]:
    given = _encoded(examples.inputs, hidden) | {"decoder_input_ids": _start(model, BATCH), "use_cache": True}
    found = need_run(model, given)
    cache: Any = getattr(found, PAST, None)
    name = type(model).__name__
    if not hasattr(cache, "cross_attention_cache"):
        raise ExportError(
            f"The cache of {name} is a {type(cache).__name__}, without keys and values of the encoder.",
            "Export it with task feature-extraction, or as a module of your own.",
            code="EXPORT_CACHE",
        )
    return layout_of(cache.self_attention_cache, name), layout_of(cache.cross_attention_cache, name)


def _takes_several(model: Any, examples: Examples, hidden: Any) -> bool:
    """True where several tokens at once, after others in the cache, come out as without a cache.

    Some decoders refuse them or see the tokens that come after: their graph takes one at a time.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    rest = torch.arange(1, 2 * _SEQUENCE * BATCH + 1 - BATCH).reshape(BATCH, -1) % vocabulary
    ids = torch.cat([_start(model, BATCH), rest], dim=1)
    always = _encoded(examples.inputs, hidden)
    wanted = run(model, always | {"decoder_input_ids": ids, "use_cache": False}).logits
    cached = always | {"use_cache": True}
    try:
        first = run(model, cached | {"decoder_input_ids": ids[:, :_SEQUENCE]})
        then = run(model, cached | {"decoder_input_ids": ids[:, _SEQUENCE:], PAST: first[PAST]})
    except Exception:  # noqa: BLE001 - whatever the model says against several tokens
        return False
    found = torch.cat([first.logits, then.logits], dim=1)
    return bool(found.shape == wanted.shape and torch.allclose(found, wanted, rtol=_ALIKE, atol=_ALIKE))


def _encoded(inputs: Mapping[str, Any], hidden: Any) -> dict[str, Any]:
    """What the whole model takes instead of its encoder's inputs: the encoder's result, and their mask."""
    mask = {name: tensor for name, tensor in inputs.items() if name == "attention_mask"}
    return mask | {"encoder_outputs": _outputs(hidden)}


def _hidden(model: Any, examples: Examples) -> Any:
    return need_run(model.get_encoder(), _for_encoder(model, examples.inputs))[0]


def _for_encoder(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    takes = inspect.signature(model.get_encoder().forward).parameters
    return {name: tensor for name, tensor in inputs.items() if name in takes}


def _encoder(model: Any, examples: Examples, cross: Layout) -> TorchSource:
    encoder = model.get_encoder()

    def forward(**tensors: Any) -> dict[str, Any]:
        hidden = encoder(**_for_encoder(model, tensors), return_dict=True)[0]
        start = _start(model, hidden.shape[0])
        found = model(**_encoded(tensors, hidden), decoder_input_ids=start, use_cache=True)
        kept = cross.read(found.past_key_values.cross_attention_cache)
        return {_name(PRESENT, label, ENCODER): tensor for label, tensor in kept.items()}

    module = seen_through(model, forward, list(examples.inputs))
    return TorchSource(module, examples.inputs, examples.dynamic)


def _decoder(
    model: Any, own: Layout, cross: Layout, hidden: Any, *,
    masked: bool, several: bool, length: DimSpec | None, last_logits_only: bool,
) -> TorchSource:  # fmt: skip
    past = {_name(PAST, slot.label, DECODER): slot for slot in own.slots}
    fixed = {_name(PAST, slot.label, ENCODER): slot for slot in cross.slots}
    forward = _step(model, (own, past), (cross, fixed), hidden.shape[-1], last_logits_only=last_logits_only)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    new = _SEQUENCE if several else 1
    ids = torch.arange(BATCH * new).reshape(BATCH, new) % vocabulary
    top = longest(model.config)
    inputs: dict[str, Any] = {"decoder_input_ids": ids}
    dims: dict[str, dict[int, DimSpec]] = {"decoder_input_ids": {0: "batch"}}
    if several:
        dims["decoder_input_ids"][1] = Assumed("sequence", 1, top)
    if masked:
        mask = torch.ones(BATCH, hidden.shape[1], dtype=torch.int64)
        mask[-1, hidden.shape[1] // 2 :] = 0
        inputs["encoder_attention_mask"] = mask
        dims["encoder_attention_mask"] = {0: "batch"} | ({1: length} if length else {})
    inputs |= past_examples(past, _PAST) | past_examples(fixed, hidden.shape[1])
    dims |= past_dims(past, past_range(top)) | past_dims(fixed, length)
    module = seen_through(model, forward, [*list(inputs)[: 1 + masked], *past, *fixed])
    return TorchSource(module, inputs, dims, input_names={parameter(name): name for name in (*past, *fixed)})


def _step(
    model: Any, own: tuple[Layout, Mapping[str, Slot]], cross: tuple[Layout, Mapping[str, Slot]],
    width: int, *, last_logits_only: bool,
) -> Any:  # fmt: skip
    def forward(decoder_input_ids: Any, encoder_attention_mask: Any = None, **tensors: Any) -> dict[str, Any]:
        caches = [
            layout.restore({s.label: tensors[n] for n, s in names.items()}) for layout, names in (own, cross)
        ]
        key = tensors[next(iter(cross[1]))]  # [batch, heads, encoder_sequence, head_dim]
        given: dict[str, Any] = (
            {} if encoder_attention_mask is None else {"attention_mask": encoder_attention_mask}
        )
        # The encoder's result is in the cache; the model only asks for its shape.
        hidden = key.new_zeros(key.shape[0], key.shape[2], width)
        last = last_token(torch.ones_like(decoder_input_ids)) if last_logits_only else None
        with only_last(model, last) as finished:
            found = model(
                encoder_outputs=_outputs(hidden), decoder_input_ids=decoder_input_ids,
                past_key_values=_paired(*caches), use_cache=True, **given,
            )  # fmt: skip
        kept = own[0].read(found.past_key_values.self_attention_cache)
        return {"logits": finished(found.logits)} | {
            _name(PRESENT, label, DECODER): tensor for label, tensor in kept.items()
        }

    return forward


def _paired(own: Any, cross: Any) -> Any:
    cache = need("transformers").EncoderDecoderCache(own, cross)
    cache.is_updated = dict.fromkeys(range(len(cross.layers)), True)
    return cache


def _outputs(hidden: Any) -> Any:
    """What an encoder returns; whatever else the model looks for in it is None."""
    base = need("transformers.modeling_outputs").BaseModelOutput

    class Encoded(base):  # type: ignore[misc, valid-type]
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return Encoded(last_hidden_state=hidden)


def _name(prefix: str, label: str, side: str) -> str:
    layer, _, rest = label.partition(".")
    return f"{prefix}.{layer}.{side}.{rest}"
