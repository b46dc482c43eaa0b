"""Exported tokenizers have the same ids in Hugging Face's own code, in a fresh process."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from segpt.data.bpe import huggingface
from segpt.data.bpe.as_tokenizer import from_bpe
from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.data.tokenizer_facts import facts, measure
from segpt.errors import DataError
from segpt.stages.foreign_tokenizers import convert_tokenizer, export_tokenizer
from segpt.values import Tokenizer
from tests.data.foreign_bpe import BYTE_LEVEL, FALLBACK, documents, library, texts
from tests.data.test_foreign_models import made as model_file

pytestmark = pytest.mark.slow

READ = """
import json, sys
from transformers import AutoTokenizer
folders, texts = json.load(sys.stdin)
answer = []
for folder in folders:
    t = AutoTokenizer.from_pretrained(folder)
    ids = [t(text)["input_ids"] for text in texts]
    back = [t.decode(i) for i in ids]
    answer.append([ids, back, t.bos_token_id])
print("ANSWER" + json.dumps(answer))
"""


@cache
def every() -> dict[str, Tokenizer]:
    """A tokenizer of each kind that can be exported."""
    tokenizers = {
        kind: from_bpe(huggingface.read(json.loads(library(kind).to_str())))
        for kind in (*BYTE_LEVEL, *FALLBACK)
    }
    tokenizers["bytes"] = BYTES
    tokenizers["merges"] = train_bpe([text.encode() for text in texts()], 600)
    for prefix in (True, False):
        data = model_file(
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=prefix,
        )
        tokenizers[f"sentencepiece-{prefix}"] = Tokenizer("sentencepiece", 420, data)
    return tokenizers


def readable() -> list[str]:
    """Texts that Hugging Face reads as text alone: no control tokens, no byte that is no UTF-8."""
    texts = [d.decode(errors="ignore") for d in documents(250, seed=5)]
    kept = [t for t in texts if not any(sign in t for sign in ("<", "\u2581", "e\u0301"))]
    return [text for text in kept if not text.startswith(" ")]


def test_ids_and_text_are_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    tokenizers = every()
    for name, tokenizer in tokenizers.items():
        export_tokenizer(tmp_path / name, tokenizer)
    texts = readable()
    assert len(texts) > 100
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps([[str(tmp_path / name) for name in tokenizers], texts]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.split("ANSWER")[1])
    for (name, tokenizer), (ids, back, start) in zip(tokenizers.items(), answers, strict=True):
        codec = load(tokenizer)
        assert start == codec.start, name
        for text, theirs, decoded in zip(texts, ids, back, strict=True):
            try:
                own = codec.encode(text.encode()).tolist()
            except DataError:
                continue
            assert own == theirs, (name, text)
            assert decoded == text, (name, text)


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *FALLBACK])
def test_what_is_exported_is_taken_over_as_it_was(kind: str, tmp_path: Path) -> None:
    tokenizer = every()[kind]
    export_tokenizer(tmp_path / "out", tokenizer)
    assert convert_tokenizer(str(tmp_path / "out")) == tokenizer
    with pytest.raises(DataError, match="not empty"):
        export_tokenizer(tmp_path / "out", tokenizer)


def test_what_no_merges_can_say_is_refused(tmp_path: Path) -> None:
    data = model_file(model_type="unigram")
    with pytest.raises(DataError, match="is not BPE"):
        export_tokenizer(tmp_path / "out", Tokenizer("sentencepiece", 420, data))
    assert not (tmp_path / "out").exists()


def test_figures_are_those_of_the_text() -> None:
    shape, text = facts(BYTES), measure(BYTES, [b"ab cd", b"", b"\xff"])
    assert (shape.vocab, shape.start, shape.lossless, shape.longest) == (257, 256, True, 1)
    assert shape.by_length[0] == 256
    assert (text.bytes, text.tokens, text.bytes_per_token, text.canonical) == (6, 6, 1.0, 1.0)
    assert text.tokens_per_word == 2.0  # of "ab", "cd" and a byte
    tokenizer = every()["metaspace"]
    assert measure(tokenizer, [b"a b", b"\xff"]).refused == 1
