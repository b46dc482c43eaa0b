"""Blocks of ids for training, a pure function of seed and step, and in sequence for scoring."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError

from .tokens import Stream


class Blocks:
    """Batches of blocks in a shuffled order that depends on nothing but the seed.

    An epoch cuts the stream into blocks that do not overlap and visits each once. Each epoch
    draws its own order and, so that no border stays where it was, its own place to begin
    cutting; fewer than two blocks of the stream are left out, others each time.
    """

    def __init__(self, stream: Stream, context: int, seed: int) -> None:
        """Cut ``stream`` into blocks of ``context`` targets.

        Raises:
            DataError: if the stream is shorter than one block.
        """
        _check(stream, context)
        self.stream, self.context, self.seed = stream, context, seed
        targets = len(stream) - 1
        # One block less than fit leaves room for every phase; a short text has less room.
        self.epoch_blocks = max(1, (targets + 1) // context - 1)
        self._phases = targets - self.epoch_blocks * context + 1
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """The batch of a step, (size, context + 1): inputs are [:, :-1] and targets [:, 1:].

        Steps count from 0 and all take the same ``size``; a batch may begin in one epoch and end
        in the next.
        """
        rows = [self._block(index) for index in range(step * size, (step + 1) * size)]
        return np.stack(rows)

    def _block(self, index: int) -> NDArray[np.int64]:
        epoch, position = divmod(index, self.epoch_blocks)
        if epoch != self._epoch:
            self._starts = self._drawn(epoch)
            self._epoch = epoch
        start = int(self._starts[position])
        return self.stream.slice(start, start + self.context + 1)

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """Where the blocks of an epoch start, in the order of visiting."""
        generator = np.random.default_rng([self.seed, epoch])
        phase = int(generator.integers(self._phases))
        return phase + self.context * generator.permutation(self.epoch_blocks)


def sequential(stream: Stream, context: int, tokens: int) -> Iterator[NDArray[np.int64]]:
    """The first ``tokens`` targets in blocks (context + 1,) that share one id with the next.

    Whole blocks only: at least one, and no more than the stream has.

    Raises:
        DataError: if the stream is shorter than one block.
    """
    _check(stream, context)
    blocks = max(1, min(tokens, len(stream) - 1) // context)
    return (stream.slice(i * context, (i + 1) * context + 1) for i in range(blocks))


def _check(stream: Stream, context: int) -> None:
    if len(stream) <= context:
        raise DataError(
            f"{len(stream)} tokens are less than one block of {context} + 1; give more text or "
            "choose a shorter context"
        )
