"""The beginning of a text as tokens in memory: what is read once needs no files."""

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.config.base import canonical
from segpt.errors import DataError
from segpt.values import Text, Tokenizer

from .text import document_digest
from .tokenizer import load
from .tokens import HeldTokens

REACH: Final = 16  # bytes that a document is read to for each token that is still missing


def hold_tokens(
    text: Text,
    tokenizer: Tokenizer,
    split: str,
    most: int,
    report: Callable[[int], None] = lambda _: None,
) -> HeldTokens:
    """Tokenize the first documents of a text, each after a start id, until ``most`` ids are there.

    Of a document that is much longer than what is missing, the beginning is read, in whole lines
    where it has any. Names and digests are of the whole documents.

    Args:
        text: the documents.
        tokenizer: what to tokenize with.
        split: what the tokens are called.
        most: ids after which no other document is begun.
        report: called after each document with the bytes that were tokenized so far.

    Raises:
        DataError: if the text is empty or the tokenizer cannot spell it.
    """
    codec = load(tokenizer)
    parts: list[NDArray[np.uint32]] = []
    hashes: list[int] = []
    size = count = 0
    digest = hashlib.sha256()
    for document in text:
        whole = document_digest(document)
        digest.update(whole)
        hashes.append(int.from_bytes(whole[:8], "big"))
        begun = _beginning(document, REACH * (most - count))
        parts.append(np.concatenate([np.array([codec.start], np.uint32), codec.encode(begun)]))
        size, count = size + len(begun), count + len(parts[-1])
        report(size)
        if count >= most:
            break
    if not hashes:
        raise DataError(f"{text.name}: no documents; give a text that is not empty")
    held = np.concatenate(parts).astype(np.uint32)
    if held.max() >= tokenizer.vocab:
        raise DataError(f"the tokenizer made id {held.max()} of a vocabulary of {tokenizer.vocab}")
    named = hashlib.sha256(canonical({"tokenizer": tokenizer.fingerprint, "split": split}))
    named.update(held.astype("<u4").tobytes())
    return HeldTokens(
        tokenizer=tokenizer,
        split=split,
        count=count,
        bytes=size,
        documents=np.unique(np.array(hashes, np.uint64)),
        shards=(),
        digest=named.hexdigest(),
        text=text.name,
        text_digest=digest.hexdigest(),
        held=held,
    )


def _beginning(document: bytes, most: int) -> bytes:
    """A document up to the last line that ends within ``most`` bytes, or the last character."""
    if len(document) <= most:
        return document
    end = document.rfind(b"\n", 0, most) + 1
    if not end:
        end = most
        while end and document[end] & 0xC0 == 0x80:  # inside a character of UTF-8
            end -= 1
    return document[:end] or document
