"""Our BPE tokenizers as merge tables: a quarter of the model file, and kind to compressors.

A payload holds the characters of the vocabulary in UTF-8, NUL, pieces that no merge makes (each
with NUL; none are known to occur), and for each merged piece in order of merging the number of
its left and of its right part. Characters come first in that numbering, merged pieces follow.
The parts are stored plane by plane: low bytes of all left parts, their high bytes, then the
right ones. A piece that is its own left part is spelled out; its right part says where.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError

from .modelproto import BPE, SPACE, Kind, SentencePieceModel, VocabularyPiece

FIRST_MERGE: Final = 258  # after the unknown, the start and 256 bytes
LONGEST: Final = 64  # characters of a piece; without a limit, a small payload could spell gigabytes

_HEAD = (
    VocabularyPiece("<unk>", 0.0, Kind.UNKNOWN),
    VocabularyPiece("<s>", 0.0, Kind.CONTROL),
    *(VocabularyPiece(f"<0x{byte:02X}>", 0.0, Kind.BYTE) for byte in range(256)),
)


def pack(model: SentencePieceModel) -> bytes:
    """The payload of a model that :func:`segpt.data.sentencepiece.train` made."""
    texts = [piece.text for piece in model.pieces[FIRST_MERGE:]]
    merged = [text for text in texts if len(text) > 1]
    characters = texts[len(merged) :]
    numbers = {character: number for number, character in enumerate(characters)}
    pairs: list[tuple[int, int]] = []
    spelled: list[str] = []
    for number, text in enumerate(merged, len(characters)):
        halves = ((text[:i], text[i:]) for i in range(1, len(text)))
        pair = next(((numbers[a], numbers[b]) for a, b in halves if {a, b} <= numbers.keys()), None)
        if pair is None:
            pair = number, len(spelled)
            spelled.append(text)
        pairs.append(pair)
        numbers[text] = number
    head = "\0".join(["".join(characters), *spelled, ""]).replace(SPACE, " ").encode()
    return head + _planes(pairs, _width(len(model.pieces)))


def unpack(payload: bytes, vocab: int) -> SentencePieceModel:
    """The model of a payload; pieces, ids and order of merging are those that were packed.

    Raises:
        DataError: if the payload is damaged or not of a vocabulary of this size.
    """
    try:
        characters = payload[: payload.index(0)].decode()
        width = _width(vocab)
        merges = vocab - FIRST_MERGE - len(characters)
        split = len(payload) - 2 * width * merges
        if merges < 0 or split <= payload.index(0):
            raise DataError(f"damaged merge table: it is not of {vocab} pieces")
        spelled = payload[:split].decode().split("\0")[1:-1]
        pairs = _pairs(payload[split:], merges, width)
        merged = _merged(characters, spelled, pairs)
    except (ValueError, IndexError) as error:
        raise DataError(f"damaged merge table: {error}") from error
    texts = [text.replace(" ", SPACE) for text in (*merged, *characters)]
    if SPACE not in texts or len({*texts, *(piece.text for piece in _HEAD)}) != vocab:
        raise DataError("damaged merge table: pieces are missing or repeated")
    pieces = (VocabularyPiece(text, -float(rank)) for rank, text in enumerate(texts))
    return SentencePieceModel(
        pieces=(*_HEAD, *pieces),
        algorithm=BPE,
        byte_fallback=True,
        dummy_prefix=False,
        squeeze_spaces=False,
    )


def _merged(characters: str, spelled: Sequence[str], pairs: NDArray[np.int64]) -> list[str]:
    parts = list(characters)
    for left, right in pairs.tolist():
        text = spelled[right] if left == len(parts) else parts[left] + parts[right]
        if not 1 < len(text) <= LONGEST:
            raise ValueError(f"a piece of {len(text)} characters")
        parts.append(text)
    return parts[len(characters) :]


def _width(vocab: int) -> int:
    return 2 if vocab <= 2**16 else 3


def _planes(pairs: Sequence[tuple[int, int]], width: int) -> bytes:
    table = np.array(pairs, dtype="<u4").reshape(-1, 2)
    octets = table.T[..., None].copy().view(np.uint8)  # (2, merges, 4)
    return octets[..., :width].transpose(0, 2, 1).tobytes()


def _pairs(planes: bytes, merges: int, width: int) -> NDArray[np.int64]:
    octets = np.frombuffer(planes, dtype=np.uint8).reshape(2, width, merges).astype(np.int64)
    return (octets << 8 * np.arange(width)[:, None]).sum(axis=1).T
