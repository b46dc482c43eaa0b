"""The byte ledger: documents as one stream of tokens, and proof of the bytes these stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpt.errors import DataError, ScoreError


class Codec(Protocol):
    """What the ledger asks of a tokenizer at work; ``segpt.data.tokenizer.load`` gives one."""

    @property
    def vocab(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def lossless(self) -> bool: ...
    def encode(self, document: bytes) -> NDArray[np.uint32]: ...
    def decode(self, ids: ArrayLike) -> bytes: ...
    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Ledger:
    """A stream of ``targets`` + 1 tokens and the bytes that it is scored by.

    Each document follows a start token. The first start is context only; later ones are targets
    that cost nats and stand for no bytes. ``bytes`` counts what ``denominator`` says: the
    ``raw`` bytes of the documents, or the pieces of a tokenizer that does not keep them all.
    """

    codec: Codec
    ids: NDArray[np.uint32]
    bytes: int
    raw: int
    documents: int

    @property
    def targets(self) -> int:
        return len(self.ids) - 1

    @property
    def denominator(self) -> Literal["bytes", "pieces"]:
        return "bytes" if self.codec.lossless else "pieces"

    def bytes_of(self, first: int, stop: int) -> int:
        """The bytes that targets ``first`` to ``stop`` stand for."""
        return _size(self.codec, self.ids[first : stop + 1])


def account(documents: Sequence[bytes], codec: Codec) -> Ledger:
    """Tokenize documents and check, for each, that its tokens stand for its bytes exactly.

    Raises:
        ScoreError: naming the first document, from 1, whose bytes the tokens do not give back or
            that the tokenizer cannot spell; or if there are no bytes at all.
    """
    start = np.array([codec.start], np.uint32)
    parts: list[NDArray[np.uint32]] = []
    total = 0
    for number, document in enumerate(documents, 1):
        try:
            ids = codec.encode(document)
        except DataError as error:
            raise ScoreError(f"document {number}: {error}") from error
        stream = np.concatenate([start, ids]).astype(np.uint32)
        size = _size(codec, stream)
        if codec.lossless and (size != len(document) or codec.decode(ids) != document):
            raise ScoreError(
                f"document {number}: its {len(document):,} bytes and the {size:,} bytes of its "
                "tokens differ, so bits per byte would be wrong; the tokenizer is damaged: "
                "prepare, train and pack again"
            )
        parts.append(stream)
        total += size
    if total == 0:
        raise ScoreError("the text has no bytes to score; give at least one document")
    return Ledger(codec, np.concatenate(parts), total, sum(map(len, documents)), len(documents))


def _size(codec: Codec, ids: NDArray[np.uint32]) -> int:
    return int(codec.piece_bytes(ids[:-1], ids[1:]).sum())
