"""The architectures of the table: which, for which task, with random weights, as folders; small by default.

Each is what `transformers` itself builds from the configuration; a folder is what a user has:
config.json and model.safetensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

import torch

from burnish.benchmarks.export.overrides import OVERRIDES
from burnish.benchmarks.export.shrink import small
from burnish.benchmarks.export.weights import enliven
from burnish.exporter.needs import need
from burnish.exporter.quiet import quiet
from burnish.exporter.tasks import TASKS, loader_of

_TABLE: Final[Mapping[str, str]] = {
    "text-generation": """
        llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neo gpt_neox gpt_bigcode codegen
        opt bloom falcon mpt stablelm olmo2 cohere granite glm smollm3 nemotron mixtral qwen3_moe gpt_oss
        deepseek_v3 mamba mamba2 jamba bamba lfm2 qwen3_next falcon_h1 rwkv
    """,
    "text2text-generation": """
        t5 bart mbart pegasus marian m2m_100 blenderbot led longt5 switch_transformers prophetnet t5gemma fsmt
    """,
    "automatic-speech-recognition": """
        whisper speech_to_text moonshine wav2vec2 hubert wavlm sew parakeet_ctc
    """,
    "fill-mask": """
        bert roberta albert distilbert deberta-v2 mpnet mobilebert convbert esm fnet funnel big_bird
        longformer modernbert roformer squeezebert nystromformer xlm-roberta
    """,
    "text-classification": "xlnet canine",
    "token-classification": "electra bros lilt",
    "question-answering": "splinter markuplm lxmert",
    "image-classification": """
        vit deit beit convnext cvt dinov2 efficientnet focalnet hiera levit mobilenet_v1 mobilevit poolformer
        pvt regnet resnet swin swinv2
    """,
    "object-detection": "yolos conditional_detr rt_detr d_fine rf_detr",
    "semantic-segmentation": "segformer mobilenet_v2 dpt maskformer mask2former",
    "zero-shot-image-classification": "clip siglip altclip chinese_clip align clipseg",
    "audio-classification": "audio-spectrogram-transformer sew-d unispeech-sat",
    "feature-extraction": "vilt visual_bert flava clap groupvit owlvit dpr vit_mae",
}
"""Model types by task: what the table is made of. Each architecture stands once."""

_MORE: Final[Mapping[str, str]] = {
    "text-generation": """
        gptj starcoder2 olmo olmo3 cohere2 glm4 exaone4 ernie4_5 persimmon helium biogpt xglm arcee apertus
        bitnet seed_oss ministral3 diffllama minicpm3 qwen2_moe granitemoe olmoe phimoe deepseek_v2 jetmoe
        ernie4_5_moe falcon_mamba zamba2 recurrent_gemma granitemoehybrid nemotron_h xlstm minimax
        modernbert-decoder
    """,
    "text2text-generation": """
        mt5 umt5 pegasus_x blenderbot-small bigbird_pegasus mvp plbart nllb-moe
    """,
    "automatic-speech-recognition": "data2vec-audio unispeech wav2vec2-conformer wav2vec2-bert",
    "fill-mask": """
        deberta camembert ernie flaubert ibert megatron-bert eurobert rembert roc_bert xlm xlm-roberta-xl xmod
        yoso nomic_bert data2vec-text layoutlm perceiver
    """,
    "text-classification": "roberta-prelayernorm gpt-sw3 openai-gpt tapas",
    "question-answering": "luke",
    "image-classification": """
        convnextv2 dinov2_with_registers mobilevitv2 pvt_v2 swiftformer bit imagegpt textnet hgnet_v2
        data2vec-vision vit_msn ijepa
    """,
    "object-detection": "detr deformable_detr table-transformer",
    "semantic-segmentation": "upernet eomt",
    "zero-shot-image-classification": "siglip2 blip",
    "feature-extraction": """
        dinov3_vit vitdet siglip_vision_model clip_text_model t5gemma2_encoder patchtst sam_vision_model
    """,
}
"""More of them, for a sweep that takes hours (`--more`)."""


@final
@dataclasses.dataclass(frozen=True)
class Architecture:
    """One case: a model type for a task."""

    kind: str
    """transformers' `model_type`."""
    task: str
    fields: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    """None: made small. Else as large as it is: transformers' own configuration with these fields."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.task}/{self.kind}"

    @property
    def form(self) -> str:
        """How burnish makes graphs of the task."""
        return TASKS[self.task].form


def architectures(*, more: bool = False) -> Iterator[Architecture]:
    """All of the table, in its order; then, asked for `more`, the others."""
    for task, kinds in (*_TABLE.items(), *(_MORE.items() if more else ())):
        for kind in kinds.split():
            yield Architecture(kind, task)


def build(case: Architecture) -> tuple[Any, tuple[str, ...]]:
    """A model with random weights, the same every time, in eval mode; and what to know about it.

    Raises:
        ValueError, TypeError …: transformers refuses the configuration.
        ImportError: the architecture needs a package that is not installed.
    """
    loader = loader_of(TASKS[case.task], {"model_type": case.kind})
    torch.manual_seed(0)
    with quiet():
        config = configure(case)
        config.architectures = config.architectures or []  # None breaks classes with two heads (deit, levit)
        model = loader.from_config(config).eval()
    decodes = case.form in ("decoder", "encoder-decoder") and hasattr(model, "generate")
    text = case.form == "decoder" or case.task == "text2text-generation"
    start = None if case.form == "decoder" else 0
    # At its real size decoding is neither judged nor quick.
    note = enliven(model, decodes=decodes and text and case.fields is None, start=start)
    return model, (note,) if note else ()


def configure(case: Architecture) -> Any:
    """The configuration that a case is built from.

    Raises:
        KeyError: transformers has no such model type.
        ValueError, TypeError …: it refuses the fields.
    """
    kind = need("transformers").CONFIG_MAPPING[case.kind]
    if case.fields is not None:
        return kind(**case.fields)
    return small(kind, dict(OVERRIDES.get(case.kind, {})))


def save(case: Architecture, folder: Path) -> tuple[str, ...]:
    """Write the model as a folder that `from_pretrained` reads; returns what to know about it."""
    model, notes = build(case)
    with quiet():
        model.save_pretrained(folder)
    return notes


def read(case: Architecture, folder: Path) -> Any:
    """The model as anybody reads it: what is computed and not stored (sinusoids) is as it should be."""
    loader = loader_of(TASKS[case.task], {"model_type": case.kind})
    with quiet():
        return loader.from_pretrained(folder, local_files_only=True).eval()
