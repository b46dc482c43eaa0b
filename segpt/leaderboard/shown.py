"""What ``segpt leaderboard show`` shows: the standings, and single entries in full."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from segpt.config.base import encode, nearest
from segpt.errors import SpecError

from . import store
from .entry import Baseline, Claim, Link, Record, Verification, figure
from .ranking import Standing
from .track import Track

UNITS = {"bpb": "BPB", "tokens": "tokens", "core": "CORE"}


class StandingsTable(NamedTuple):
    """The standings of a track, as cells and as JSON values."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    plain: Sequence[Mapping[str, Any]]


def tables(directory: Path, only: str | None) -> list[StandingsTable]:
    """The standings of every track, or of one.

    Raises:
        SpecError: if there is no such track.
    """
    board = store.read_board(directory)
    tracks = board.tracks if only is None else (store.track_of(board.tracks, only),)
    rows = board.standings()
    return [_table(track, rows[track.name]) for track in tracks]


def entry(directory: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """An entry as JSON values, and in words.

    Raises:
        SpecError: if there is none of this name.
    """
    board = store.read_board(directory)
    links = {link.entry.name: link for link in board.links}
    if name not in links:
        raise SpecError(f"no entry is named {name!r}; {nearest(name, links)}")
    link = links[name]
    rows = [row for table in board.standings().values() for row in table]
    row = next((row for row in rows if row.link == link), None)
    plain = {"file": link.file, "entry": encode(link.entry)}
    if row is not None:
        plain |= {"rank": row.rank, "state": row.state, "total": row.total, "front": row.front}
        plain["verifications"] = encode(row.verifications)
        plain["advance"] = None if row.advance is None else row.advance._asdict()
    return plain, [*_words(link, row)]


def _table(track: Track, rows: Sequence[Standing]) -> StandingsTable:
    unit = UNITS[track.metric]
    return StandingsTable(
        track.name,
        f"{track.name}, by {unit}: {'higher' if track.sign < 0 else 'lower'} is better",
        ("name", "rank", unit, "with artifact", "bytes", "policy", "state", "date"),
        [_cells(track, row) for row in rows],
        [_plain(row) for row in rows],
    )


def _cells(track: Track, row: Standing) -> list[str]:
    return [
        row.entry.name,
        str(row.rank),
        f"{row.value:,.0f}" if track.metric == "tokens" else f"{row.value:.4f}",
        "" if row.total is None else f"{row.total:.4f}",
        "" if row.bytes is None else f"{row.bytes:,}",
        _quoted(_policy(row)),
        row.state,
        row.entry.date,
    ]


def _policy(row: Standing) -> str:
    match row.entry:
        case Record():
            return figure(row.entry.runs).policy
        case Claim():
            return "claim"
        case Baseline():
            return row.entry.program


def _plain(row: Standing) -> dict[str, Any]:
    return {
        "name": row.entry.name,
        "rank": row.rank,
        "value": row.value,
        "total": row.total,
        "bytes": row.bytes,
        "policy": _policy(row),
        "state": row.state,
        "date": row.entry.date,
        "front": row.front,
        "file": row.link.file,
    }


def _words(link: Link, row: Standing | None) -> Iterator[str]:
    entry = link.entry
    yield f"{entry.name}, entry {link.number} on {entry.track}, of {entry.date}"
    if not isinstance(entry, Baseline):
        yield f"  by {_quoted(', '.join(entry.authors))}"
    if not isinstance(entry, Baseline | Verification) and entry.about:
        yield f"  {_quoted(entry.about)}"
    match entry:
        case Record():
            yield from _record(entry)
        case Claim():
            yield f"  claimed: {entry.value:g}, by {_quoted(entry.source)}"
        case Baseline():
            yield (
                f"  {entry.value:.4f} bits per byte: {_quoted(entry.program)} "
                f"({_quoted(entry.version)}) leaves {entry.compressed:,} of {entry.bytes:,} bytes"
            )
        case Verification():
            yield (
                f"  {entry.state}: {entry.bpb:.6f} bits per byte of {entry.record}, artifact "
                f"{entry.artifact or 'none'}"
            )
    if row is None:
        return
    yield f"  rank {row.rank}, {row.state}" + (", on the Pareto front" if row.front else "")
    if row.total is not None:
        yield f"  {row.total:.4f} bits per byte with the artifact counted"
    if row.advance is not None:
        verb = "advanced" if row.advance.made else "did not advance"
        yield f"  {verb} its track when it was added: {row.advance.reason}"
    for check in row.verifications:
        yield (
            f"  {check.state} on {check.date} by {_quoted(', '.join(check.authors))}: "
            f"{check.bpb:.6f} bits per byte"
        )


def _record(entry: Record) -> Iterator[str]:
    counts = figure(entry.runs)
    yield (
        f"  {entry.bpb:.6f} bits per byte under {_quoted(counts.policy)}, {entry.parameters:,} "
        f"parameters, segpt {_quoted(entry.segpt)}"
    )
    for run in entry.runs:
        seed = "" if run.seed is None else f", seed {run.seed}"
        yield f"  artifact {run.artifact}: {run.bytes:,} bytes{seed}"
        for line in run.scores:
            yield (
                f"    {_quoted(line.policy_kind)}: {line.bpb:.6f} bits per byte, "
                f"{line.tokens:,} tokens, {line.seconds:.0f} s"
            )
    yield "  sections of the artifact, in bytes:"
    yield from (f"    {_quoted(name)}: {size:,}" for name, size in entry.sections.items())
    yield "  lineage:"
    yield from (f"    {_quoted(what)}: {_quoted(of)}" for what, of in entry.origin.items())
    yield f"    text: {entry.runs[0].scores[0].text}"
    yield "  conditions of its first score:"
    for name, value in sorted(entry.runs[0].scores[0].conditions.items()):
        worded = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"    {_quoted(name)}: {_quoted(worded)}"
    if entry.recipe:
        yield "  recipe:"
        yield from (f"    {_quoted(line)}" for line in entry.recipe.splitlines())


def _quoted(text: str) -> str:
    """``text`` with everything escaped that a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
