"""Arithmetic coding: symbols to bytes, each at the price of its own distribution.

A range coder in the manner of Martin (1979): integers only, 96 bits of range of which at least
64 are left for a symbol, frequencies out of 2^40. That is fine enough that the bytes and the
ideal differ by rounding up to whole bytes at the end of a stream, and by nothing else that shows.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt.errors import MessageError, ScoreError

PRECISION = 40
TOTAL = 1 << PRECISION

_BYTES = 12  # of the range
_WORD = 4  # bytes that move at once
_HIGHEST = 1 << 8 * _BYTES
_LOWEST = _HIGHEST >> 8 * _WORD

Cumulative = NDArray[np.int64]


def cumulative(logits: NDArray[np.floating[Any]]) -> Cumulative:
    """Frequencies for softmax(logits) as borders: symbol s is [c[s], c[s + 1]) of [0, 2^40).

    Every symbol has a frequency of at least 1, so that whatever comes can be coded; the most
    probable one takes what rounding leaves over. Equal logits give equal borders.

    Args:
        logits: (symbols,), up to a constant the logarithms of probabilities; -inf for 0.

    Raises:
        ScoreError: if the logits are not a distribution.
    """
    highest = float(logits.max())
    if not math.isfinite(highest):
        raise ScoreError(
            f"the model gives a token the logit {highest}; its weights are damaged or have "
            "diverged: use another artifact, or adapt.rate is too high"
        )
    shares = np.exp(logits.astype(np.float64) - highest)
    shares *= (TOTAL - len(shares)) / float(shares.sum())
    borders = np.zeros(len(shares) + 1, np.int64)
    frequencies = borders[1:]
    frequencies[:] = shares  # rounds down
    frequencies += 1
    frequencies[frequencies.argmax()] += TOTAL - int(frequencies.sum())
    return np.cumsum(borders, out=borders)


def price(borders: Cumulative, symbol: int) -> float:
    """The bits that ``symbol`` costs ideally under ``borders`` (symbols + 1,)."""
    return PRECISION - math.log2(int(borders[symbol + 1] - borders[symbol]))


class ArithmeticEncoder:
    """Takes symbols in the order in which the decoder gives them back."""

    def __init__(self) -> None:
        self._low, self._range = 0, _HIGHEST
        self._emitted = bytearray()

    def write(self, borders: Cumulative, symbol: int) -> None:
        """Encode ``symbol`` under the distribution that ``borders`` (symbols + 1,) describe."""
        begin, end = int(borders[symbol]), int(borders[symbol + 1])
        share = self._range >> PRECISION
        self._low += share * begin
        self._range = share * (end - begin)
        if self._low >= _HIGHEST:
            self._carry()
        while self._range < _LOWEST:
            self._emit(_WORD)
            self._range <<= 8 * _WORD

    def finish(self) -> bytes:
        """All bytes, the last of which are the fewest that name a number within the range."""
        low = self._low
        for count in range(_BYTES + 1):
            unit = 1 << 8 * (_BYTES - count)
            self._low = -(-low // unit) * unit
            if self._low < low + self._range:
                break
        if self._low >= _HIGHEST:
            self._carry()
        self._emit(count)
        return bytes(self._emitted)

    def _emit(self, count: int) -> None:
        self._emitted += self._low.to_bytes(_BYTES, "big")[:count]
        self._low = (self._low << 8 * count) % _HIGHEST

    def _carry(self) -> None:
        self._low -= _HIGHEST
        place = len(self._emitted) - 1
        while self._emitted[place] == 0xFF:
            self._emitted[place] = 0
            place -= 1
        self._emitted[place] += 1


class ArithmeticDecoder:
    """Gives symbols back, if it is shown the distributions that the encoder was shown.

    Shown others, or given other bytes, it gives other symbols until it notices; it always ends.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._used = data, 0
        self._offset, self._range = 0, _HIGHEST  # of the number in the bytes above the low end
        self._fill(_BYTES)

    def read(self, borders: Cumulative) -> int:
        """The next symbol, under the distribution that ``borders`` (symbols + 1,) describe.

        Raises:
            MessageError: if no encoder makes such bytes.
        """
        share = self._range >> PRECISION
        place = self._offset // share
        if place >= TOTAL:
            raise MessageError("the code stream is corrupt: it names no symbol")
        symbol = int(borders.searchsorted(place, side="right")) - 1
        begin, end = int(borders[symbol]), int(borders[symbol + 1])
        self._offset -= share * begin
        self._range = share * (end - begin)
        while self._range < _LOWEST:
            self._fill(_WORD)
            self._range <<= 8 * _WORD
        return symbol

    def finish(self) -> None:
        """Check that every byte is consumed.

        Raises:
            MessageError: if some are left over.
        """
        if (left := len(self._data) - self._used) > 0:
            raise MessageError(f"the code stream has {left:,} bytes left over")

    def _fill(self, count: int) -> None:
        """Take the next bytes; behind the last one lie zeros, but no more than one range."""
        word = self._data[self._used : self._used + count]
        self._used += count
        if self._used > len(self._data) + _BYTES:
            raise MessageError("the code stream is truncated")
        self._offset = self._offset << 8 * count | int.from_bytes(word.ljust(count, b"\0"), "big")
