"""Which window scores which target: every target once, with as much context as the stride allows.

A stream of N + 1 tokens has N targets; target t is token t + 1, predicted from token t and those
before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ScoreError
from segpt.spec.score import Frozen, ScoreSpec, Sgd


@dataclass(frozen=True)
class Spans:
    """Consecutive windows; window i reads the last ``context`` tokens before token ``end[i]``.

    It begins at token ``begin[i]``, and scores targets ``start[i]`` to ``end[i]``.
    """

    context: int
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def begin(self) -> NDArray[np.int64]:
        return np.maximum(0, self.end - self.context)

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Tokens read and targets scored by each window, (windows, 2)."""
        return np.stack([self.end - self.begin, self.end - self.start], 1)

    @property
    def first(self) -> int:
        return int(self.start[0])

    @property
    def stop(self) -> int:
        return int(self.end[-1])

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, windows: slice) -> "Spans":
        return Spans(self.context, self.start[windows], self.end[windows])


def plan(targets: int, context: int, stride: int) -> Spans:
    """Windows that score ``targets`` targets (at least one) in order, each once.

    The first window scores all it reads; each later one scores the next ``stride`` targets (the
    last may be short), each of which has more than ``context - stride`` tokens of context.
    """
    end = np.arange(min(context, targets), targets + stride, stride, dtype=np.int64)
    end = np.minimum(end, targets)
    return Spans(context, np.concatenate([[0], end[:-1]]), end)


def schedule(targets: int, context: int, spec: ScoreSpec) -> list[list[Spans]]:
    """The chunks between which a policy may learn, each as the batches of windows to score.

    A window belongs to the chunk of its first target, so that a policy changes no window.

    Raises:
        ScoreError: if the stride is longer than the context.
    """
    if spec.stride > context:
        raise ScoreError(
            f"a stride of {spec.stride} leaves gaps between windows of {context} tokens; "
            "choose a stride of at most the context"
        )
    windows = plan(targets, context, spec.stride)
    match spec.policy:
        case Frozen():
            runs = [windows]
        case Sgd(chunk=chunk):
            runs = list(_runs(windows, windows.start // chunk))
    return [list(batched(run, spec.batch)) for run in runs]


def batched(windows: Spans, batch: int) -> Iterator[Spans]:
    """At most ``batch`` consecutive windows at a time, all of one shape."""
    for run in _runs(windows, windows.shapes):
        for i in range(0, len(run), batch):
            yield run[i : i + batch]


def _runs(windows: Spans, keys: NDArray[np.int64]) -> Iterator[Spans]:
    """Split between windows of different keys, (windows,) or (windows, parts)."""
    changes = (np.diff(keys.reshape(len(windows), -1), axis=0) != 0).any(1)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(windows)]
    for i, j in pairwise(borders):
        yield windows[i:j]
