"""The runtime ledger of a score: what has been scored, with which weights, and what was learnt."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.model.leaves import weights
from segpt.model.model import Model

from .windows import Spans


class Entry(NamedTuple):
    """Targets ``first`` to ``stop`` were scored or learnt from under a version of the weights."""

    event: Literal["score", "learn"]
    version: int
    first: int
    stop: int


class Frontier:
    """Holds a stream of tokens; what lies behind the frontier has been scored, once, in order.

    A single pass from left to right, every distribution made before its target is used for
    anything: whoever keeps to :meth:`score` and :meth:`learn` can do nothing else, and the
    weights are watched for changes in between.
    """

    def __init__(self, ids: NDArray[np.uint32], model: Model, first: int = 0) -> None:
        """Start before target ``first`` of ``ids``, with the weights that ``model`` has now."""
        self.ids, self.model = ids, model
        self.stop = first
        self.version = 0
        self.ledger: list[Entry] = []
        self._writes = self._count_writes()

    def score(self, windows: Spans) -> None:
        """Move over the targets of ``windows``, which are about to be scored.

        Raises:
            ScoreError: if one was scored before, one would be left out, or the weights have
                changed other than by learning from what was scored.
        """
        if windows.first < self.stop:
            raise ScoreError(f"target {windows.first} would be scored twice")
        if windows.first > self.stop:
            raise ScoreError(f"targets {self.stop} to {windows.first} would never be scored")
        if self._count_writes() != self._writes:
            raise ScoreError(
                f"the weights changed before target {self.stop} was scored, and not by learning "
                "from what was scored before"
            )
        self._record("score", windows.first, windows.stop)
        self.stop = windows.stop

    def tokens(self, first: int, stop: int) -> NDArray[np.uint32]:
        """The tokens that targets ``first`` to ``stop`` are predicted from, and these targets.

        Raises:
            ScoreError: if one of them has not been scored yet.
        """
        if stop > self.stop:
            raise ScoreError(
                f"learning from targets {first} to {stop}, of which those from {self.stop} on "
                "have not been scored"
            )
        self._record("learn", first, stop)
        return self.ids[first : stop + 1]

    def learnt(self) -> None:
        """Accept the changes that the learner has made to the weights since the last score."""
        self.version += 1
        self._writes = self._count_writes()

    def _record(self, event: Literal["score", "learn"], first: int, stop: int) -> None:
        entry = Entry(event, self.version, first, stop)
        if self.ledger and self.ledger[-1][:2] == entry[:2] and event == "score":
            entry = entry._replace(first=self.ledger.pop().first)
        self.ledger.append(entry)

    def _count_writes(self) -> int:
        """How often torch has seen the weights written to."""
        return sum(weight.tensor._version for weight in weights(self.model))
