"""Asymmetric numeral systems: symbols to bytes at their ideal code length (arXiv 1311.2540).

Integers only. Symbols come in steps of up to ``lanes``, symbol i of a step belonging to lane i,
so that one step of the loop serves a whole row of symbols. The state of a lane is 32 bits and
lies in [2^16, 2^32); it moves in words of 16 bits. A symbol has a frequency out of 2^14 in its
table, and the symbols of a table are laid out by rising value.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError

from . import loops
from .loops import GRID, LOWEST, ODD, OFFSET, PRECISION, SYMBOL, WORD, Integers

TOTAL = 1 << PRECISION
SYMBOLS = 256
MOST_LANES = 4096
_FEW_LANES = 8  # up to which Python itself encodes faster than calls of numpy


class Walk:
    """Machines that choose the odd or the even table of a pair by the parities of the symbols.

    ``starts`` has the path on which each begins, by its number of states; ``following`` leads from
    path to path (see :mod:`.loops`).
    """

    def __init__(self, machines: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> None:
        """``machines`` gives the grid (states,) and successors (states, 2) by number of states."""
        self.following = np.zeros(2 * ODD, np.int64)
        self.starts: dict[int, int] = {}
        first = 0
        for states, (grid, following) in machines.items():
            paths = first + np.arange(states) + GRID * grid.astype(np.int64)
            for parity in (0, 1):
                self.following[paths + ODD * parity] = paths[following[:, parity]]
            self.starts[states] = int(paths[0])
            first += states


class RansEncoder:
    """Takes symbols in reverse, the last step first.

    ``tables`` is (tables, 256); each row sums to 2^14.
    """

    def __init__(self, tables: NDArray[np.uint16], lanes: int) -> None:
        wide = tables.astype(np.int64)
        self._frequencies = wide.ravel()
        self._starts = (np.cumsum(wide, axis=1) - wide).ravel()
        self._states = np.full(lanes, LOWEST, np.int64)
        self._emitted: list[NDArray[np.uint16]] = []

    def write(self, keys: Integers) -> None:
        """Encode the steps ``keys`` (steps, width), from the last one back to the first.

        A key is the number of a table, times 256, plus the symbol.

        Raises:
            ArtifactError: if a symbol has frequency 0 in its table.
        """
        frequencies, starts = self._frequencies[keys], self._starts[keys]
        if not frequencies.all():
            raise ArtifactError("a symbol to encode has no place in the table of its class")
        if keys.shape[1] <= _FEW_LANES:
            self._write_some(frequencies, starts)
            return
        states = self._states[: keys.shape[1]]
        limits, rests = frequencies << (32 - PRECISION), TOTAL - frequencies
        steps = (limits[::-1], frequencies[::-1], rests[::-1], starts[::-1])
        for limit, f, rest, start in zip(*steps, strict=True):
            full = states >= limit
            self._emitted.append(states[full].astype("<u2"))
            np.right_shift(states, WORD, out=states, where=full)
            # The quotient goes up by the precision, and the remainder stays.
            quotient = states // f
            quotient *= rest
            states += quotient
            states += start

    def _write_some(self, frequencies: Integers, starts: Integers) -> None:
        """The same in few lanes, where a call of numpy takes longer than what it calculates."""
        width = frequencies.shape[1]
        states, words = self._states[:width].tolist(), list[int]()
        back = frequencies.ravel()[::-1].tolist(), starts.ravel()[::-1].tolist()
        lanes = itertools.cycle(range(width - 1, -1, -1))
        for f, start, lane in zip(*back, lanes, strict=False):
            x = states[lane]
            if x >= f << (32 - PRECISION):
                words.append(x & 0xFFFF)
                x >>= WORD
            states[lane] = (x // f << PRECISION) + x % f + start
        self._states[:width] = states
        self._emitted.append(np.array(words[::-1], "<u2"))

    def finish(self) -> bytes:
        """The final state of every lane as uint32, then the words in the order of decoding."""
        words = np.concatenate([np.empty(0, "<u2"), *self._emitted[::-1]])
        return self._states.astype("<u4").tobytes() + words.tobytes()


class RansDecoder:
    """Gives symbols back in order; the inverse of :class:`RansEncoder`.

    ``tables`` is (tables, 256); each row sums to 2^14. How many ``steps`` will be read decides
    which loop reads them (see :mod:`.loops`).

    Raises:
        ArtifactError: from any method, if ``data`` is not what an encoder makes.
    """

    def __init__(self, data: bytes, tables: NDArray[np.uint16], lanes: int, steps: int = 0) -> None:
        head = 4 * lanes
        if len(data) < head or (len(data) - head) % 2:
            raise ArtifactError(
                f"a stream of {len(data)} bytes does not hold {lanes} lanes and words"
            )
        self._states = np.frombuffer(data, "<u4", lanes).astype(np.int64)
        if self._states.min(initial=LOWEST) < LOWEST:
            raise ArtifactError("a lane of the code stream starts in a state that none reaches")
        self._words = np.frombuffer(data, "<u2", offset=head).astype(np.uint16, copy=False)
        self._entries = _entries(tables)
        self._loop = loops.choose(steps)

    def read(
        self, bases: Integers, walk: Walk | None = None, paths: Integers | None = None
    ) -> NDArray[np.uint8]:
        """The symbols of the steps ``bases`` (steps, width), where width is at most the lanes.

        A base is the number of a table, times 2^14. With a ``walk`` it is that of the first
        table of a pair, and ``paths`` (width,) moves along. The time depends on the shape alone.
        """
        symbols = np.empty(bases.shape, np.uint8)
        taken = self._loop(
            bases,
            symbols,
            self._states[: bases.shape[1]],
            self._words,
            self._entries,
            _NONE if walk is None else walk.following,
            _NONE if paths is None else paths,
        )
        if taken < 0:
            raise ArtifactError("the code stream is truncated")
        self._words = self._words[taken:]
        return symbols

    def finish(self) -> None:
        """Check that every word is consumed and every lane is back where it began."""
        if left := len(self._words):
            raise ArtifactError(f"the code stream has {2 * left} bytes left over")
        if (self._states != LOWEST).any():
            raise ArtifactError("the code stream is corrupt: a lane does not end where it began")


def _entries(tables: NDArray[np.uint16]) -> Integers:
    """What a step looks up for every table and value of the low bits, (tables * 2^14,)."""
    entries = np.empty((len(tables), TOTAL), np.int64)
    symbols = np.arange(SYMBOLS)
    packed = ODD * (symbols & 1) + (symbols << SYMBOL)
    offsets = np.arange(TOTAL) << OFFSET
    for row, table in zip(entries, tables.astype(np.int64), strict=True):
        starts = np.cumsum(table) - table
        np.add(np.repeat(packed + table - (starts << OFFSET), table), offsets, out=row)
    return entries.ravel()


_NONE = np.empty(0, np.int64)
