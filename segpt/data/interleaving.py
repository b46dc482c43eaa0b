"""Which source of a mix each block is of.

After any number of blocks the number of those of each source is less than one away from its share:
the chairman assignment of Tijdeman (1980), in whole numbers, so that nothing is rounded in however
long a run.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from segpt.errors import DataError


class Interleaving:
    """Which source each block is of: at any prefix, less than one block from every share."""

    def __init__(self, shares: Sequence[Fraction], seed: int) -> None:
        """Begin before the first block; ``seed`` decides who comes first among equals."""
        self.whole = math.lcm(*(share.denominator for share in shares))
        self.parts = [int(share * self.whole) for share in shares]
        self._order = np.random.default_rng([seed, len(shares)]).permutation(len(shares)).tolist()
        self.position, self.counts = 0, [0] * len(shares)

    def go(self, position: int, counts: Sequence[int]) -> None:
        """Go to where so many blocks of each source were given out.

        Raises:
            DataError: if no prefix of the interleaving has these.
        """
        away = [p * position - n * self.whole for p, n in zip(self.parts, counts, strict=True)]
        if sum(counts) != position or any(abs(distance) >= self.whole for distance in away):
            raise DataError(
                f"{list(counts)} of {position} blocks are not what the shares of the mix give; "
                "the record is of another mix"
            )
        self.position, self.counts = position, list(counts)

    def next(self) -> int:
        """The source of the next block."""
        self.position += 1
        if len(self.parts) == 1:
            self.counts[0] += 1
            return 0
        fold = 2 * len(self.parts) - 2
        best, due = -1, 0
        for source in self._order:
            part = self.parts[source]
            behind = self.position * part - self.counts[source] * self.whole
            if fold * behind < self.whole:
                continue  # it would get ahead of its share
            left = (fold - 1) * self.whole - fold * behind  # over its part, until it must come
            if best < 0 or left * self.parts[best] < due * part:
                best, due = source, left
        self.counts[best] += 1
        return best
