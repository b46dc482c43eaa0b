"""The inner loop of the decoder of code streams: one step decodes a symbol in every lane.

What a step looks up for a lane is an entry, one for every table and value of the low bits of a
state: the frequency of the symbol (bits 0 to 14), its parity (bit 15), the symbol (bits 16 to 23),
and how far the low bits lie above the start of the symbol (bits 24 to 37). A path is the number of
a state of a machine (bits 0 to 13) and the grid that it is on (bit 14).

There are two loops that give the same integers: the reference in numpy, and one that numba
compiles where it is installed. Numba takes about a second to load and to compile, so that it pays
only where much is decoded.
"""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from segpt.errors import SegptError

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
Loop = Callable[[Integers, Bytes, Integers, Words, Integers, Integers, Integers], int]
Choice = Literal["auto", "numpy", "numba"]

MOST_NUMPY = 1 << 17  # steps of a process: numpy takes a second for them, as loading numba does

_choice: Choice = "auto"
_numpy_steps = 0  # that numpy was chosen for in this process


class Compiled(NamedTuple):
    """The loop of numba, or None and the reason why there is none."""

    loop: Loop | None
    reason: str = ""


def use(choice: Choice) -> None:
    """Decode with numpy or with numba from now on, or with what is faster (``auto``).

    Raises:
        SegptError: if it shall be numba, and that is not installed or does not work.
    """
    global _choice
    if choice == "numba" and compiled().loop is None:
        raise SegptError(f"numba does not work: {compiled().reason}")
    _choice = choice


def choose(steps: int) -> Loop:
    """The loop for a stream of so many ``steps``.

    It is numpy's until all the steps of this process would take longer than to load numba.
    """
    global _numpy_steps
    if _choice == "numpy":
        return numpy_loop
    if _choice == "auto" and not compiled.cache_info().currsize:
        _numpy_steps += steps
        if _numpy_steps <= MOST_NUMPY:
            return numpy_loop
    return compiled().loop or numpy_loop


@functools.cache
def compiled() -> Compiled:
    """What numba makes of the loop.

    It is compiled in every process: to keep it on the disk would save half a second, and fail
    where nothing can be written.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import numba

            return Compiled(numba.njit(_signature(numba.types))(_plain_loop))
    except Exception as error:  # noqa: BLE001 - whatever it is, numpy decodes
        return Compiled(None, f"{type(error).__name__}: {error}")


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


def _plain_loop(
    bases: Integers,
    symbols: Bytes,
    states: Integers,
    words: Words,
    entries: Integers,
    following: Integers,
    paths: Integers,
) -> int:
    """As :func:`numpy_loop`, symbol by symbol: what numba compiles. Every place is checked."""
    steps, width = bases.shape
    taken, machines = 0, len(paths) > 0
    for step in range(steps):
        for lane in range(width):
            state = states[lane]
            slot = (state & ((1 << PRECISION) - 1)) + bases[step, lane]
            if machines:
                slot += paths[lane] & GRID
            entry = entries[min(max(slot, 0), len(entries) - 1)]
            symbols[step, lane] = (entry >> SYMBOL) & 0xFF
            if machines:
                path = paths[lane] + (entry & ODD)
                paths[lane] = following[min(max(path, 0), len(following) - 1)]
            state = (state >> PRECISION) * (entry & FREQUENCY) + (entry >> OFFSET)
            if state < LOWEST:
                if taken == len(words):
                    return -1
                state = (state << WORD) | words[taken]
                taken += 1
            states[lane] = state
    return taken


def _signature(types: Any) -> object:
    """The arguments of a loop and its result in numba's ``types``: contiguous but for ``bases``."""
    integers, readable = types.int64[::1], types.Array(types.uint16, 1, "C", readonly=True)
    bases = types.Array(types.int64, 2, "A", readonly=True)
    symbols = types.uint8[:, ::1]
    return types.int64(bases, symbols, integers, readable, integers, integers, integers)


# An operation with an array of no dimensions takes half the time of one with a number of Python.
_LOW, _PRECISION, _LOWEST = np.array((1 << PRECISION) - 1), np.array(PRECISION), np.array(LOWEST)
_GRID, _ODD, _FREQUENCY, _OFFSET = (np.array(bits) for bits in (GRID, ODD, FREQUENCY, OFFSET))


def _parts(values: Integers, dtype: DTypeLike) -> NDArray[np.unsignedinteger]:
    """Views of the parts of ``values`` (count,), the lowest first: (parts, count)."""
    size = np.dtype(dtype).itemsize
    parts = values.view(dtype).reshape(len(values), values.itemsize // size).T
    return parts if sys.byteorder == "little" else parts[::-1]
