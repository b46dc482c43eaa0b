"""Which blocks of a text a run has trained on: proof that none was taken twice in an epoch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.config.run_about import Coverage
from segpt.errors import DataError
from segpt.values import arrays_digest


class BlockRun(NamedTuple):
    """Targets ``first`` to ``stop`` of the text, all trained on in ``epoch``."""

    epoch: int
    first: int
    stop: int


class CoverageLog:
    """Every block that a run has trained on, by epoch and place.

    Blocks of one epoch whose places differ by multiples of the context overlap only if they are the
    same, so that a bit per block proves that no target was trained on twice.
    """

    def __init__(self, targets: int, context: int, epoch_blocks: int) -> None:
        """Nothing is trained on of a text of so many ``targets``.

        Args:
            targets: of the whole text.
            context: targets of a block.
            epoch_blocks: how many blocks an epoch cuts.
        """
        self.targets, self.context, self.epoch_blocks = targets, context, epoch_blocks
        self.blocks, self.in_order = 0, True
        self._epoch, self._phase, self._last = 0, 0, -1
        self._taken = np.zeros(targets // context, np.bool_)
        self._closed: list[BlockRun] = []

    @property
    def tokens(self) -> int:
        """How many targets were trained on, repeats included."""
        return self.blocks * self.context

    def record(self, places: NDArray[np.int64]) -> None:
        """Take in blocks that are trained on, (blocks, 2) of epoch and first target.

        Raises:
            DataError: if a target was trained on in the same epoch before, or a block is of an
                epoch that is over, or does not lie in the text.
        """
        if len(places) and (places[0, 0] < self._epoch or (np.diff(places[:, 0]) < 0).any()):
            raise DataError(f"a block of an epoch before {self._epoch}, which is over, came again")
        for epoch in np.unique(places[:, 0]).tolist():
            if epoch != self._epoch:
                self._close()
                self._epoch = epoch
            self._take(places[places[:, 0] == epoch, 1])

    def runs(self) -> list[BlockRun]:
        """What was trained on, by epoch, in stretches without a gap."""
        edges = np.flatnonzero(np.diff(np.pad(self._taken.astype(np.int8), 1)))
        stretches = self._phase + self.context * edges.reshape(-1, 2)
        return [
            *self._closed,
            *(BlockRun(self._epoch, *map(int, stretch)) for stretch in stretches),
        ]

    def times(self) -> dict[int, int]:
        """How many targets of the text were trained on how often."""
        runs = np.array(self.runs(), np.int64).reshape(-1, 3)
        places = np.concatenate([[0], runs[:, 1], runs[:, 2], [self.targets]])
        changes = np.repeat([0, 1, -1, 0], [1, len(runs), len(runs), 1])
        order = np.argsort(places, kind="stable")
        depths = np.cumsum(changes[order])[:-1]
        lengths = np.diff(places[order])
        targets_by_times = {int(d): int(lengths[depths == d].sum()) for d in np.unique(depths)}
        return {often: targets for often, targets in targets_by_times.items() if targets}

    @property
    def left_out(self) -> int:
        """How many targets the cuts of the epochs that are over left out, summed over epochs."""
        covered: dict[int, int] = {}
        for run in self.runs():
            covered[run.epoch] = covered.get(run.epoch, 0) + run.stop - run.first
        whole = self.epoch_blocks * self.context
        over = [n for epoch, n in covered.items() if epoch < self._epoch or n >= whole]
        return sum(self.targets - n for n in over)

    @property
    def digest(self) -> str:
        """SHA-256 over what was trained on, which does not depend on the sizes of batches."""
        runs = np.array(self.runs(), np.int64).reshape(-1, 3)
        text = np.array([self.targets, self.context], np.int64)
        return arrays_digest({"runs": runs, "text": text})

    def coverage(self) -> Coverage:
        """What a checkpoint says of it."""
        times = self.times()
        return Coverage(
            tokens=self.tokens,
            blocks=self.blocks,
            epochs=self.tokens / self.targets,
            distinct=self.targets - times.get(0, 0),
            times={str(often): targets for often, targets in sorted(times.items())},
            left_out=self.left_out,
            in_order=self.in_order,
            digest=self.digest,
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs, as named arrays."""
        now = [self.blocks, self.in_order, self._epoch, self._phase, self._last]
        return {
            "ledger|now": np.array(now, np.int64),
            "ledger|taken": np.packbits(self._taken),
            "ledger|closed": np.array(self._closed, np.int64).reshape(-1, 3),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to where :meth:`state` was taken, on the same text."""
        self.blocks, ordered, self._epoch, self._phase, self._last = state["ledger|now"].tolist()
        self.in_order = bool(ordered)
        self._taken = np.unpackbits(state["ledger|taken"], count=len(self._taken)).astype(np.bool_)
        self._closed = [BlockRun(*run) for run in state["ledger|closed"].tolist()]

    def _take(self, starts: NDArray[np.int64]) -> None:
        if not self._taken.any():
            self._phase = int(starts[0]) % self.context
        if starts.min() < 0 or starts.max() + self.context > self.targets:
            raise DataError(f"a block does not lie in the text of {self.targets:,} targets")
        index = starts // self.context
        fresh = np.zeros(len(index), np.bool_)
        fresh[np.unique(index, return_index=True)[1]] = True
        twice = self._taken[index] | ~fresh | (starts % self.context != self._phase)
        if twice.any():
            raise DataError(
                f"targets from {int(starts[twice.argmax()]):,} on would be trained on twice in "
                f"epoch {self._epoch}"
            )
        self.in_order &= bool((np.diff(np.concatenate([[self._last], starts])) > 0).all())
        self._last = int(starts[-1])
        self._taken[index] = True
        self.blocks += len(starts)

    def _close(self) -> None:
        self._closed = self.runs()
        self._taken[:] = False
        self._last = -1
