"""Where every entry stands on its track: ranks, states, the Pareto front, and who advanced it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import statistics
from .entry import Baseline, Claim, Link, Record, State, Verification, figure
from .track import Track

STATES: tuple[State, ...] = ("claimed", "checked", "reproduced")

Ranked = Record | Claim | Baseline


class Advance(NamedTuple):
    """What a record added to its track when it was added.

    ``before`` is the best entry until then and ``gain`` by how much the record betters it, in
    units of the metric; ``p`` is how often chance alone gives such runs although the gain is no
    more than the track's margin. All are None for the first entry of a track. ``reason`` says in
    words why the record advances the track or does not.
    """

    made: bool
    before: str | None
    gain: float | None
    p: float | None
    reason: str


@dataclass(frozen=True)
class Standing:
    """An entry in the table of its track.

    Attributes:
        link: the entry in its place of the chain.
        rank: from 1; entries of the same value keep the order of the chain.
        value: what the track ranks by, in units of its metric.
        bytes: the size of the artifact; None for a baseline, and where a claim does not say.
        total: bits per byte if the artifact is counted as well as the coded text; None where
            either is not known.
        state: the best that verifications found.
        verifications: of this entry, in order.
        advance: of a record; None for claims and baselines.
        front: whether no other entry is as small and better, or smaller and as good.
    """

    link: Link
    rank: int
    value: float
    bytes: int | None
    total: float | None
    state: State
    verifications: tuple[Verification, ...]
    advance: Advance | None
    front: bool

    @property
    def entry(self) -> Ranked:
        entry = self.link.entry
        assert not isinstance(entry, Verification)
        return entry


def standings(tracks: Iterable[Track], links: Iterable[Link]) -> dict[str, list[Standing]]:
    """The rows of each track, by its name, the best first; a track without entries has none.

    Entries on a track that does not exist are left out.
    """
    chain = sorted(links, key=lambda link: link.number)
    return {track.name: _rows(track, chain) for track in tracks}


def state_of(verifications: Sequence[Verification]) -> State:
    """The best state that somebody found an entry in."""
    return max((v.state for v in verifications), key=STATES.index, default="claimed")


def values_of(entry: Ranked) -> tuple[float, ...]:
    """The figure of each run, or the only one that is known."""
    match entry:
        case Record():
            return figure(entry.runs).by_run
        case Claim():
            return entry.values or (entry.value,)
        case Baseline():
            return (entry.value,)


def size_of(entry: Ranked) -> int | None:
    """The bytes of the artifact, where there is one and they are known."""
    return None if isinstance(entry, Baseline) else entry.bytes


def total_of(entry: Ranked) -> float | None:
    """Bits per byte of the text if the artifact is counted too, where that is known.

    A compressor needs no artifact; its program is not counted.
    """
    match entry:
        case Record():
            return entry.bpb + 8 * entry.bytes / entry.runs[0].scores[0].bytes
        case Claim():
            return None
        case Baseline():
            return entry.value


def advance(track: Track, record: Record, earlier: Iterable[Ranked]) -> Advance:
    """Whether ``record`` advances its track, on which ``earlier`` entries stood before it.

    It does if it rests on as many runs as the track asks for and its mean is better than the best
    one before it by the track's margin or more, and a smaller gain is excluded at the track's
    significance: by Welch's test, or, if the figure before it is a single one, by a t-test of the
    runs against that. A track that asks for one run compares the means only.
    """
    runs = len(record.runs)
    if runs < track.seeds:
        short = f"it rests on {runs} of the {track.seeds} runs that {track.name} asks for"
    else:
        short = ""
    best = min(earlier, key=lambda entry: track.sign * entry.value, default=None)
    if best is None:
        reason = short or f"the first entry of {track.name}"
        return Advance(not short, None, None, None, reason)
    gain = track.sign * (best.value - record.value)
    p = _chance(track, best, record)
    reason = short or _hindrance(track, gain, p)
    made = not reason
    if made:
        reason = f"better than {best.name} by {gain:.4f}"
        reason += "" if p is None else f", p = {p:.2g}"
    return Advance(made, best.name, gain, p, reason)


def _hindrance(track: Track, gain: float, p: float | None) -> str:
    if gain <= 0:
        return f"it is worse by {-gain:.4f}" if gain else "it is no better"
    if gain < track.margin:
        return f"it is better by {gain:.4f}, where {track.name} asks for {track.margin:g}"
    if track.significance is not None and p is not None and p > track.significance:
        return f"chance explains its gain with p = {p:.2g}, above {track.significance:g}"
    return ""


def _chance(track: Track, best: Ranked, record: Record) -> float | None:
    """None where there is nothing to test: a single run, or runs without any spread."""
    if track.seeds < 2:
        return None
    before, after = ([track.sign * v for v in values_of(entry)] for entry in (best, record))
    if len(before) == 1:
        difference = statistics.paired(before * len(after), after)
    else:
        difference = statistics.welch(before, after)
    return None if difference is None else difference.p_beyond(track.margin)


def _rows(track: Track, chain: Sequence[Link]) -> list[Standing]:
    ours: list[tuple[Link, Ranked]] = []
    advances: dict[int, Advance] = {}
    verifications: dict[str, list[Verification]] = {}
    for link in chain:
        entry = link.entry
        if entry.track != track.name:
            continue
        if isinstance(entry, Verification):
            verifications.setdefault(entry.record, []).append(entry)
            continue
        if isinstance(entry, Record):
            advances[link.number] = advance(track, entry, [other for _, other in ours])
        ours.append((link, entry))
    ours.sort(key=lambda pair: (track.sign * pair[1].value, pair[0].number))
    front = _front([(size_of(entry), track.sign * entry.value) for _, entry in ours])
    return [
        Standing(
            link=link,
            rank=rank,
            value=entry.value,
            bytes=size_of(entry),
            total=total_of(entry),
            state=state_of(verifications.get(entry.name, [])),
            verifications=tuple(verifications.get(entry.name, [])),
            advance=advances.get(link.number),
            front=on_front,
        )
        for rank, ((link, entry), on_front) in enumerate(zip(ours, front, strict=True), 1)
    ]


def _front(points: Sequence[tuple[int | None, float]]) -> list[bool]:
    """Of each point, whether none that has a size dominates it; lower is better in both."""
    sized = [(size, value) for size, value in points if size is not None]
    return [
        size is not None
        and not any(s <= size and v <= value and (s, v) != (size, value) for s, v in sized)
        for size, value in points
    ]
