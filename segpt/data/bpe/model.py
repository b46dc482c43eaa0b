"""A byte-pair encoding of others as data: pieces as bytes, merges as pairs, a pattern by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError

from .patterns import PATTERNS, SPACED, WHOLE

SPACE: Final = "\u2581"  # how pieces with byte fallback spell a space

LARGEST_VOCAB: Final = 1 << 20
LONGEST: Final = 1 << 10  # bytes of a piece
MOST_BYTES: Final = 1 << 23  # of all pieces together
MOST_MERGES: Final = 1 << 21

# What stands before a text of a tokenizer with byte fallback: nothing, a space, or a space where
# the text does not begin with one.
NO_PREFIX, ALWAYS, ABSENT = "", "always", "absent"


def _letters() -> tuple[str, ...]:
    """The letter that stands for each byte in GPT-2's files."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return tuple(letters[byte] for byte in range(256))


LETTERS: Final = _letters()
LETTER_BYTES: Final[Mapping[str, int]] = {letter: byte for byte, letter in enumerate(LETTERS)}


def in_letters(raw: bytes) -> str:
    """Bytes as GPT-2's files write them."""
    return "".join([LETTERS[byte] for byte in raw])


def from_letters(text: str) -> bytes | None:
    """The inverse of :func:`in_letters`; None where a letter stands for no byte."""
    try:
        return bytes([LETTER_BYTES[letter] for letter in text])
    except KeyError:
        return None


@dataclass(frozen=True, eq=False)
class BpeModel:
    """A vocabulary and what decides how text becomes its pieces.

    Attributes:
        pieces: What each id spells, a space as a space; of a control id its name, and empty where
            an id has no piece.
        merges: Ids of left and right parts, (merges, 2), the first merge first.
        pattern: How text is cut into words, of :mod:`segpt.data.bpe.patterns`.
        start: The id that begins a document.
        control: Ids that spell nothing and that no text is encoded as.
        added: Ids of pieces that are looked for in the text before it is cut.
        byte_tokens: The ids of the 256 bytes with byte fallback, else empty.
        whole_words: A word that is a piece is not merged from its parts (``ignore_merges``).
        prefix: What stands before a text: one of ``NO_PREFIX``, ``ALWAYS`` and ``ABSENT``.
        normalizer: ``nfc`` where the original normalizes text to NFC first, which this does not.
        derived: The merges are all the ways to make a piece of two, in order of the pieces.
    """

    pieces: tuple[bytes, ...]
    merges: NDArray[np.int64]
    pattern: str
    start: int
    control: frozenset[int] = frozenset()
    added: frozenset[int] = frozenset()
    byte_tokens: tuple[int, ...] = ()
    whole_words: bool = False
    prefix: str = NO_PREFIX
    normalizer: str = ""
    derived: bool = field(default=False, compare=False)

    @property
    def fallback(self) -> bool:
        """Pieces are text, and characters without a piece are spelt as bytes."""
        return bool(self.byte_tokens)

    @cached_property
    def normal(self) -> dict[bytes, int]:
        """The id of each piece that merging makes, or that is a byte or a character."""
        apart = {*self.control, *self.added, *self.byte_tokens}
        return {piece: i for i, piece in enumerate(self.pieces) if piece and i not in apart}

    @cached_property
    def byte_ids(self) -> tuple[int | None, ...]:
        """The id that spells each byte alone, None where there is none."""
        if self.fallback:
            return self.byte_tokens
        return tuple(self.normal.get(bytes([byte])) for byte in range(256))

    @property
    def missing(self) -> tuple[int, ...]:
        """The bytes that no id spells alone."""
        return tuple(byte for byte, i in enumerate(self.byte_ids) if i is None)

    @property
    def lossless(self) -> bool:
        """Any bytes survive encoding and decoding, and nothing else is counted."""
        return not self.missing and not self.prefix

    def token_text(self, i: int) -> str:
        """The text of an id as files of the `tokenizers` library spell it."""
        if i in self.control or i in self.added:
            return self.pieces[i].decode("utf-8", "replace")
        if not self.fallback:
            return in_letters(self.pieces[i])
        if i in self.byte_tokens:
            return f"<0x{self.pieces[i][0]:02X}>"
        return self.pieces[i].decode().replace(" ", SPACE)


