"""The architectures of the table: which, for which task, made small with random weights, as folders.

Each is what `transformers` itself builds from the small configuration; a folder is what a user has: config.json
and model.safetensors.
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

_ZOO: Final[Mapping[str, str]] = {
    "text-generation": """
        llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neo gpt_neox gptj gpt_bigcode codegen
        opt bloom falcon mpt stablelm starcoder2 olmo olmo2 olmo3 cohere cohere2 granite glm glm4 exaone4 ernie4_5
        smollm3 nemotron persimmon helium biogpt xglm arcee apertus bitnet seed_oss ministral3 diffllama minicpm3
        mixtral qwen2_moe qwen3_moe granitemoe olmoe phimoe gpt_oss deepseek_v2 deepseek_v3 jetmoe ernie4_5_moe
        mamba mamba2 falcon_mamba jamba bamba zamba2 lfm2 qwen3_next recurrent_gemma falcon_h1 granitemoehybrid
        nemotron_h rwkv xlstm minimax modernbert-decoder
    """,
    "text2text-generation": """
        t5 mt5 umt5 longt5 switch_transformers bart mbart pegasus pegasus_x marian m2m_100 blenderbot
        blenderbot-small led bigbird_pegasus mvp plbart prophetnet t5gemma fsmt nllb-moe
    """,
    "automatic-speech-recognition": """
        whisper speech_to_text moonshine wav2vec2 hubert wavlm data2vec-audio sew unispeech wav2vec2-conformer
        wav2vec2-bert parakeet_ctc
    """,
    "fill-mask": """
        bert roberta albert distilbert deberta deberta-v2 mpnet mobilebert camembert convbert ernie esm flaubert fnet
        funnel ibert longformer big_bird megatron-bert modernbert eurobert nystromformer rembert roformer roc_bert
        squeezebert xlm xlm-roberta-xl xmod yoso nomic_bert data2vec-text layoutlm perceiver
    """,
    "text-classification": "xlnet canine roberta-prelayernorm gpt-sw3 openai-gpt tapas",
    "token-classification": "electra bros lilt",
    "question-answering": "splinter markuplm lxmert luke",
    "image-classification": """
        vit deit beit convnext convnextv2 cvt dinov2 dinov2_with_registers efficientnet focalnet hiera levit
        mobilenet_v1 mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet swiftformer swin swinv2 bit imagegpt
        textnet hgnet_v2 data2vec-vision vit_msn ijepa
    """,
    "object-detection": "yolos detr conditional_detr deformable_detr table-transformer rt_detr d_fine rf_detr",
    "semantic-segmentation": "segformer mobilenet_v2 dpt upernet maskformer mask2former eomt",
    "zero-shot-image-classification": "clip siglip siglip2 altclip chinese_clip align clipseg blip",
    "audio-classification": "audio-spectrogram-transformer sew-d unispeech-sat",
    "sentence-embedding": "xlm-roberta",
    "feature-extraction": """
        vilt visual_bert flava clap groupvit owlvit dpr vit_mae dinov3_vit vitdet siglip_vision_model
        clip_text_model t5gemma2_encoder patchtst sam_vision_model
    """,
}  # fmt: skip
"""Model types by task. Each architecture stands once."""


@final
@dataclasses.dataclass(frozen=True)
class Architecture:
    """One case: a model type for a task."""

    kind: str
    """transformers' `model_type`."""
    task: str

    @property
    def name(self) -> str:
        return f"{self.task}/{self.kind}"

    @property
    def form(self) -> str:
        return TASKS[self.task].form


def architectures() -> Iterator[Architecture]:
    """All of the table, in its order."""
    for task, kinds in _ZOO.items():
        for kind in kinds.split():
            yield Architecture(kind, task)


def build(case: Architecture) -> tuple[Any, tuple[str, ...]]:
    """A small model with random weights, the same every time, in eval mode; and what to know about it.

    Raises:
        ValueError, TypeError …: transformers refuses the small configuration.
        ImportError: the architecture needs a package that is not installed.
    """
    transformers = need("transformers")
    given: dict[str, Any] = dict(OVERRIDES.get(case.kind, {}))
    loader = loader_of(TASKS[case.task], {"model_type": case.kind})
    torch.manual_seed(0)
    with quiet():
        config = small(transformers.CONFIG_MAPPING[case.kind], given)
        model = loader.from_config(config).eval()
    decodes = case.form in ("decoder", "encoder-decoder") and hasattr(model, "generate")
    text = case.form == "decoder" or case.task == "text2text-generation"
    start = None if case.form == "decoder" else 0
    note = enliven(model, decodes=decodes and text, start=start)
    return model, (note,) if note else ()


def save(case: Architecture, folder: Path) -> tuple[str, ...]:
    """Write the model as a folder that `from_pretrained` reads; returns what to know about it."""
    model, notes = build(case)
    with quiet():
        model.save_pretrained(folder)
    return notes
