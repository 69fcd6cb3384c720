"""The acceptance run: decoding by graphs, the report, and (with the kit) the real models."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

from burnish.artifact import Artifact  # noqa: E402
from burnish.benchmarks import kit  # noqa: E402
from burnish.benchmarks.acceptance import report, smollm2, whisper  # noqa: E402
from burnish.benchmarks.acceptance.__main__ import main  # noqa: E402
from burnish.benchmarks.acceptance.steps import LanguageModel, losses  # noqa: E402
from burnish.exporter.quiet import quiet  # noqa: E402
from burnish.manifest import DimRange  # noqa: E402
from burnish.model import signature  # noqa: E402
from burnish.testing import parse  # noqa: E402

# The next token is the sum of all tokens so far, modulo 7: wrong at once where the cache is.
COUNTER = """
    g (int64[batch, sequence] input_ids, int64[batch, past_and_now] attention_mask,
       float[batch, 1, past_sequence, 1] past)
        => (float[batch, 1, 7] logits, float[batch, 1, total, 1] present)
    {
        now = Cast <to = 1> (input_ids)
        axes = Constant <value_ints = [1, 3]> ()
        wide = Unsqueeze (now, axes)
        present = Concat <axis = 2> (past, wide)
        inner = Constant <value_ints = [1, 2, 3]> ()
        sum = ReduceSum <keepdims = 0> (present, inner)
        last = Constant <value_ints = [1]> ()
        whole = Cast <to = 7> (sum)
        seven = Constant <value_int = 7> ()
        next = Mod (whole, seven)
        column = Unsqueeze (next, last)
        seven1 = Constant <value_ints = [7]> ()
        values = Constant <value_floats = [0.0, 5.0]> ()
        logits = OneHot (column, seven1, values)
    }
