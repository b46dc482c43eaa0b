"""SentencePiece model files, read and written without protobuf.

The wire format is a sequence of (tag, value) pairs; the field numbers below are those of
``sentencepiece_model.proto``. What is read is only what changes how a text is encoded. What is
written holds nothing else, so that a hostile file reaches the C++ library as a file of ours.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

from segpt.errors import DataError

SPACE: Final = "\u2581"  # how pieces spell a space
BPE: Final = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Field = tuple[int, int | bytes]


class Kind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class VocabularyPiece(NamedTuple):
    """An entry of the vocabulary. The higher the score, the earlier a BPE merge."""

    text: str
    score: float = 0.0
    kind: Kind = Kind.NORMAL


_KINDS = frozenset(Kind)


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A vocabulary and the switches that decide how text becomes pieces."""

    pieces: tuple[VocabularyPiece, ...]
    algorithm: int = 1
    byte_fallback: bool = False
    space_as_suffix: bool = False
    unknown: str = "<unk>"
    start: str = "<s>"
    end: str = "</s>"
    normaliser: bytes = b""
    dummy_prefix: bool = True
    squeeze_spaces: bool = True
    escape_spaces: bool = True


def read(data: bytes) -> SentencePieceModel:
    """Parse a model file.

    Raises:
        DataError: if ``data`` is not a model whose every part is within bounds.
    """
    pieces: list[VocabularyPiece] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_as_bytes(value)))
        elif number == 2:
            trainer.update(_fields(_as_bytes(value)))
        elif number == 3:
            normaliser.update(_fields(_as_bytes(value)))
    if not pieces:
        raise DataError("not a SentencePiece model: it has no pieces")
    model = SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=_as_int(trainer.get(3, 1)),
        space_as_suffix=bool(_as_int(trainer.get(24, 0))),
        byte_fallback=bool(_as_int(trainer.get(35, 0))),
        unknown=_as_text(trainer.get(45, b"<unk>")),
        start=_as_text(trainer.get(46, b"<s>")),
        end=_as_text(trainer.get(47, b"</s>")),
        normaliser=_as_bytes(normaliser.get(2, b"")),
        dummy_prefix=bool(_as_int(normaliser.get(3, 1))),
        squeeze_spaces=bool(_as_int(normaliser.get(4, 1))),
        escape_spaces=bool(_as_int(normaliser.get(5, 1))),
    )
    if not 1 <= model.algorithm <= 4:
        raise DataError(f"not a SentencePiece model: unknown algorithm {model.algorithm}")
    _check_normaliser(model.normaliser)
    return model


def write(model: SentencePieceModel) -> bytes:
    """The model file of ``model``."""
    trainer = (
        _integer(3, model.algorithm)
        + _integer(4, len(model.pieces))
        + _integer(24, model.space_as_suffix)
        + _integer(35, model.byte_fallback)
        + _string(45, model.unknown.encode())
        + _string(46, model.start.encode())
        + _string(47, model.end.encode())
    )
    normaliser = (
        _string(2, model.normaliser)
        + _integer(3, model.dummy_prefix)
        + _integer(4, model.squeeze_spaces)
        + _integer(5, model.escape_spaces)
    )
    entries = b"".join(
        _string(1, _string(1, text.encode()) + _float(2, score) + _integer(3, kind))
        for text, score, kind in model.pieces
    )
    return entries + _string(2, trainer) + _string(3, normaliser)


def _piece(data: bytes) -> VocabularyPiece:
    entry = dict(_fields(data))
    score = struct.unpack("<f", _as_bytes(entry.get(2, bytes(4)), size=4))[0]
    kind = _as_int(entry.get(3, Kind.NORMAL))
    text = _as_text(entry.get(1, b""))
    if not text or kind not in _KINDS or not math.isfinite(score):
        raise DataError(f"not a SentencePiece model: bad piece {text!r}")
    return VocabularyPiece(text, score, Kind(kind))


def _check_normaliser(table: bytes) -> None:
    """Bound every step of the automaton, which the C++ library follows without looking.

    The table is a size, a double-array trie of uint32 units, and replacements that end in NUL.
    From unit i, byte b leads to unit ``i ^ offset(i) ^ b`` and a match to the leaf
    ``i ^ offset(i)``, which is a position among the replacements.
    """
    if not table:
        return
    size = int.from_bytes(table[:4], "little")
    trie, replacements = table[4 : 4 + size], table[4 + size :]
    if not size or size % 1024 or len(trie) < size or not replacements.endswith(b"\0"):
        raise DataError("not a SentencePiece model: damaged normaliser")
    units = np.frombuffer(trie, dtype="<u4").astype(np.int64)
    leaf = units >> 31 == 1
    leaf[0] = False  # the root is left without being looked at
    offset = (units >> 10) << ((units & 512) >> 6)
    reached = np.arange(len(units)) ^ offset
    steps_out = ~leaf & (reached | 255 >= len(units))
    matches_out = units[reached[~leaf & ~steps_out & (units >> 8 & 1 == 1)]] & 0x7FFFFFFF
    if steps_out.any() or (matches_out >= len(replacements)).any():
        raise DataError("not a SentencePiece model: damaged normaliser")


def _fields(data: bytes) -> Iterator[Field]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise DataError(f"not a SentencePiece model: wire type {wire}")
        if position + size > len(data):
            raise DataError("not a SentencePiece model: it ends too early")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(data[position : position + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, position + shift + 1
    raise DataError("not a SentencePiece model: it ends too early")


def _as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise DataError("not a SentencePiece model: a number is not a number")
    return value


def _as_bytes(value: int | bytes, size: int | None = None) -> bytes:
    if isinstance(value, int) or (size is not None and len(value) != size):
        raise DataError("not a SentencePiece model: a string is not a string")
    return value


def _as_text(value: int | bytes) -> str:
    try:
        return _as_bytes(value).decode()
    except UnicodeDecodeError as error:
        raise DataError("not a SentencePiece model: a piece is not UTF-8") from error


def _integer(number: int, value: int) -> bytes:
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def _float(number: int, value: float) -> bytes:
    return _encoded(number << 3 | _FIXED32) + struct.pack("<f", value)


def _string(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    varint = bytearray()
    while value > 127:
        varint.append(value & 127 | 128)
        value >>= 7
    return bytes([*varint, value])
