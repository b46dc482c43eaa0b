"""The byte ledger: documents as one stream of tokens, and proof of the bytes these stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpt.errors import DataError, ScoreError


class TextCodec(Protocol):
    """What the ledger asks of a tokenizer at work; ``segpt.data.tokenizer.load`` gives one."""

    @property
    def vocab(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    def encode(self, document: bytes) -> NDArray[np.uint32]:
        """The tokens of a document, (tokens,), without a start token."""

    def decode(self, ids: ArrayLike) -> bytes:
        """The bytes that tokens (tokens,) stand for."""

    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
        """How many bytes each of ``ids`` stands for after ``previous``; all are (tokens,)."""


Denominator = Literal["bytes", "pieces", "sidecar"]


@dataclass(frozen=True)
class EncodedText:
    """A stream of ``targets`` + 1 tokens and the bytes that it is scored by.

    Each document follows a start token. The first start is context only; later ones are targets
    that cost nats and stand for no bytes.

    Attributes:
        ids: the tokens, (targets + 1,).
        sizes: the bytes that each target stands for, (targets,).
        starts: which tokens start documents, in order, the first of them 0.
        raw: the bytes of the documents, or 0 if they are not known.
        denominator: what ``sizes`` counts: the raw ``bytes`` of the documents, or the ``pieces``
            of a tokenizer that does not keep them all, or what a ``sidecar`` file says.
    """

    ids: NDArray[np.uint32]
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    raw: int
    denominator: Denominator

    @property
    def targets(self) -> int:
        return len(self.ids) - 1

    @property
    def bytes(self) -> int:
        return int(self.sizes.sum())

    @property
    def documents(self) -> int:
        return len(self.starts)

    @property
    def borders(self) -> NDArray[np.int64]:
        """The targets that are starts of documents, (documents - 1,)."""
        return self.starts[1:] - 1

    def by_document(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums of a value (targets,) over each document and the start after it, (documents,)."""
        return np.add.reduceat(np.append(values, 0), self.starts)


def account(documents: Sequence[bytes], codec: TextCodec) -> EncodedText:
    """Tokenize documents and check, for each, that its tokens stand for its bytes exactly.

    Raises:
        ScoreError: naming the first document, from 1, whose bytes the tokens do not give back or
            that the tokenizer cannot spell; or if there are no bytes at all.
    """
    start = np.array([codec.start], np.uint32)
    parts: list[NDArray[np.uint32]] = []
    for number, document in enumerate(documents, 1):
        try:
            ids = codec.encode(document)
        except DataError as error:
            raise ScoreError(f"document {number}: {error}") from error
        stream = np.concatenate([start, ids]).astype(np.uint32)
        if codec.exact:
            size = int(codec.piece_bytes(stream[:-1], stream[1:]).sum())
            spelled = codec.decode(ids)  # may begin with a space that does not count
            if size != len(document) or spelled[len(spelled) - size :] != document:
                raise ScoreError(
                    f"document {number}: its {len(document):,} bytes and the {size:,} bytes of "
                    "its tokens differ, so bits per byte would be wrong; the tokenizer is "
                    "damaged: prepare, train and pack again"
                )
        parts.append(stream)
    ends = np.cumsum([len(part) for part in parts])
    ids = np.concatenate([np.empty(0, np.uint32), *parts])
    sizes = codec.piece_bytes(ids[:-1], ids[1:]).astype(np.int64)
    if not sizes.sum():
        raise ScoreError("the text has no bytes to score; give at least one document")
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    raw = sum(map(len, documents))
    return EncodedText(ids, sizes, starts, raw, "bytes" if codec.exact else "pieces")
