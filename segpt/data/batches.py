"""Blocks of ids for training, a pure function of seed and step, and in sequence for scoring."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segpt.errors import DataError

from .tokens import Stream

Order = Literal["shuffled", "sequential"]


class Blocks:
    """Blocks of a stream, by number, in an order that depends on nothing but the seed.

    An epoch cuts the stream into blocks that do not overlap and visits each once. Shuffled, each
    epoch draws its own order and, so that no border stays where it was, its own place to begin
    cutting; fewer than two blocks of the stream are left out, others each time. In sequence, every
    epoch cuts from the first token on and leaves out what does not fill a block at the end.
    """

    def __init__(self, stream: Stream, context: int, seed: int, order: Order = "shuffled") -> None:
        """Cut ``stream`` into blocks of ``context`` targets.

        Raises:
            DataError: if the stream is shorter than one block.
        """
        _check(stream, context)
        self.stream, self.context, self.seed, self.order = stream, context, seed, order
        self.targets = len(stream) - 1
        if order == "sequential":
            self.epoch_blocks, self._phases = self.targets // context, 1
        else:
            # One block less than fit leaves room for every phase; a short text has less room.
            self.epoch_blocks = max(1, (self.targets + 1) // context - 1)
            self._phases = self.targets - self.epoch_blocks * context + 1
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """The batch of a step, (size, context + 1): inputs are [:, :-1] and targets [:, 1:].

        Steps count from 0 and all take the same ``size``; a batch may begin in one epoch and end
        in the next.
        """
        return self.take(step * size, size)

    def take(self, first: int, count: int) -> NDArray[np.int64]:
        """Blocks number ``first`` and on, (count, context + 1), as in :meth:`batch`."""
        return self.read(self.places(first, count))

    def read(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The blocks at these places, as :meth:`places` names them."""
        starts = places[:, 1].tolist()
        return np.stack([self.stream.slice(i, i + self.context + 1) for i in starts])

    def places(self, first: int, count: int) -> NDArray[np.int64]:
        """Epoch and first token of blocks number ``first`` and on, (count, 2)."""
        pairs = np.empty((count, 2), np.int64)
        for row, index in enumerate(range(first, first + count)):
            epoch, position = divmod(index, self.epoch_blocks)
            if epoch != self._epoch:
                self._starts = self._drawn(epoch)
                self._epoch = epoch
            pairs[row] = epoch, self._starts[position]
        return pairs

    def has_enough(self, blocks: int) -> bool:
        """Whether so many blocks repeat no target."""
        return blocks <= self.epoch_blocks

    def check_enough(self, blocks: int) -> None:
        """Refuse to take so many blocks if that would repeat a target.

        Raises:
            DataError: naming how many tokens are missing.
        """
        missing = (blocks - self.epoch_blocks) * self.context
        if missing > 0:
            raise DataError(
                f"a run of {blocks * self.context:,} tokens that takes none of them twice needs "
                f"{missing:,} more than the {self.epoch_blocks * self.context:,} that the text "
                "gives in whole blocks; train for fewer steps, give more text, or set "
                "train.unique=false"
            )

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """Where the blocks of an epoch start, in the order of visiting."""
        if self.order == "sequential":
            return self.context * np.arange(self.epoch_blocks, dtype=np.int64)
        generator = np.random.default_rng([self.seed, epoch])
        phase = int(generator.integers(self._phases))
        return phase + self.context * generator.permutation(self.epoch_blocks)


def sequential(
    stream: Stream, context: int, tokens: int, *, rest: bool = False
) -> Iterator[NDArray[np.int64]]:
    """The first ``tokens`` targets in blocks (context + 1,) that share one id with the next.

    No more than the stream has. Whole blocks only, and at least one, unless the ``rest``, which
    fills none, makes a shorter last one.

    Raises:
        DataError: if the stream is shorter than one block.
    """
    _check(stream, context)
    most = min(tokens, len(stream) - 1)
    if rest:
        starts = range(0, most, context)
        return (stream.slice(i, min(i + context, most) + 1) for i in starts)
    blocks = max(1, most // context)
    return (stream.slice(i * context, (i + 1) * context + 1) for i in range(blocks))


def _check(stream: Stream, context: int) -> None:
    if len(stream) <= context:
        raise DataError(
            f"{len(stream)} tokens are less than one block of {context} + 1; give more text or "
            "choose a shorter context"
        )


def in_chunks(split: str, tokens: int, most: int, context: int) -> str:
    """What a figure is of that was measured on the first ``most`` of the tokens of a split."""
    count = min(most, tokens - 1)
    return f"the first {count:,} tokens of the {split} split, in chunks of {context:,}"
