"""The order of a score, planned ahead: what is read side by side, and when a policy may learn.

A segment is a run of targets that is read from left to right with a state of its own: the whole
stream, one of its documents, or a stretch of it. Segments of one group are read side by side, a
round for every chunk between updates. Three documents that learn after each chunk:

                 round 0        round 1        round 2
    segment 0    |-- chunk 0 --|-- chunk 1 --|-- chunk 2 -|
    segment 1    |-- chunk 0 --|-- chunk 1 -|
    segment 2    |-- chunk 0 -|
                               ^             ^
                               updates of    update of segment 0
                               segments 0, 1

The spans of a round, windows or steps of its chunks, are read in batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from segpt.config.score import Policy, ScoreSpec
from segpt.errors import ScoreError

from .windows import Indices, Spans, batched, head, plan

ROUND: Final = 64  # batches after which a score can be interrupted, where nothing is learnt
BASE: Final = -1  # the segment of updates that every segment learns from


class Segment(NamedTuple):
    """Targets ``first`` to ``stop``, read from token ``begin`` on, before ``first`` to warm up.

    ``floor`` is the first token that may be read: the document's, or the stream's.
    """

    begin: int
    first: int
    stop: int
    floor: int = 0


class Update(NamedTuple):
    """Targets of one segment that a learner is given once they have been scored."""

    segment: int
    first: int
    stop: int


class Round(NamedTuple):
    """Batches that are scored in order, and then updates.

    ``segments`` are those of a group that begins here, or empty if the group goes on.
    """

    segments: Sequence[Segment]
    batches: Sequence[Spans]
    updates: Sequence[Update] = ()


def schedule(
    starts: Indices,
    targets: int,
    context: int,
    spec: ScoreSpec,
    reach: int | None = None,
    processes: int = 1,
) -> list[list[Round]]:
    """Groups of rounds that score every target once.

    Groups follow each other, or, if the policy ``resets``, run in any order.

    Args:
        starts: (documents,) the tokens that start documents, the first of them 0.
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
    policy = spec.policy
    documents = _documents(starts, targets, spec)
    segments = documents if spec.boundaries == "document" else [Segment(0, 0, targets)]
    if policy.update_interval is None:
        if spec.mode == "strided":
            return _windows(segments, context, spec, processes)
        if spec.boundaries == "stream":
            stretches = _stretches(targets, context, reach, processes)
            return [_rolled([stretch], context, spec) for stretch in stretches]
        return [_rolled(group, context, spec) for group in _side_by_side(segments, spec.batch)]
    if policy.documents_at_once is None:
        # The end of a document teaches the next one, that of the text nobody.
        return [
            _rounds([segment], context, spec, ends=segment.stop < targets) for segment in segments
        ]
    groups: list[list[Round]] = []
    for phase in _phases(documents, targets, policy.review_fractions):
        *others, last = _side_by_side(phase, policy.documents_at_once)
        stop = phase[-1].stop
        review = [Update(BASE, 0, stop)] if stop < targets else []
        groups += [_rounds(group, context, spec) for group in others]
        groups.append(_rounds(last, context, spec, review=review))
    return groups