"""


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    model = parse(COUNTER)
    model.graph.inputs[2].name, model.graph.outputs[1].name = "past_key_values.0.key", "present.0.key"
    made = signature(model)
    dims = made.dims | {"past_sequence": DimRange(0, None)}
    Artifact.create(model, msgspec.structs.replace(made, dims=dims)).save(tmp_path / "counter")
    return tmp_path / "counter"


def test_greedy_decoding_uses_the_cache(counter: Path) -> None:
    found = LanguageModel(counter).greedy(np.array([3, 5, 2]), 6)
    tokens = [3, 5, 2]
    for _ in range(6):
        tokens.append(sum(tokens) % 7)
    assert found == tokens[3:]


def test_reading_gives_what_follows_each_token(counter: Path) -> None:
    tokens = np.array([[3, 5, 2, 6], [1, 1, 1, 1]])
    told: list[int] = []
    steps = list(LanguageModel(counter).logits(tokens, lambda _what, done, _total: told.append(done)))
    assert [step.argmax(-1).tolist() for step in steps] == [[3, 1], [1, 2], [3, 3]]
    assert told == [1, 2, 3]


def test_losses_are_cross_entropy() -> None:
    import torch

    logits = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32) * 30
    targets = np.array([0, 3, 8, 3, 1])
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none"
    )
    np.testing.assert_allclose(losses(logits, targets), wanted.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("said", "heard", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b", "a x b y", 2), ("a b c", "", 3), ("", "a", 1)],
)
def test_word_errors(said: str, heard: str, errors: int) -> None:
    assert whisper.word_errors(said.split(), heard.split()) == errors


def test_words_are_compared_without_case_and_marks() -> None:
    assert whisper.words("Unless -- to be cold-hearted, isn't it?") == [
        "unless", "to", "be", "cold", "hearted", "isn't", "it",
    ]  # fmt: skip


def facts(same: int = 64, perplexity: float = 17.0) -> smollm2.Facts:
    answers = (smollm2.Answer("Hello?", same, 64, "Hi.\nThere"),)
    texts = (smollm2.Text("a tale", 17.0, perplexity),)
    return smollm2.Facts("keep", answers, texts, 98.4, {"export": 2e-5}, ("kept: Q4_1 (210)",))


def heard(graph: str) -> whisper.Facts:
    return whisper.Facts((whisper.Clip("clip-0870", "a b c", "A b c.", graph, False, 1, 3),))


def test_what_holds() -> None:
    assert facts().holds
    assert not facts(same=63).holds
    assert not facts(perplexity=17.02).holds
    assert heard("A b c.").holds
    assert not heard("A b d.").holds
    assert not report.Report([facts(same=1)], heard("A b c."), {}).holds
    assert report.Report(None, heard("A b c."), {}).holds


def test_report_is_written(tmp_path: Path) -> None:
    report.write(report.Report([facts()], heard("A b c."), {"stage": 1.5}), tmp_path / "new")
    text = (tmp_path / "new" / "decode.md").read_text()
    assert "| keep | 98 | export 2.0e-05 | 64/64 | 17.0000 (0.0000% off) |" in text
    assert "| 0870 | A b c. | yes | no | 1/3 |" in text
    assert "- *Hello?* Hi. There" in text
    found = msgspec.json.decode((tmp_path / "new" / "decode.json").read_bytes())
    assert found["holds"] is True
    assert found["found"]["seconds"] == {"stage": 1.5}


def need(*names: str) -> None:
    try:
        for name in names:
            kit.fetch(name)
    except kit.KitError as error:
        pytest.skip(error.what)


@pytest.mark.kit
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whisper_hears_what_pytorch_hears(tmp_path: Path) -> None:
    need("whisper-tiny-en", "librivox")
    done = CliRunner().invoke(
        main, ["--only", "whisper", "--output", str(tmp_path), "--results", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "4 of 71 words wrong" in (tmp_path / "decode.md").read_text()


@pytest.mark.kit
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_smollm2_writes_what_pytorch_writes(tmp_path: Path) -> None:
    need("smollm2", "vader", "reuters-r8")
    done = CliRunner().invoke(
        main, ["--only", "smollm2", "--output", str(tmp_path), "--results", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    found = msgspec.json.decode((tmp_path / "decode.json").read_bytes())["found"]["smollm2"]
    assert [each["weights"] for each in found] == ["float", "keep"]
    assert math.isclose(found[0]["texts"][0]["torch"], 17.9, rel_tol=0.05)
    assert found[1]["megabytes"] < found[0]["megabytes"] / 3


@pytest.mark.kit
@pytest.mark.slow
def test_tokenizer_of_smollm2(tmp_path: Path) -> None:
    """As transformers converts it, where it knows how; digits one by one, as SmolLM2 was trained."""
    need("smollm2", "vader")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    own = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    from burnish.exporter.gguf import load_gguf

    path = smollm2.source()
    for name, data in load_gguf(path).attachments.items():
        (tmp_path / name).write_bytes(data)
    with quiet():
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
        architecture, parts, config = own.get_gguf_tokenizer(str(path))
        backend, _ = own.convert_gguf_tokenizer(architecture, parts)
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **config)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    split = tokenizers.pre_tokenizers
    backend.pre_tokenizer = split.Sequence([split.Digits(individual_digits=True), split.ByteLevel(False)])
    rows = (kit.fetch("vader") / "nytEditorialSnippets_GroundTruth.txt").read_text("latin-1").splitlines()
    lines = [row.split("\t")[2] for row in rows[:600]] + ["<|im_start|>user\nIn 1984<|im_end|>", "  a\t\n"]
    digits = 0
    for line in lines:
        ids = plain.encode(line).ids
        assert ids == auto(line)["input_ids"] == backend.encode(line).ids, line
        digits += any(letter.isdigit() for letter in line)
        assert auto.decode(ids) == line
    assert digits > 20
    chat = [{"role": "user", "content": "Hello, 1984!"}]
    rendered = auto.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>assistant\n")
    assert auto.special_tokens_map == theirs.special_tokens_map
