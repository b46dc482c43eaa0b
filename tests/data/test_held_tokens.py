"""The beginning of a text as tokens in memory."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from segpt.data.held_tokens import REACH, hold_tokens
from segpt.data.text import document_hash
from segpt.data.tokenizer import BYTES, load
from segpt.data.tokens import ids, overlap
from segpt.errors import DataError
from segpt.values import Text

START = load(BYTES).start


def text(documents: Sequence[bytes], read: list[bytes] | None = None) -> Text:
    def documents_read() -> Iterator[bytes]:
        for document in documents:
            if read is not None:
                read.append(document)
            yield document

    return Text("some text", documents_read)


def test_ids_are_those_of_the_documents_each_after_a_start() -> None:
    tokens = hold_tokens(text([b"ab", b"c"]), BYTES, "calibration", 100)
    expected = [START, *b"ab", START, *b"c"]
    assert ids(tokens).slice(0, len(ids(tokens))).tolist() == expected
    assert (tokens.count, tokens.bytes, tokens.split) == (5, 3, "calibration")
    assert sorted(tokens.documents.tolist()) == sorted(map(document_hash, (b"ab", b"c")))


def test_no_more_is_read_than_is_needed() -> None:
    read: list[bytes] = []
    tokens = hold_tokens(text([b"abc"] * 9, read), BYTES, "held-out", 7)
    assert len(read) == 2
    assert tokens.count == 8
    assert len(tokens.documents) == 1  # the same document twice


@pytest.mark.parametrize(
    ("document", "kept"),
    [
        (b"line\n" * 99, b"line\n" * (4 * REACH // 5)),
        ("\u20ac".encode() * 99, "\u20ac".encode() * (4 * REACH // 3)),
        (b"\x80" * 99, b"\x80" * 99),
    ],
)
def test_a_long_document_ends_with_a_line_or_a_character(document: bytes, kept: bytes) -> None:
    tokens = hold_tokens(text([document]), BYTES, "held-out", 4)
    assert bytes(tokens.held[1:].astype(np.uint8)) == kept
    assert overlap(tokens, hold_tokens(text([document]), BYTES, "other", 9999)).size == 1


def test_digests_tell_texts_and_tokens_apart() -> None:
    first, again, other = (
        hold_tokens(text([document]), BYTES, "held-out", 9) for document in (b"a", b"a", b"b")
    )
    assert first.digest == again.digest != other.digest
    assert first.text_digest == hashlib.sha256(hashlib.sha256(b"a").digest()).hexdigest()


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(DataError, match="some text: no documents"):
        hold_tokens(text([]), BYTES, "held-out", 9)
