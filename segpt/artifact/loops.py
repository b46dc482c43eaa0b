"""The inner loop of the decoder of code streams: one step decodes a symbol in every lane.

What a step looks up for a lane is an entry, one for every table and value of the low bits of a
state: the frequency of the symbol (bits 0 to 14), its parity (bit 15), the symbol (bits 16 to 23),
and how far the low bits lie above the start of the symbol (bits 24 to 37). A path is the number of
a state of a machine (bits 0 to 13) and the grid that it is on (bit 14).
"""

import sys

import numpy as np
from numpy.typing import DTypeLike, NDArray

PRECISION = 14
LOWEST = 1 << 16  # of the state of a lane
WORD = 16

FREQUENCY = (1 << 15) - 1
GRID = 1 << 14
ODD = 1 << 15
SYMBOL = 16
OFFSET = 24

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Words = NDArray[np.uint16]


def numpy_loop(
    bases: Integers,
    symbols: Bytes,
    states: Integers,
    words: Words,
    entries: Integers,
    following: Integers,
    paths: Integers,
) -> int:
    """Decode the steps ``bases`` (steps, width) into ``symbols``; ``states`` (width,) move along.

    A base is where the entries of a table begin. ``paths`` (width,) move along, too; without
    machines there are none. ``following`` says where a path leads, plus 2^15 after an odd symbol.

    Returns:
        How many of the ``words`` were taken, or -1 if they are too few.
    """
    width = bases.shape[1]
    low, high = _parts(states, np.uint16)[:2]
    entry, scratch, slot = np.empty((3, width), np.int64)
    symbol = _parts(entry, np.uint8)[SYMBOL // 8]
    short = np.empty(width, np.bool_)
    taken, machines = 0, len(paths) > 0
    for base, row in zip(bases, symbols, strict=True):
        np.bitwise_and(states, _LOW, slot)
        slot += base
        if machines:
            np.bitwise_and(paths, _GRID, scratch)
            slot += scratch
        # Every entry exists, so that clipping changes none; it spares a second buffer.
        entries.take(slot, None, entry, "clip")
        row[:] = symbol
        if machines:
            np.bitwise_and(entry, _ODD, scratch)
            paths += scratch
            following.take(paths, None, paths, "clip")
        states >>= _PRECISION
        np.bitwise_and(entry, _FREQUENCY, scratch)
        states *= scratch
        entry >>= _OFFSET
        states += entry
        np.less(states, _LOWEST, short)
        lanes = short.nonzero()[0]
        begin, taken = taken, taken + len(lanes)
        if taken > len(words):
            return -1
        high[lanes] = low[lanes]
        low[lanes] = words[begin:taken]
    return taken


# An operation with an array of no dimensions takes half the time of one with a number of Python.
_LOW, _PRECISION, _LOWEST = np.array((1 << PRECISION) - 1), np.array(PRECISION), np.array(LOWEST)
_GRID, _ODD, _FREQUENCY, _OFFSET = (np.array(bits) for bits in (GRID, ODD, FREQUENCY, OFFSET))


def _parts(values: Integers, dtype: DTypeLike) -> NDArray[np.unsignedinteger]:
    """Views of the parts of ``values`` (count,), the lowest first: (parts, count)."""
    size = np.dtype(dtype).itemsize
    parts = values.view(dtype).reshape(len(values), values.itemsize // size).T
    return parts if sys.byteorder == "little" else parts[::-1]
