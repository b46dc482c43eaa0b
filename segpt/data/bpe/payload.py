"""The payload of a byte-pair encoding of others.

It holds, in this order: the size of the head as uint32; the head as canonical JSON; for pieces
that no merge makes the low, then the high bytes of their sizes; their bytes; and the merges, plane
by plane as :mod:`segpt.data.merges` stores them: left parts, then right parts, each with the low
bytes of all first, and the ids of the pieces that are made, if those do not ascend. All numbers are
little-endian. A piece that a merge makes is not spelt: it is its left and its right part.
"""

import json
import struct
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segpt.config.base import canonical, decode, spec
from segpt.errors import DataError, SpecError

from .model import LARGEST_VOCAB, LONGEST, MOST_BYTES, MOST_MERGES, BpeModel, check, derive_merges

LARGEST_HEAD: Final = 1 << 20

_SIZE = struct.Struct("<I")


@spec
class PayloadHead:
    """What a payload says of itself; sets of ids are first and count of each run of them."""

    pattern: str
    start: int
    merges: int
    derived: bool
    ascending: bool
    whole_words: bool
    prefix: str
    normalizer: str
    spelled: tuple[int, ...]
    control: tuple[int, ...]
    added: tuple[int, ...]
    byte_tokens: tuple[int, ...]


def pack(model: BpeModel) -> bytes:
    """The payload of a model.

    Raises:
        DataError: if the model is unfit.
    """
    check(model)
    merges = model.merges
    ranked = _derived_or_none(model)
    derived = ranked is not None and len(merges) > 1 and np.array_equal(merges, ranked)
    kept = merges[:0] if derived else merges
    made, spelled = _made(model, kept)
    ascending = all(a < b for a, b in pairwise(made))
    head = PayloadHead(
        pattern=model.pattern,
        start=model.start,
        merges=len(kept),
        derived=derived,
        ascending=ascending,
        whole_words=model.whole_words,
        prefix=model.prefix,
        normalizer=model.normalizer,
        spelled=_runs(spelled),
        control=_runs(sorted(model.control)),
        added=_runs(sorted(model.added)),
        byte_tokens=_runs(model.byte_tokens),
    )
    text = canonical(head)
    texts = [model.pieces[i] for i in spelled]
    sizes = np.array([len(piece) for piece in texts], dtype=np.int64)
    width = _width(len(model.pieces))
    return b"".join(
        (
            _SIZE.pack(len(text)),
            text,
            _planes(sizes, 2),
            *texts,
            _planes(kept[:, 0], width),
            _planes(kept[:, 1], width),
            b"" if ascending else _planes(np.array(made, dtype=np.int64), width),
        )
    )


def unpack(payload: bytes, vocab: int) -> BpeModel:
    """The model of a payload.

    Raises:
        DataError: if the payload is damaged or not of a vocabulary of this size.
    """
    try:
        if not 1 <= vocab <= LARGEST_VOCAB:
            raise ValueError(f"a vocabulary of {vocab:,} pieces; the format ends at 2^20")
        head, rest = _head(payload)
        model = _model(head, rest, vocab)
        check(model)
    except (ValueError, IndexError, RecursionError, struct.error, SpecError, DataError) as error:
        raise DataError(f"damaged byte-pair encoding: {error}") from None
    return model


def _head(payload: bytes) -> tuple[PayloadHead, memoryview]:
    (size,) = _SIZE.unpack_from(payload)
    end = _SIZE.size + size
    if size > LARGEST_HEAD or end > len(payload):
        raise ValueError("its head is cut off or too large")
    text = payload[_SIZE.size : end]
    table = json.loads(text.decode(), parse_constant=_constant)
    if canonical(table) != text:
        raise ValueError("its head is not canonical JSON")
    return decode(PayloadHead, table, "head"), memoryview(payload)[end:]


