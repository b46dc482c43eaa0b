"""Bytes are those of the documents, exactly, or there is no score."""

import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from segpt.data.tokenizer import BYTES, load, train_bpe
from segpt.errors import DataError, ScoreError
from segpt.eval.ledger import account

ALPHABETS = (
    "abc  ",
    "e\u0301\u00e9\u0323\u0307n\u0303",
    "漢字かな한",
    "🙂👩‍🚀🏳️‍🌈",
    "\x00\x01\x7f\x85\ufeff\u2028",
    "\r\n\t ",
    " \u2581\u00a0",
    "0123456789½ﬁ",
)


def documents(count: int, seed: int) -> list[bytes]:
    """Random Unicode: combining marks, emoji, controls, spaces in front, nothing at all."""
    choose = random.Random(seed)
    return [
        "".join(
            choose.choice(choose.choice(ALPHABETS)) for _ in range(choose.randrange(12))
        ).encode()
        for _ in range(count)
    ]


@pytest.mark.parametrize("kind", ["bytes", "merges"])
def test_bytes_of_tokens_are_bytes_of_documents(kind: str) -> None:
    training = [d.decode() * 3 for d in documents(300, 1)]
    tokenizer = BYTES if kind == "bytes" else train_bpe([t.encode() for t in training], 330)
    codec = load(tokenizer)
    texts = [*documents(3_000, 2), b"\xff\xfe no text \x80", b"\xed\xa0\x80"]
    ledger = account(texts, codec)
    assert ledger.denominator == "bytes"
    assert ledger.bytes == ledger.raw == sum(map(len, texts))
    assert ledger.documents == len(texts)
    borders = np.flatnonzero(ledger.ids == codec.start)
    assert len(borders) == len(texts)
    assert borders[0] == 0
    for begin, end, text in zip(borders, [*borders[1:], len(ledger.ids)], texts, strict=True):
        assert codec.decode(ledger.ids[begin + 1 : end]) == text
        assert ledger.sizes[begin : end - 1].sum() == len(text)


class Altered:
    """The byte tokenizer, but for what ``changes`` puts in place of its own attributes."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return self._changes[name] if name in self._changes else getattr(load(BYTES), name)


def stripped(document: bytes) -> NDArray[np.uint32]:
    return load(BYTES).encode(document.strip())


def upper(ids: ArrayLike) -> bytes:
    return load(BYTES).decode(ids).upper()


def heavy_space(previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
    """The classic: a space counted as the three bytes of the sign that stands for it."""
    ids = np.asarray(ids)
    return load(BYTES).piece_bytes(previous, ids) + 2 * (ids == ord(" "))


@pytest.mark.parametrize(
    "changes", [{"encode": stripped}, {"decode": upper}, {"piece_bytes": heavy_space}]
)
def test_a_wrong_count_names_the_document(changes: dict[str, Any]) -> None:
    codec = Altered(**changes)
    assert account([b"A", b"BC"], codec).bytes == 3
    with pytest.raises(ScoreError, match=r"document 2: .* tokens differ, .*: prepare, train"):
        account([b"A", b"b c "], codec)


def test_a_document_that_cannot_be_spelled_is_named() -> None:
    """An unknown token would stand for no bytes and hide text."""

    def refuse(document: bytes) -> NDArray[np.uint32]:
        if b"?" in document:
            raise DataError("this tokenizer has no piece for '?'")
        return load(BYTES).encode(document)

    with pytest.raises(ScoreError, match=r"document 3: this tokenizer has no piece for '\?'"):
        account([b"a", b"b", b"c?"], Altered(encode=refuse))


def test_a_tokenizer_that_loses_text_is_counted_by_its_pieces() -> None:
    ledger = account([b" a ", b"bc"], Altered(encode=stripped, exact=False))
    assert (ledger.denominator, ledger.bytes, ledger.raw) == ("pieces", 3, 5)


def test_a_tokenizer_that_refuses_what_it_would_lose_counts_bytes() -> None:
    """Not lossless, as it cannot spell all text; exact about what it spells."""

    def prefixed(ids: ArrayLike) -> bytes:
        return b" " + load(BYTES).decode(ids)

    ledger = account([b"a b", b"c"], Altered(decode=prefixed, lossless=False))
    assert (ledger.denominator, ledger.bytes, ledger.raw) == ("bytes", 4, 4)


@pytest.mark.parametrize("texts", [[], [b""], [b"", b""]])
def test_no_bytes_are_no_score(texts: list[bytes]) -> None:
    with pytest.raises(ScoreError, match="no bytes to score"):
        account(texts, load(BYTES))
