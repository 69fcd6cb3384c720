"""The tokenizer of a GGUF file: the attached files against transformers' own conversion."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.errors import ExportError

pytestmark = pytest.mark.torch
pytest.importorskip("torch")
pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from burnish.exporter.gguf import load_gguf  # noqa: E402
from burnish.exporter.quiet import quiet  # noqa: E402

MakeGguf = Callable[..., tuple[Path, Any]]

TEXTS = [
    "the cat in the hat", "  leading and   inner  spaces", "", "The END.\n\nAnother\tline\r\n",
    "naïve café 日本語 🙂",
    "<|im_start|>user\nhi<|im_end|>", "a <think>deep</think> thought", "isn't it? I'll say: \"no\"",
    "x" * 300,
    "</s><s>[INST] the [/INST]", "<0x41> is A", "▁ under ▁the",
]  # fmt: skip
NUMBERS = ["in 1984 there were 12,345.67", "198 1 19 00"]


def files_of(path: Path, folder: Path) -> Path:
    folder.mkdir()
    for name, data in load_gguf(path).attachments.items():
        (folder / name).write_bytes(data)
    return folder


def both(folder: Path) -> tuple[Any, Any]:
    """The attached files as each library loads them."""
    with quiet():
        auto = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizers = pytest.importorskip("tokenizers")
    return auto, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def theirs(path: Path) -> Any:
    """transformers' own conversion of the file."""
    own = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    with quiet():
        architecture, parts, config = own.get_gguf_tokenizer(str(path))
        backend, _ = own.convert_gguf_tokenizer(architecture, parts)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **config)


@pytest.mark.parametrize(
    ("arch", "vocabulary"),
    [("llama", "sentencepiece"), ("gemma", "sentencepiece"), ("phi3", "sentencepiece"), ("qwen2", "qwen2"),
     ("llama", "llama-bpe"), ("llama", "default"), ("llama", "smollm")],
)  # fmt: skip
def test_same_ids_as_transformers(
    make_gguf: MakeGguf, tmp_path: Path, vocabularies: Any, arch: str, vocabulary: str
) -> None:
    path, _ = make_gguf(arch, tokenizer=vocabularies(vocabulary), config={"vocab_size": 362})
    auto, plain = both(files_of(path, tmp_path / "out"))
    own = theirs(path)
    for line in TEXTS if vocabulary == "smollm" else TEXTS + NUMBERS:
        ids = own(line)["input_ids"]
        assert auto(line)["input_ids"] == ids, line
        assert plain.encode(line).ids == ids, line
        assert auto.decode(ids) == own.decode(ids)
    assert auto.special_tokens_map == own.special_tokens_map
    chat = [{"role": "user", "content": "the 1984"}]
    rendered = auto.apply_chat_template(chat, tokenize=False)
    assert rendered == own.apply_chat_template(chat, tokenize=False)
    assert "the 1984" in rendered


def test_smollm_takes_digits_one_by_one(make_gguf: MakeGguf, tmp_path: Path) -> None:
    """llama.cpp does so for this `pre`; transformers 5.23 does not know it, and merges them."""
    path, _ = make_gguf("llama")
    auto, plain = both(files_of(path, tmp_path / "out"))
    assert plain.encode("in 1984").tokens == ["in", "Ġ", "1", "9", "8", "4"]
    assert auto("in 1984")["input_ids"] == plain.encode("in 1984").ids
    assert "198" in theirs(path).tokenize("in 1984"), "transformers has learnt it: drop _SINGLE_DIGITS"


def test_unknown_way_to_split_is_noted(make_gguf: MakeGguf, vocabularies: Any) -> None:
    path, _ = make_gguf("llama", tokenizer=vocabularies("whale-bpe"))
    assert any("'whale-bpe'" in note for note in load_gguf(path).notes)


def test_bos_and_eos_are_in_the_file_itself(make_gguf: MakeGguf, tmp_path: Path, vocabularies: Any) -> None:
    vocabulary = vocabularies("default") | {"ggml.add_bos_token": True, "ggml.add_eos_token": True}
    path, _ = make_gguf("llama", tokenizer=vocabulary)
    auto, plain = both(files_of(path, tmp_path / "out"))
    assert plain.encode("the").tokens == ["<|im_start|>", "the", "<|im_end|>"]
    assert auto("the")["input_ids"] == plain.encode("the").ids
    assert plain.encode("the", add_special_tokens=False).tokens == ["the"]


def test_context_and_template_are_attached(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama")
    config = json.loads(load_gguf(path).attachments["tokenizer_config.json"])
    assert config["model_max_length"] == 128
    assert "<|im_start|>" in config["chat_template"]


def test_file_without_a_vocabulary(make_gguf: MakeGguf) -> None:
    path, _ = make_gguf("llama", tokenizer={"ggml.model": "no_vocab"})
    loaded = load_gguf(path)
    assert {*loaded.attachments} == {"config.json", "generation_config.json"}
    assert "no tokenizer: the file has none" in loaded.notes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ggml.model": "whale"}, "cannot be converted"),
        ({"ggml.tokens": None}, "has no vocabulary"),
        ({"ggml.merges": None}, "has no merges"),
        ({"ggml.merges": ["t h", "the"]}, "'the', which is not two parts"),
        ({"ggml.merges": ["t q"]}, "cannot be converted"),
        ({"ggml.token_type": [1, 2]}, "token_type that does not fit its 269 tokens"),
        ({"ggml.unknown_token_id": 5000}, "5000 as its unknown_token_id"),
    ],
)
def test_vocabularies_that_cannot_be_used(
    make_gguf: MakeGguf, vocabularies: Any, changes: dict[str, Any], said: str
) -> None:
    parts = copy.deepcopy(vocabularies("smollm")) | changes
    path, _ = make_gguf("llama", tokenizer={key: value for key, value in parts.items() if value is not None})
    with pytest.raises(ExportError) as caught:
        load_gguf(path)
    assert caught.value.code == "GGUF_TOKENIZER"
    assert said in str(caught.value)
