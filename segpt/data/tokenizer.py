"""Tokenizers: what they promise, how they are loaded, and how ours are learnt."""

from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpt.config.base import nearest
from segpt.errors import DataError
from segpt.values import Tokenizer

from . import merges, modelproto
from .sentencepiece import SentencePieceCodec, train, within
from .text import document_hash

BYTES: Final = Tokenizer("bytes", 257)

KINDS: Final = ("bytes", "merges", "sentencepiece", "bpe", "byte_fallback")

# Loaded by its name, as the script of a contest folder has no such tokenizer and carries no code
# that it does not run.
_FOREIGN: Final = "segpt.data.bpe.as_tokenizer"

SMALLEST: Final = merges.FIRST_MERGE + 1  # the unknown, the start, 256 bytes and the space

# The sizes that are chosen from where none is asked for. A piece that a text of this many bytes
# shows only once or twice teaches a model nothing.
VOCABULARIES: Final = (4096, 2048, 1024, 512)
BYTES_PER_PIECE: Final = 250

# Learning looks at no more than this many bytes, in parts of documents.
SAMPLE: Final = 2**25
PART: Final = 2**18


class Codec(Protocol):
    """A tokenizer at work.

    ``start`` is the id that begins each document and ``sizes`` the bytes that each id spells, 0
    for start and control ids. If ``lossless``, any bytes survive encoding and decoding, and
    ``sizes[encode(document)].sum() == len(document)``. If ``exact``, that holds of all that
    ``encode`` does not refuse, a space left out that the tokenizer puts before a text.
    """

    @property
    def vocab(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def sizes(self) -> NDArray[np.int64]: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def exact(self) -> bool: ...

    def encode(self, document: bytes) -> NDArray[np.uint32]:
        """The ids of a document, without the start.

        Raises:
            DataError: if the tokenizer cannot spell the document.
        """

    def decode(self, ids: ArrayLike) -> bytes:
        """What the ids spell."""

    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
        """The bytes that each id spells after the id before it, of the same shape.

        Differs from ``sizes[ids]`` for foreign tokenizers only, whose leading spaces do not
        count after a control id.
        """


@lru_cache(maxsize=16)
def load(tokenizer: Tokenizer) -> Codec:
    """Make a tokenizer encode and decode.

    Raises:
        DataError: if the payload is damaged, of an unknown kind or unfit for counting bytes.
    """
    match tokenizer.kind:
        case "bytes":
            if tokenizer != BYTES:
                raise DataError("a tokenizer of kind 'bytes' has a vocabulary of 257, no payload")
            return _ByteCodec()
        case "merges":
            model = merges.unpack(tokenizer.payload, tokenizer.vocab)
        case "sentencepiece":
            model = modelproto.read(tokenizer.payload)
        case "bpe" | "byte_fallback":
            foreign: Codec = import_module(_FOREIGN).codec_of(tokenizer)
            return foreign
        case kind:
            known = nearest(kind, KINDS)
            raise DataError(f"unknown kind of tokenizer {kind!r}; {known}")
    if len(model.pieces) != tokenizer.vocab:
        raise DataError(f"a tokenizer of {len(model.pieces)} pieces, not {tokenizer.vocab}")
    return SentencePieceCodec(model)


def train_bpe(text: Iterable[bytes], vocab: int | None = None) -> Tokenizer:
    """Learn a lossless BPE tokenizer of ``vocab`` ids; the same text gives the same one.

    Of a long text it sees a fixed sample, some ten million words, chosen by hashing its parts.
    Without ``vocab`` the size is that of :func:`vocab_for`, or what the text supports.

    Raises:
        DataError: if the text does not support a vocabulary of this size.
    """
    sample = TextSample(text)
    if vocab is None:
        model = train(sample.parts, vocab_for(sample.size), exact=False)
    elif vocab < SMALLEST:
        raise DataError(f"a vocabulary needs at least {SMALLEST} ids, got {vocab}")
    else:
        model = train(sample.parts, vocab)
    return Tokenizer("merges", len(model.pieces), merges.pack(model))


def vocab_for(size: int) -> int:
    """How many pieces suit a text of ``size`` bytes: a power of two, 512 to 4,096."""
    return next((v for v in VOCABULARIES if size >= v * BYTES_PER_PIECE), VOCABULARIES[-1])


def from_model_file(path: Path) -> Tokenizer:
    """Take over a SentencePiece ``.model`` file as it is.

    Raises:
        DataError: if it cannot be read or is unfit for counting bytes.
    """
    try:
        payload = Path(path).read_bytes()
        tokenizer = Tokenizer("sentencepiece", len(modelproto.read(payload).pieces), payload)
        load(tokenizer)
    except (OSError, DataError) as error:
        raise DataError(f"{path}: {error}; give an intact SentencePiece .model file") from error
    return tokenizer


class TextSample:
    """At most ``SAMPLE`` bytes of a text, whatever its order and without reading it twice.

    ``size`` is that of the whole text.
    """

    def __init__(self, text: Iterable[bytes]) -> None:
        kept: dict[int, bytes] = {}
        self.size, size, limit = 0, 0, 2**64
        for document in text:
            self.size += len(document)
            for begin in range(0, len(document), PART):
                part = document[begin : begin + PART]
                mark = document_hash(part)
                if mark < limit and mark not in kept:
                    kept[mark] = part
                    size += len(part)
            while size > SAMPLE:
                limit //= 2
                kept = {mark: part for mark, part in kept.items() if mark < limit}
                size = sum(map(len, kept.values()))
        self.parts = list(kept.values())


class _ByteCodec:
    """One id per byte, and a start."""

    vocab = BYTES.vocab
    start = 256
    lossless = exact = True
    sizes = np.array([1] * 256 + [0], dtype=np.int64)

    def encode(self, document: bytes) -> NDArray[np.uint32]:
        return np.frombuffer(document, dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: ArrayLike) -> bytes:
        checked = within(ids, self.vocab)
        return checked[checked < self.start].astype(np.uint8).tobytes()

    def piece_bytes(self, previous: ArrayLike, ids: ArrayLike) -> NDArray[np.int64]:
        counted: NDArray[np.int64] = self.sizes[np.asarray(ids)]
        return counted
