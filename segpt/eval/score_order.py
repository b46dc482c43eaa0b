"""The runtime ledger of a score: what has been scored, with which state, and what was learnt."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segpt.errors import ScoreError
from segpt.values import Arrays

from .schedule import BASE, Update
from .windows import Spans


class ScoreEvent(NamedTuple):
    """Targets ``first`` to ``stop`` of a segment were scored or learnt from, in ``version``."""

    event: Literal["score", "learn"]
    version: int
    segment: int
    first: int
    stop: int


class ScoreOrderGuard:
    """Holds a stream of tokens, and keeps who scores it from looking ahead.

    A target is scored once, by a state that has learnt only from targets before it, each of them
    scored by then: whoever keeps to :meth:`score` and :meth:`update` can do nothing else, and
    the tensors that make up the state are watched for changes in between.
    """

    def __init__(self, ids: NDArray[np.uint32], state: Iterable[Tensor] = ()) -> None:
        """Nothing of ``ids`` (targets + 1,) is scored; ``state`` is what predicts, as it is now."""
        self.ids = ids
        self.counts = np.zeros(len(ids) - 1, np.uint8)
        self.version = 0
        self.ledger: list[ScoreEvent] = []
        self._learnt: dict[int, int] = {BASE: 0}
        self._state = list(state)
        self._writes = self._count_writes()

    def open(self, state: Iterable[Tensor], *, persists: bool) -> None:
        """Segments begin; if the state ``persists``, with all that was learnt in segments before.

        ``state`` is every tensor that predicts from now on, of any shape.
        """
        self._learnt = {BASE: max(self._learnt.values() if persists else [self._learnt[BASE]])}
        self._state = list(state)
        self._writes = self._count_writes()

    def score(self, spans: Spans) -> None:
        """Move over the targets of ``spans``, which are about to be scored.

        Raises:
            ScoreError: if one was scored before, a state has learnt from it or from one after
                it, or the state has changed other than by learning from what was scored.
        """
        if self._count_writes() != self._writes:
            raise ScoreError(
                f"the weights changed before target {spans.first} was scored, and not by learning "
                "from what was scored before"
            )
        base = self._learnt[BASE]
        for segment, first, stop in zip(spans.segment, spans.start, spans.end, strict=True):
            if self.counts[first:stop].any():
                twice = first + int(np.flatnonzero(self.counts[first:stop])[0])
                raise ScoreError(f"target {twice} would be scored twice")
            if stop > first and max(base, self._learnt.get(int(segment), 0)) > first:
                raise ScoreError(
                    f"target {first} would be scored by a state that has learnt from later ones"
                )
            self.counts[first:stop] = 1
            self._record("score", int(segment), int(first), int(stop))

    def update(self, update: Update) -> NDArray[np.uint32]:
        """The tokens of an update, (targets + 1,): each is predicted from those before it.

        Raises:
            ScoreError: if one of them has not been scored yet.
        """
        segment, first, stop = update
        if not self.counts[first:stop].all():
            missing = first + int(np.flatnonzero(self.counts[first:stop] == 0)[0])
            raise ScoreError(
                f"learning from targets {first} to {stop}, of which {missing} has not been scored"
            )
        self._learnt[segment] = max(self._learnt.get(segment, 0), stop)
        self._record("learn", segment, first, stop)
        return self.ids[first : stop + 1]

    def learnt(self) -> None:
        """Accept the changes that the learner has made to the state since the last score."""
        self.version += 1
        self._writes = self._count_writes()

    def finish(self, counts: NDArray[np.integer]) -> None:
        """Prove that every target was scored once.

        Args:
            counts: how often each target was scored, by all processes together, (targets,).

        Raises:
            ScoreError: naming the first that was not.
        """
        if (odd := np.flatnonzero(counts != 1)).size:
            often = int(counts[odd[0]])
            raise ScoreError(
                f"target {int(odd[0])} was scored {often} times, and {odd.size:,} of "
                f"{len(counts):,} in all not once"
            )

    def state(self) -> dict[str, NDArray[Any]]:
        """What :meth:`restore` needs, as named arrays."""
        entries = [(e.event == "learn", *e[1:]) for e in self.ledger]
        return {
            "counts": self.counts.copy(),
            "version": np.array(self.version),
            "learnt": np.array(list(self._learnt.items()), np.int64),
            "ledger": np.array(entries, np.int64).reshape(-1, len(ScoreEvent._fields)),
        }

    def restore(self, state: Arrays, tensors: Iterable[Tensor]) -> None:
        """Go back to where these named arrays were taken; ``tensors`` are what predicts now."""
        self.counts = np.array(state["counts"], np.uint8)
        self.version = int(state["version"])
        self._learnt = {int(segment): int(stop) for segment, stop in state["learnt"]}
        self.ledger = [
            ScoreEvent("learn" if learn else "score", *map(int, entry))
            for learn, *entry in state["ledger"].tolist()
        ]
        self._state = list(tensors)
        self._writes = self._count_writes()

    def _record(
        self, event: Literal["score", "learn"], segment: int, first: int, stop: int
    ) -> None:
        if stop == first:
            return
        last = self.ledger[-1] if self.ledger else None
        entry = ScoreEvent(event, self.version, segment, first, stop)
        if last and last[:3] == entry[:3] and last.stop == first:
            entry = self.ledger.pop()._replace(stop=stop)
        self.ledger.append(entry)

    def _count_writes(self) -> int:
        """How often torch has seen the state written to."""
        return sum(tensor._version for tensor in self._state)