def _constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _model(head: PayloadHead, rest: memoryview, vocab: int) -> BpeModel:
    spelled = _ids(head.spelled, vocab)
    if not 0 <= head.merges <= MOST_MERGES:
        raise ValueError(f"{head.merges} merges")
    sizes, rest = _numbers(rest, len(spelled), 2)
    total = int(sizes.sum())
    if total > min(len(rest), MOST_BYTES) or (sizes > LONGEST).any():
        raise ValueError("its pieces are cut off or too long")
    pieces: list[bytes | None] = [None] * vocab
    start = 0
    for i, size in zip(spelled, sizes.tolist(), strict=True):
        pieces[i] = bytes(rest[start : start + size])
        start += size
    width = _width(vocab)
    left, rest = _numbers(rest[total:], head.merges, width)
    right, rest = _numbers(rest, head.merges, width)
    free = [i for i, piece in enumerate(pieces) if piece is None]
    if not head.ascending:
        listed, rest = _numbers(rest, len(free), width)
        if sorted(listed.tolist()) != free:
            raise ValueError("it does not list the pieces that are made once each")
        free = listed.tolist()
    if len(rest):
        raise ValueError(f"{len(rest)} bytes follow its end")
    merges = np.stack([left, right], axis=1)
    control, added = _ids(head.control, vocab), _ids(head.added, vocab)
    fallback = tuple(_ids(head.byte_tokens, vocab))
    apart = {*control, *added, *fallback}
    _make(pieces, merges, free, apart)
    whole = tuple(piece for piece in pieces if piece is not None)
    if len(whole) != vocab:
        raise ValueError(f"{vocab - len(whole)} pieces are neither spelt nor made")
    if head.derived:
        normal = {p: i for i, p in enumerate(whole) if p and i not in apart}
        merges = derive_merges(normal)
    return BpeModel(
        pieces=whole,
        merges=merges,
        pattern=head.pattern,
        start=head.start,
        control=frozenset(control),
        added=frozenset(added),
        byte_tokens=fallback,
        whole_words=head.whole_words,
        prefix=head.prefix,
        normalizer=head.normalizer,
        derived=head.derived,
    )


def _make(
    pieces: list[bytes | None], merges: NDArray[np.int64], free: list[int], apart: set[int]
) -> None:
    """Fill in the pieces that merges make, which get the ids of ``free`` in turn."""
    known = {piece for i, piece in enumerate(pieces) if piece and i not in apart}
    total, used = sum(map(len, known)), 0
    for left, right in merges.tolist():
        a, b = pieces[left], pieces[right]
        if not a or not b:
            raise ValueError(f"a merge of {left} and {right} comes before its parts")
        made = a + b
        if made in known:
            continue
        total += len(made)
        if len(made) > LONGEST or total > MOST_BYTES:
            raise ValueError("its pieces are too long")
        if used == len(free):
            raise ValueError("more pieces are made than there are ids")
        pieces[free[used]] = made
        known.add(made)
        used += 1


def _made(model: BpeModel, merges: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """The ids that merges make in turn, and those that have to be spelt."""
    pieces, normal = model.pieces, model.normal
    results = [normal[pieces[left] + pieces[right]] for left, right in merges.tolist()]
    first: dict[int, int] = {}
    for number, result in enumerate(results):
        first.setdefault(result, number)
    spelled = {i for i in range(len(pieces)) if i not in first}
    for number, pair in enumerate(merges.tolist()):
        spelled.update(part for part in pair if first.get(part, -1) >= number)
    made = [result for result in dict.fromkeys(results) if result not in spelled]
    return made, sorted(spelled)


def _derived_or_none(model: BpeModel) -> NDArray[np.int64] | None:
    try:
        return derive_merges(model.normal)
    except DataError:
        return None


def _runs(ids: "list[int] | tuple[int, ...]") -> tuple[int, ...]:
    runs: list[int] = []
    for i in ids:
        if runs and i == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += [i, 1]
    return tuple(runs)


def _ids(runs: tuple[int, ...], vocab: int) -> list[int]:
    if len(runs) % 2:
        raise ValueError("a run of ids has no count")
    ids: list[int] = []
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        if first < 0 or count < 1 or first + count > vocab:
            raise ValueError(f"a run of {count} ids from {first} on")
        ids += range(first, first + count)
        if len(ids) > vocab:
            raise ValueError("an id is listed twice")
    if len(set(ids)) != len(ids):
        raise ValueError("an id is listed twice")
    return ids


def _width(vocab: int) -> int:
    return 2 if vocab <= 2**16 else 3


def _planes(numbers: NDArray[np.int64], width: int) -> bytes:
    octets = numbers.astype("<u4")[:, None].copy().view(np.uint8)  # (numbers, 4)
    return octets[:, :width].T.tobytes()


def _numbers(rest: memoryview, count: int, width: int) -> tuple[NDArray[np.int64], memoryview]:
    size = count * width
    if size > len(rest):
        raise ValueError("it is cut off")
    octets = np.frombuffer(rest[:size], dtype=np.uint8).reshape(width, count).astype(np.int64)
    return (octets << 8 * np.arange(width)[:, None]).sum(axis=0), rest[size:]