def check(model: BpeModel) -> None:
    """Refuse a model that could not be encoded with, or not be counted by.

    Raises:
        DataError: saying what is wrong with it.
    """
    vocab, merges = len(model.pieces), model.merges
    if not 1 <= vocab <= LARGEST_VOCAB:
        raise DataError(f"a vocabulary of {vocab:,} pieces; at most {LARGEST_VOCAB:,} are read")
    if len(merges) > MOST_MERGES:
        raise DataError(f"{len(merges):,} merges; at most {MOST_MERGES:,} are read")
    if (longest := max(map(len, model.pieces))) > LONGEST:
        raise DataError(f"a piece of {longest:,} bytes; at most {LONGEST:,} are read")
    if (total := sum(map(len, model.pieces))) > MOST_BYTES:
        raise DataError(f"pieces of {total:,} bytes; at most {MOST_BYTES:,} are read")
    ids = {model.start, *model.control, *model.added, *model.byte_tokens}
    if not 0 <= min(ids) <= max(ids) < vocab:
        raise DataError(f"an id outside the vocabulary of {vocab:,}")
    if model.start not in model.control:
        raise DataError(f"id {model.start} cannot begin documents: it stands for text")
    if model.pattern not in ((WHOLE, SPACED) if model.fallback else PATTERNS):
        raise DataError(f"no way to cut text into words is called {model.pattern!r}")
    if model.prefix not in (NO_PREFIX, ALWAYS, ABSENT) or (model.prefix and not model.fallback):
        raise DataError(f"no space before a text is called {model.prefix!r}")
    if model.normalizer not in ("", "nfc"):
        raise DataError(f"no normalizer is called {model.normalizer!r}")
    _check_pieces(model)
    _check_merges(model)


def _check_pieces(model: BpeModel) -> None:
    apart = {*model.control, *model.added, *model.byte_tokens}
    if len(apart) != len(model.control) + len(model.added) + len(model.byte_tokens):
        raise DataError("an id is of two kinds at once")
    own = [piece for i, piece in enumerate(model.pieces) if piece and i not in apart]
    if len(own) != len(model.normal):
        raise DataError("two ids have the same piece")
    if model.byte_tokens and [model.pieces[i] for i in model.byte_tokens] != [
        bytes([b]) for b in range(256)
    ]:
        raise DataError("the 256 bytes have other pieces than themselves")
    try:
        for i in model.added | model.control:
            model.pieces[i].decode()
        spelled = [model.token_text(i) for i in model.normal.values()]
    except UnicodeDecodeError as error:
        raise DataError(f"a piece is not UTF-8: {error}") from None
    taken = {model.token_text(i) for i in (*model.added, *model.byte_tokens)}
    if len(taken) != len(model.added) + len(model.byte_tokens) or taken.intersection(spelled):
        raise DataError("two ids have the same text")
    if model.fallback and any(SPACE.encode() in model.pieces[i] for i in model.normal.values()):
        raise DataError("a piece holds the sign that stands for a space")
    if any(not model.pieces[i] for i in model.added):
        raise DataError("an added token is empty")


def _check_merges(model: BpeModel) -> None:
    merges, vocab = model.merges, len(model.pieces)
    if merges.size and not 0 <= merges.min() <= merges.max() < vocab:
        raise DataError(f"a merge of an id outside the vocabulary of {vocab:,}")
    pieces, normal = model.pieces, model.normal
    for left, right in merges.tolist():
        if normal.get(pieces[left]) != left or normal.get(pieces[right]) != right:
            raise DataError(f"a merge of {left} and {right}, which are not both pieces of text")
        if pieces[left] + pieces[right] not in normal:
            raise DataError(f"the merge of {left} and {right} makes no piece of the vocabulary")


def derive_merges(normal: Mapping[bytes, int]) -> NDArray[np.int64]:
    """All the ways to make a piece of two, (merges, 2): what a file of ranks means.

    They come in order of the piece that is made, then of their left and right part.

    Raises:
        DataError: if there are too many.
    """
    pairs: list[tuple[int, int]] = []
    for piece, _ in sorted(normal.items(), key=lambda item: item[1]):
        halves = ((normal.get(piece[:i]), normal.get(piece[i:])) for i in range(1, len(piece)))
        pairs += sorted((a, b) for a, b in halves if a is not None and b is not None)
        if len(pairs) > MOST_MERGES:
            raise DataError(f"more than {MOST_MERGES:,} merges are not read")
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
