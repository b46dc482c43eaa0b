"""Which tokens are read to score which target: every target once, with the promised context.

A stream of N + 1 tokens has N targets; target t is token t + 1, predicted from token t and those
before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Stretches of tokens, (spans,) each; number i reads tokens ``begin[i]`` to ``end[i]``.

    It scores targets ``start[i]`` to ``end[i]``, which may be none, and belongs to segment
    ``segment[i]`` of those that are read side by side (all to segment 0 if there are no segments).
    """

    begin: Indices
    start: Indices
    end: Indices
    segment: Indices = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def shapes(self) -> Indices:
        """Tokens read and targets scored by each span, (spans, 2)."""
        return np.stack([self.end - self.begin, self.end - self.start], 1)

    @property
    def targets(self) -> Indices:
        """The targets that are scored, (targets,), span after span."""
        return np.concatenate([np.arange(s, e) for s, e in zip(self.start, self.end, strict=True)])

    @property
    def first(self) -> int:
        return int(self.start[0])

    @property
    def stop(self) -> int:
        return int(self.end[-1])

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, which: slice | Indices) -> "Spans":
        segment = self.segment[which] if len(self.segment) else self.segment
        return Spans(self.begin[which], self.start[which], self.end[which], segment)


def plan(targets: int, context: int, stride: int, first: int = 0, floor: int = 0) -> Spans:
    """Windows that score ``targets`` targets (at least one) from ``first`` on, each once.

    A window that begins with the first target scores all it reads; each other one scores the
    next ``stride`` targets (the last may be short), each of which has more than
    ``context - stride`` tokens of context, as far as these go back to token ``floor``. Where a
    window begins does not depend on where the targets end: their predictor cannot know that.
    """
    reach = head(context, stride, first, floor)
    count = 1 + -(-max(0, targets - reach) // stride)
    end = reach + stride * np.arange(count, dtype=np.int64)
    begin = np.maximum(floor, first + end - context)
    end = np.minimum(end, targets) + first
    return Spans(begin, np.concatenate([[first], end[:-1]]), end)


def head(context: int, stride: int, first: int, floor: int) -> int:
    """How many targets the first window may score: all it reads, if nothing lies before it."""
    return context if first == floor else stride


def batched(spans: Spans, batch: int) -> Iterator[Spans]:
    """At most ``batch`` consecutive spans at a time, all of one shape."""
    changes = (np.diff(spans.shapes, axis=0) != 0).any(1)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(spans)]
    for i, j in pairwise(borders):
        for k in range(i, j, batch):
            yield spans[slice(k, min(j, k + batch))]
