"""The order of a score, planned ahead: what is read side by side, and when a policy may learn.

A lane is a run of targets that is read from left to right with a state of its own: the whole
stream, one of its documents, or a stretch of it. Lanes of one group are read side by side.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, assert_never

import numpy as np

from segpt.config.score import Frozen, InPlace, LowRank, Phased, Policy, ScoreSpec, Sgd
from segpt.errors import ScoreError

from .windows import Indices, Spans, batched, head, plan

ROUND: Final = 64  # batches after which a score can be interrupted, where nothing is learnt
BASE: Final = -1  # the lane of lessons that every lane learns from


class Lane(NamedTuple):
    """Targets ``first`` to ``stop``, read from token ``begin`` on, in which nothing is scored.

    ``floor`` is the first token that may be read: the document's, or the stream's.
    """

    begin: int
    first: int
    stop: int
    floor: int = 0


class Lesson(NamedTuple):
    """Targets of one lane that a learner is given once they have been scored."""

    lane: int
    first: int
    stop: int


class Round(NamedTuple):
    """Batches that are scored in order, and then lessons.

    ``lanes`` are those of a group that begins here, or empty if the group goes on.
    """

    lanes: Sequence[Lane]
    batches: Sequence[Spans]
    lessons: Sequence[Lesson] = ()


def schedule(
    starts: Indices,
    targets: int,
    context: int,
    spec: ScoreSpec,
    reach: int | None = None,
    processes: int = 1,
) -> list[list[Round]]:
    """Groups of rounds that score every target once.

    Groups follow each other, or, where :func:`shares` says so, run in any order.

    Args:
        starts: the tokens that start documents, the first of them 0.
        targets: the number of targets.
        context: tokens per window, or those that attention looks back over.
        spec: the mode, boundaries and policy.
        reach: how many tokens before its own a rolling state depends on; null if on all.
        processes: how many will share the groups.

    Raises:
        ScoreError: if the stride is longer than the context, or a policy for documents is to
            roll over their boundaries.
    """
    if spec.mode == "strided" and spec.stride > context:
        raise ScoreError(
            f"a stride of {spec.stride} leaves gaps between windows of {context} tokens; "
            "choose a stride of at most the context"
        )
    documents = _documents(starts, targets, spec)
    whole = documents if spec.boundaries == "document" else [Lane(0, 0, targets)]
    match spec.policy:
        case Frozen() | InPlace():
            if spec.mode == "strided":
                return _windows(whole, context, spec, processes)
            groups = _side_by_side(whole, spec.batch)
            if spec.boundaries == "stream":
                groups = ([lane] for lane in _stretches(targets, context, reach, processes))
            return [_rolled(lanes, context, spec) for lanes in groups]
        case Sgd(chunk=chunk):
            found = [_learning([lane], context, spec, chunk, persists=True) for lane in whole]
            found[-1][-1] = found[-1][-1]._replace(lessons=())
            return found
        case LowRank():
            return _adapted(documents, context, spec, spec.policy)
        case Phased(adapters=adapters, fractions=fractions):
            found = []
            for phase in _phases(documents, targets, fractions):
                found += _adapted(phase, context, spec, adapters)
                if (stop := phase[-1].stop) < targets:
                    last = found[-1][-1]
                    found[-1][-1] = last._replace(lessons=[*last.lessons, Lesson(BASE, 0, stop)])
            return found
        case _:
            assert_never(spec.policy)


def shares(policy: Policy) -> bool:
    """Whether processes can share the groups of a policy, as none depends on another."""
    return isinstance(policy, Frozen | InPlace | LowRank)


def progress(first: int, targets: int, policy: Policy) -> float:
    """How far through the chunks of a stream one lies: 0 for the first, 1 for the last."""
    match policy:
        case Sgd(chunk=size) | LowRank(chunk=size) | Phased(chunk=size):
            return (first // size) / max(1, -(-targets // size) - 1)
        case Frozen() | InPlace():
            return 0.0


def window_of(target: int, lane: Lane, context: int, stride: int) -> int:
    """The first target of the window that scores a target of the lane."""
    reach = head(context, stride, lane.first, lane.floor)
    offset = target - lane.first
    return lane.first + (0 if offset < reach else offset - (offset - reach) % stride)


def _documents(starts: Indices, targets: int, spec: ScoreSpec) -> list[Lane]:
    """Each document, with the start of the next one as its last target."""
    ends = [*starts[1:].tolist(), targets]
    apart = spec.boundaries == "document"
    if spec.mode == "rolling" and not apart and isinstance(spec.policy, LowRank | Phased):
        raise ScoreError(
            "adapters of a document cannot roll over from the one before it; choose document "
            "boundaries, or strided windows"
        )
    return [
        Lane(first, first, stop, first if apart else 0)
        for first, stop in zip(starts.tolist(), ends, strict=True)
        if stop > first
    ]


def _side_by_side(lanes: Sequence[Lane], width: int) -> Iterator[Sequence[Lane]]:
    """Groups of lanes of similar length, longest first, so that those still read come first."""
    ordered = sorted(lanes, key=lambda lane: lane.begin - lane.stop)
    for i in range(0, len(ordered), width):
        yield ordered[i : i + width]


def _windows(
    lanes: Sequence[Lane], context: int, spec: ScoreSpec, processes: int
) -> list[list[Round]]:
    """Windows of frozen weights, which share nothing: those of a like length together."""
    spans = _joined([_spans(lanes, row, context, spec) for row in range(len(lanes))])
    if len(lanes) > 1:
        order = np.lexsort([-spans.shapes[:, 1], -spans.shapes[:, 0]])
        ordered = spans[order]
        batches = [ordered[slice(i, i + spec.batch)] for i in range(0, len(spans), spec.batch)]
    else:
        batches = list(batched(spans, spec.batch))
    size = min(ROUND, -(-len(batches) // processes))
    return [[Round(lanes, batches[i : i + size])] for i in range(0, len(batches), size)]


def _stretches(targets: int, context: int, reach: int | None, processes: int) -> list[Lane]:
    """A stretch for each process, which begins early enough for its first targets to be exact."""
    if reach is None:
        return [Lane(0, 0, targets)]
    length = max(-(-targets // processes), 4 * reach, context)
    return [
        Lane(max(0, first - reach), first, min(first + length, targets))
        for first in range(0, targets, length)
    ]


def _rolled(lanes: Sequence[Lane], context: int, spec: ScoreSpec) -> list[Round]:
    batches = _steps([_spans(lanes, row, context, spec) for row in range(len(lanes))])
    return [
        Round(() if i else lanes, batches[i : i + ROUND]) for i in range(0, len(batches), ROUND)
    ]


def _adapted(
    documents: Sequence[Lane], context: int, spec: ScoreSpec, policy: LowRank
) -> list[list[Round]]:
    return [
        _learning(lanes, context, spec, policy.chunk, persists=False)
        for lanes in _side_by_side(documents, policy.documents)
    ]


def _learning(
    lanes: Sequence[Lane], context: int, spec: ScoreSpec, chunk: int, *, persists: bool
) -> list[Round]:
    """A round for each chunk of the lanes; what ends with a lane teaches it nothing more."""
    chunks: list[list[Spans]] = []
    lessons: list[list[Lesson]] = []
    for row, lane in enumerate(lanes):
        spans = _spans(lanes, row, context, spec, chunk)
        home = (spans.start - lane.first) // chunk
        for index, c in enumerate(np.unique(home)):
            part = spans[np.flatnonzero(home == c)]
            if index == len(chunks):
                chunks.append([])
                lessons.append([])
            chunks[index].append(part)
            if persists or part.stop < lane.stop:
                lessons[index].append(Lesson(row, part.first, part.stop))
    return [
        Round(
            () if i else lanes,
            _steps(parts) if spec.mode == "rolling" else list(batched(_joined(parts), spec.batch)),
            lesson,
        )
        for i, (parts, lesson) in enumerate(zip(chunks, lessons, strict=True))
    ]


def _phases(
    documents: Sequence[Lane], targets: int, fractions: Sequence[float]
) -> Iterator[Sequence[Lane]]:
    """Runs of documents, each ending with the first that completes a fraction of the targets."""
    stops = np.array([lane.stop for lane in documents])
    ends = [int(np.searchsorted(stops, f * targets)) + 1 for f in fractions]
    for i, j in pairwise([0, *ends, len(documents)]):
        if j > i:
            yield documents[i:j]


def _spans(
    lanes: Sequence[Lane], row: int, context: int, spec: ScoreSpec, chunk: int | None = None
) -> Spans:
    """The windows of a lane, or the steps in which it rolls: never over the border of a chunk.

    A step is as long as makes a batch of those of all lanes.
    """
    lane = lanes[row]
    if spec.mode == "strided":
        found = plan(lane.stop - lane.first, context, spec.stride, lane.first, lane.floor)
        begin, start, end = found.begin, found.start, found.end
    else:
        step = context * max(1, spec.batch // len(lanes))
        chunk = chunk or step
        offsets = np.arange(0, lane.stop - lane.begin, chunk)[:, None]
        inside = offsets + np.arange(0, chunk, min(chunk, step))
        begin = lane.begin + inside[inside < lane.stop - lane.begin]
        end = np.append(begin[1:], lane.stop)
        start = np.minimum(np.maximum(begin, lane.first), end)
    return Spans(begin, start, end, np.full(len(begin), row))


def _steps(lanes: Sequence[Spans]) -> list[Spans]:
    """Step k of every lane that has one, lanes in order, for each k."""
    return [
        _joined([spans[slice(k, k + 1)] for spans in lanes if k < len(spans)])
        for k in range(max(map(len, lanes)))
    ]


def _joined(parts: Sequence[Spans]) -> Spans:
    return Spans(
        np.concatenate([part.begin for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.lane for part in parts]),
    )
