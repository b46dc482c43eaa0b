"""Whatever happens to the bytes of tokens and tokenizers, the answer is right or a DataError."""

import contextlib
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import zstandard

from segpt.data import modelproto
from segpt.data.corpus import builtin
from segpt.data.text import read_text
from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.data.tokens import ids, read_tokens, write_tokens
from segpt.errors import DataError
from segpt.values import Text, Tokenizer

SAMPLE = "The ﬁne ½ fox\n\n  said: 日本 ①② café \u2581 😀.".encode()

rounds_of_damage = pytest.mark.parametrize(
    "rounds", [150, pytest.param(1_500, marks=pytest.mark.campaign)], ids=["few", "many"]
)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """``data`` after one to four changes: a byte, a bit, a cut, an insertion or a lost tail."""
    raw = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(raw) + 1)
        match draw.randrange(6):
            case 0 | 1:
                raw[at : at + 1] = draw.randbytes(1)
            case 2:
                raw[at : at + 1] = bytes(byte ^ 1 << draw.randrange(8) for byte in raw[at : at + 1])
            case 3:
                del raw[at : at + draw.randrange(1, 9)]
            case 4:
                raw[at:at] = draw.randbytes(draw.randrange(1, 9))
            case _:
                del raw[max(at, 1) :]
    return bytes(raw)


def survivors(rounds: int, attempt: Callable[[random.Random], None]) -> int:
    survived = 0
    for seed in range(rounds):
        with contextlib.suppress(DataError):
            attempt(random.Random(seed))
            survived += 1
    return survived


@pytest.mark.slow
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["manifest.json", "train_000000.bin", "documents.bin"])
@rounds_of_damage
def test_token_directories(tmp_path: Path, rounds: int, name: str, verify: bool) -> None:
    documents = [b"one document", b"and another", b"\xff" * 40]
    text = Text("text", lambda: iter(documents))
    tokens = write_tokens(text, BYTES, tmp_path, split="train", shard_tokens=50)
    expected = ids(tokens).slice(0, tokens.count).tolist()
    original = (tmp_path / name).read_bytes()

    def attempt(draw: random.Random) -> None:
        (tmp_path / name).write_bytes(mutated(original, draw))
        found = read_tokens(tmp_path, verify=verify)
        read = ids(found).slice(0, found.count).tolist()
        assert found.digest == tokens.digest
        assert read == expected or (name.startswith("train") and not verify)

    survived = survivors(rounds, attempt)
    assert verify or name != "train_000000.bin" or survived


@cache
def trained() -> Tokenizer:
    return train_bpe(builtin("validation"), 400)


@rounds_of_damage
def test_merge_tables(rounds: int) -> None:
    """Another valid table is another tokenizer, and lossless all the same."""

    def attempt(draw: random.Random) -> None:
        vocab = draw.choice([400, 400, 400, 401, 399, 300, 70_000, 0, -5])
        codec = load.__wrapped__(Tokenizer("merges", vocab, mutated(trained().payload, draw)))
        assert codec.decode(codec.encode(SAMPLE)) == SAMPLE

    assert 0 < survivors(rounds, attempt) < rounds


@cache
def foreign(rule: str, kind: str) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to learn, ﬁne ½ words", SAMPLE.decode()] * 20),
        model_writer=written,
        model_type=kind,
        vocab_size=310,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name=rule,
        minloglevel=2,
    )
    return written.getvalue()


def encodes(data: bytes) -> None:
    codec = load.__wrapped__(Tokenizer("sentencepiece", len(modelproto.read(data).pieces), data))
    found = codec.encode(SAMPLE)
    codec.decode(found)
    codec.piece_bytes(found, found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@rounds_of_damage
def test_model_files(rounds: int, kind: str) -> None:
    data = foreign("identity", kind)
    encodes(data)
    assert survivors(rounds, lambda draw: encodes(mutated(data, draw))) < rounds


@rounds_of_damage
def test_normalisers(rounds: int) -> None:
    """The automaton that the library follows without looking cannot be led astray."""
    model = modelproto.read(foreign("nmt_nfkc", "bpe"))

    def attempt(draw: random.Random) -> None:
        table = bytearray(model.normaliser)
        for _ in range(draw.choice([1, 3, 100])):
            at = draw.randrange(len(table) if draw.random() < 0.5 else 4096)
            table[at] = draw.randrange(256)
        encodes(
            modelproto.write(
                modelproto.SentencePieceModel(**{**model.__dict__, "normaliser": bytes(table)})
            )
        )

    survived = survivors(rounds // 4, attempt)
    assert 0 < survived < rounds // 4


@pytest.mark.parametrize("suffix", COMPRESS)
@rounds_of_damage
def test_text_files(tmp_path: Path, rounds: int, suffix: str) -> None:
    data = COMPRESS[suffix](
        b"\n".join(json.dumps({"text": f"line {i}"}).encode() for i in range(9))
    )
    path = tmp_path / f"a{suffix}"

    def attempt(draw: random.Random) -> None:
        path.write_bytes(mutated(data, draw))
        assert all(isinstance(document, bytes) for document in read_text([path]))

    survivors(rounds, attempt)
