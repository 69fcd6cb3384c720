"""The tokenizer and chat template of a GGUF file as the files of a Hugging Face folder.

transformers converts the vocabulary; what it leaves out is put right here: the splitting of digits that
`tokenizer.ggml.pre` asks for, and the special tokens around a text, so that `tokenizer.json` alone gives the
same ids.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

from burnish.errors import ExportError, shown
from burnish.exporter.gguf_config import Metadata
from burnish.exporter.gguf_header import Header, bad
from burnish.exporter.needs import need
from burnish.exporter.quiet import quiet

_FILES: Final = ("tokenizer.json", "tokenizer_config.json")
_SINGLE_DIGITS: Final = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
"""Values of `tokenizer.ggml.pre` for which llama.cpp takes every digit alone, then splits as GPT-2 does.

Source: llama.cpp, src/llama-vocab.cpp, the regular expressions of LLAMA_VOCAB_PRE_TYPE_SMOLLM.
"""
_GPT2: Final = frozenset({"", "default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"})
_ENDS: Final = frozenset({"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>"})
"""Control tokens that end a turn of a chat or a text; of the list in llama.cpp's llama-vocab.cpp."""
_CONTROL: Final = 3
_KINDS: Final = range(7)
_ID_KEYS: Final = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip


def tokenizer_files(header: Header, architecture: str) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """tokenizer.json and tokenizer_config.json (with the chat template) of a file, and notes on them.

    Returns no files, and a note that says why, where the file has no vocabulary.

    Raises:
        ExportError: GGUF_TOKENIZER: of an unknown kind, or its parts contradict each other.
    """
    metadata = Metadata(header, "tokenizer")
    model = metadata.text("tokenizer.ggml.model")
    if model in ("", "none", "no_vocab"):
        return {}, ("no tokenizer: the file has none",)
    parts = _parts(header)
    _check(header, parts)
    notes: list[str] = []
    try:
        with quiet():
            backend = _backend(architecture, parts, notes)
            return _written(header, backend, parts), tuple(notes)
    except ExportError:
        raise
    except Exception as error:
        raise _bad(header, f"cannot be converted ({type(error).__name__}: {error})") from error


def ends_of_text(header: Header, eos: int | None) -> list[int]:
    """Ids of the tokens that end a text or a turn, the file's own end of text first."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    kinds = header.metadata.get("tokenizer.ggml.token_type")
    found = [] if eos is None else [eos]
    for key in ("eot", "eom"):
        stated = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(stated, int) and isinstance(tokens, list) and 0 <= stated < len(tokens):
            found.append(stated)
    if isinstance(tokens, list) and isinstance(kinds, list):
        pairs = enumerate(zip(tokens, kinds, strict=False))
        found += [index for index, (token, kind) in pairs if kind == _CONTROL and token in _ENDS]
    return list(dict.fromkeys(found))


def _parts(header: Header) -> dict[str, Any]:
    """The metadata that transformers' converter takes, under its names."""
    mapping: Any = need("transformers.integrations.gguf.gguf_tokenizer_mapping")
    names = mapping.GGUF_TOKENIZER_MAPPING["tokenizer"]
    found = {}
    for stored, name in names.items():
        value = header.metadata.get(f"tokenizer.{stored}")
        if value is not None:
            found[name] = value
    return found


def _check(header: Header, parts: dict[str, Any]) -> None:
    tokens = parts.get("tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise _bad(header, "has no vocabulary")
    for name, what in (("token_type", int), ("scores", float)):
        found = parts.get(name)
        if found is None:
            continue
        if not isinstance(found, list) or len(found) != len(tokens) or not isinstance(found[0], what):
            raise _bad(header, f"has a {name} that does not fit its {len(tokens)} tokens")
    if not {*(parts.get("token_type") or ())} <= {*_KINDS}:
        raise _bad(header, "has a token of an unknown type")
    if parts["tokenizer_type"] == "llama" and "merges" not in parts and "scores" not in parts:
        raise _bad(header, "has neither merges nor scores")
    _check_merges(header, parts)
    for key in _ID_KEYS.values():
        stated = header.metadata.get(f"tokenizer.ggml.{key}", 0)
        if isinstance(stated, bool) or not isinstance(stated, int) or not 0 <= stated < len(tokens):
            raise _bad(header, f"has {shown(stated, 40)} as its {key}")


def _check_merges(header: Header, parts: dict[str, Any]) -> None:
    merges = parts.get("merges")
    if parts["tokenizer_type"] == "gpt2" and merges is None:
        raise _bad(header, "has no merges")
    for merge in merges or ():
        if not isinstance(merge, str) or merge.count(" ") != 1:
            raise _bad(header, f"has the merge {shown(merge, 40)!r}, which is not two parts")


def _backend(architecture: str, parts: dict[str, Any], notes: list[str]) -> Any:
    """The tokenizer of the `tokenizers` library."""
    mapping: Any = need("transformers.integrations.gguf.gguf_tokenizer_mapping")
    tokenizers: Any = need("tokenizers")
    backend, _ = mapping.convert_gguf_tokenizer(architecture, parts)
    pre = str(parts.get("pre_tokenizer_type", ""))
    if parts["tokenizer_type"] != "gpt2" or pre in mapping.GGUF_PRE_TOKENIZER_SPLITS or pre in _GPT2:
        return backend
    if pre in _SINGLE_DIGITS:
        split = tokenizers.pre_tokenizers
        backend.pre_tokenizer = split.Sequence(
            [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
        )
        return backend
    notes.append(f"tokenizer: the way {shown(pre, 40)!r} splits text is not known; it is split as GPT-2 does")
    return backend


def _written(header: Header, backend: Any, parts: dict[str, Any]) -> dict[str, bytes]:
    transformers: Any = need("transformers")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **_options(header, parts)
        )
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        return {name: (Path(folder) / name).read_bytes() for name in _FILES}


def _options(header: Header, parts: dict[str, Any]) -> dict[str, Any]:
    """Special tokens, what goes around a text, and the chat template."""
    metadata = Metadata(header, "tokenizer")
    tokens = parts["tokens"]
    found: dict[str, Any] = {}
    for name, key in _ID_KEYS.items():
        stated = header.metadata.get(f"tokenizer.ggml.{key}")
        found[name] = tokens[stated] if isinstance(stated, int) else None
    sentencepiece = parts["tokenizer_type"] == "llama"  # llama.cpp adds BOS there unless told otherwise
    for name, default in (("bos", sentencepiece), ("eos", False)):
        stated = header.metadata.get(f"tokenizer.ggml.add_{name}_token", default)
        found[f"add_{name}_token"] = bool(stated) and found[f"{name}_token"] is not None
    template = metadata.text("tokenizer.chat_template")
    if template:
        found["chat_template"] = template
    length = header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length")
    if isinstance(length, int):
        found["model_max_length"] = length
    return found


def _bad(header: Header, why: str) -> ExportError:
    return bad(
        f"The tokenizer of {header.name} {why}.",
        "Convert the model again with a current llama.cpp, or export its Hugging Face folder.",
        "GGUF_TOKENIZER",
    )
