"""Asymmetric numeral systems: symbols to bytes at their ideal code length (arXiv 1311.2540).

Integers only. ``lanes`` independent states take turns, symbol i belonging to lane i mod lanes, so
that one step of the loop serves a whole row of symbols. A state is 32 bits and lies in
[2^16, 2^32); it moves in words of 16 bits. A symbol has a frequency out of 2^14 in the table of
its class, and symbols of a class are laid out by rising value.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError

PRECISION = 14
TOTAL = 1 << PRECISION
SYMBOLS = 256
MOST_LANES = 4096

_LOWEST = 1 << 16
_WORD = 16
# Symbols whose table rows are looked up at once: long enough to amortise, short enough to cache.
_BLOCK = 1 << 16


def encode(
    symbols: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    tables: NDArray[np.uint16],
    lanes: int,
) -> bytes:
    """Encode ``symbols`` (count,), each with the table that ``classes`` (count,) names.

    ``tables`` is (classes, 256); each row sums to 2^14 and gives every symbol that occurs in its
    class at least 1.

    Returns:
        The final state of every lane as uint32, then the words in the order of decoding.

    Raises:
        ArtifactError: if a symbol has frequency 0 in the table of its class.
    """
    frequencies = tables.astype(np.int64).ravel()
    starts = (np.cumsum(tables, axis=1, dtype=np.int64) - tables).ravel()
    states = np.full(lanes, _LOWEST, np.int64)
    emitted: list[NDArray[np.uint16]] = []
    bounds = _bounds(len(symbols), lanes)
    for begin, end in reversed(list(pairwise(bounds))):
        keys = classes[begin:end].astype(np.int64) * SYMBOLS + symbols[begin:end]
        frequency, start = frequencies[keys], starts[keys]
        if not frequency.all():
            raise ArtifactError("a symbol to encode has no place in the table of its class")
        for first in reversed(range(0, end - begin, lanes)):
            f, s = frequency[first : first + lanes], start[first : first + lanes]
            x = states[: len(f)]
            full = x >= f << (32 - PRECISION)
            emitted.append(x[full].astype("<u2"))
            x = np.where(full, x >> _WORD, x)
            quotient = x // f
            states[: len(f)] = (quotient << PRECISION) + (x - quotient * f) + s
    words = np.concatenate(emitted[::-1]) if emitted else np.empty(0, "<u2")
    return states.astype("<u4").tobytes() + words.tobytes()


def decode(
    data: bytes, classes: NDArray[np.uint8], tables: NDArray[np.uint16], lanes: int
) -> NDArray[np.uint8]:
    """Decode one symbol per entry of ``classes`` (count,); the inverse of :func:`encode`.

    The number of steps depends on ``count`` and ``lanes`` alone.

    Raises:
        ArtifactError: if ``data`` is truncated, has bytes left over, or ends in a wrong state.
    """
    head = 4 * lanes
    if len(data) < head or (len(data) - head) % 2:
        raise ArtifactError(f"a stream of {len(data)} bytes does not hold {lanes} lanes and words")
    states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    if lanes and states.min() < _LOWEST:
        raise ArtifactError("a lane of the code stream starts in a state that no encoder reaches")
    words = np.frombuffer(data, "<u2", offset=head)
    slots = _slots(tables)
    symbols = np.empty(len(classes), np.uint8)
    used = 0
    for begin, end in pairwise(_bounds(len(classes), lanes)):
        bases = classes[begin:end].astype(np.int64) << PRECISION
        found = symbols[begin:end]
        for first in range(0, end - begin, lanes):
            base = bases[first : first + lanes]
            x = states[: len(base)]
            slot = slots[base + (x & (TOTAL - 1))]
            found[first : first + lanes] = slot & 0xFF
            x = (slot >> 8 & 0x7FFF) * (x >> PRECISION) + (slot >> 23)
            short = np.flatnonzero(x < _LOWEST)
            if used + len(short) > len(words):
                raise ArtifactError("the code stream is truncated")
            x[short] = x[short] << _WORD | words[used : used + len(short)]
            used += len(short)
            states[: len(base)] = x
    if used != len(words):
        raise ArtifactError(f"the code stream has {2 * (len(words) - used)} bytes left over")
    if (states != _LOWEST).any():
        raise ArtifactError("the code stream is corrupt: a lane does not end where it began")
    return symbols


def _bounds(count: int, lanes: int) -> list[int]:
    """Cut ``count`` symbols into blocks of whole steps."""
    block = max(1, _BLOCK // max(1, lanes)) * lanes
    return [*range(0, count, block), count] if count else [0]


def _slots(tables: NDArray[np.uint16]) -> NDArray[np.int64]:
    """For every class and value of the low bits: symbol, frequency << 8, offset << 23."""
    slots = np.empty((len(tables), TOTAL), np.int64)
    low = np.arange(TOTAL)
    for row, table in zip(slots, tables.astype(np.int64), strict=True):
        symbol = np.repeat(np.arange(SYMBOLS), table)
        start = np.cumsum(table) - table
        row[:] = symbol | table[symbol] << 8 | (low - start[symbol]) << 23
    return slots.ravel()