def progress(first: int, targets: int, policy: Policy) -> float:
    """How far through the chunks of a stream one lies: 0 for the first, 1 for the last."""
    size = policy.update_interval
    if size is None:
        return 0.0
    return (first // size) / max(1, -(-targets // size) - 1)


def window_of(target: int, segment: Segment, context: int, stride: int) -> int:
    """The first target of the window that scores a target of the segment."""
    reach = head(context, stride, segment.first, segment.floor)
    offset = target - segment.first
    return segment.first + (0 if offset < reach else offset - (offset - reach) % stride)


def _documents(starts: Indices, targets: int, spec: ScoreSpec) -> list[Segment]:
    """Each document, with the start of the next one as its last target."""
    ends = [*starts[1:].tolist(), targets]
    apart = spec.boundaries == "document"
    if spec.mode == "rolling" and not apart and spec.policy.per_document:
        raise ScoreError(
            "adapters of a document cannot roll over from the one before it; choose document "
            "boundaries, or strided windows"
        )
    return [
        Segment(first, first, stop, first if apart else 0)
        for first, stop in zip(starts.tolist(), ends, strict=True)
        if stop > first
    ]


def _side_by_side(segments: Sequence[Segment], width: int) -> Iterator[Sequence[Segment]]:
    """Groups of segments of similar length, longest first, so that those still read come first."""
    ordered = sorted(segments, key=lambda segment: segment.begin - segment.stop)
    for i in range(0, len(ordered), width):
        yield ordered[i : i + width]


def _windows(
    segments: Sequence[Segment], context: int, spec: ScoreSpec, processes: int
) -> list[list[Round]]:
    """Windows of frozen weights, which share nothing: those of a like length together."""
    spans = _joined([_spans(segments, row, context, spec) for row in range(len(segments))])
    if len(segments) > 1:
        order = np.lexsort([-spans.shapes[:, 1], -spans.shapes[:, 0]])
        ordered = spans[order]
        batches = [ordered[slice(i, i + spec.batch)] for i in range(0, len(spans), spec.batch)]
    else:
        batches = list(batched(spans, spec.batch))
    size = min(ROUND, -(-len(batches) // processes))
    return [[Round(segments, batches[i : i + size])] for i in range(0, len(batches), size)]


def _stretches(targets: int, context: int, reach: int | None, processes: int) -> list[Segment]:
    """A stretch for each process, which begins early enough for its first targets to be exact."""
    if reach is None:
        return [Segment(0, 0, targets)]
    length = max(-(-targets // processes), 4 * reach, context)
    return [
        Segment(max(0, first - reach), first, min(first + length, targets))
        for first in range(0, targets, length)
    ]


def _rolled(segments: Sequence[Segment], context: int, spec: ScoreSpec) -> list[Round]:
    """The steps of a group that learns nothing, some to a round."""
    batches = _steps([_spans(segments, row, context, spec) for row in range(len(segments))])
    return [
        Round(() if i else segments, batches[i : i + ROUND]) for i in range(0, len(batches), ROUND)
    ]


def _rounds(
    segments: Sequence[Segment],
    context: int,
    spec: ScoreSpec,
    *,
    ends: bool = False,
    review: Sequence[Update] = (),
) -> list[Round]:
    """A round for each chunk number: that chunk of every segment which is so long, then updates.

    Args:
        segments: those of the group.
        context: tokens per window, or those that attention looks back over.
        spec: how to read, and the policy.
        ends: whether the last chunk of a segment teaches something, too.
        review: updates after those of the last round.
    """
    chunks = [_chunks(segments, row, context, spec) for row in range(len(segments))]
    rounds: list[Round] = []
    for number in range(max(map(len, chunks))):
        parts = {row: spans[number] for row, spans in enumerate(chunks) if number < len(spans)}
        updates = [
            Update(row, part.first, part.stop)
            for row, part in parts.items()
            if ends or part.stop < segments[row].stop
        ]
        rounds.append(Round(() if number else segments, _batches([*parts.values()], spec), updates))
    *before, last = rounds
    return [*before, last._replace(updates=[*last.updates, *review])]


def _chunks(segments: Sequence[Segment], row: int, context: int, spec: ScoreSpec) -> list[Spans]:
    """The spans of a segment by chunk: a window belongs to that of the first target it scores."""
    size = spec.policy.update_interval
    assert size is not None
    spans = _spans(segments, row, context, spec, size)
    number = (spans.start - segments[row].first) // size
    return [spans[np.flatnonzero(number == n)] for n in np.unique(number)]


def _batches(parts: Sequence[Spans], spec: ScoreSpec) -> list[Spans]:
    """Spans of several segments as they are read: a step of each at a time, or windows in order."""
    return _steps(parts) if spec.mode == "rolling" else list(batched(_joined(parts), spec.batch))


def _phases(
    documents: Sequence[Segment], targets: int, fractions: Sequence[float]
) -> Iterator[Sequence[Segment]]:
    """Runs of documents, each ending with the first that completes a fraction of the targets."""
    stops = np.array([segment.stop for segment in documents])
    ends = [int(np.searchsorted(stops, f * targets)) + 1 for f in fractions]
    for i, j in pairwise([0, *ends, len(documents)]):
        if j > i:
            yield documents[i:j]


def _spans(
    segments: Sequence[Segment], row: int, context: int, spec: ScoreSpec, chunk: int | None = None
) -> Spans:
    """The windows of a segment, or the steps in which it rolls: never over the border of a chunk.

    A step is as long as makes a batch of those of all segments. With chunks of 5 and steps of 2,
    in a segment that begins with token 0, whose first target is 3 and that stops before 13:

        read      0  1 | 2  3 | 4    5  6 | 7  8 | 9    10 11 | 12
        scored               3 | 4    5  6 | 7  8 | 9    10 11 | 12
    """
    segment = segments[row]
    if spec.mode == "strided":
        windows = plan(
            segment.stop - segment.first, context, spec.stride, segment.first, segment.floor
        )
        return replace(windows, segment=np.full(len(windows), row))
    step = context * max(1, spec.batch // len(segments))
    chunk = chunk or step
    length = segment.stop - segment.begin
    # (chunks, steps of a chunk), of which the last chunk may have fewer
    offsets = np.arange(0, length, chunk)[:, None] + np.arange(0, chunk, min(chunk, step))
    begin = segment.begin + offsets[offsets < length]
    end = np.append(begin[1:], segment.stop)
    start = np.minimum(np.maximum(begin, segment.first), end)
    return Spans(begin, start, end, np.full(len(begin), row))


def _steps(segments: Sequence[Spans]) -> list[Spans]:
    """Step k of every segment that has one, segments in order, for each k."""
    return [
        _joined([spans[slice(k, k + 1)] for spans in segments if k < len(spans)])
        for k in range(max(map(len, segments)))
    ]


def _joined(parts: Sequence[Spans]) -> Spans:
    return Spans(
        np.concatenate([part.begin for part in parts]),
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.segment for part in parts]),
    )
