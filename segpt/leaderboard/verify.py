"""Entries to verdicts: what a record or baseline claims is derived again and compared."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from segpt.config.base import encode, nearest
from segpt.errors import CheckError, SegptError, SpecError
from segpt.values import Text

from .check import check_all
from .entry import Baseline, Entry, Link, Record, Verification
from .fields import LONGEST_NAME
from .rescore import Bench, Report
from .store import Added, Board, append_entry, track_of
from .track_text import text_of
from .verdict import Verdict, Verifiable


def choose(board: Board, names: Sequence[str], *, remade: bool) -> list[Verifiable]:
    """The entries of these names, or all that can be verified; baselines are not made anew.

    Raises:
        SpecError: if there is no entry of a name, or nothing of it can be verified.
    """
    entries: dict[str, Entry] = {link.entry.name: link.entry for link in board.links}
    kinds = (Record,) if remade else (Record, Baseline)
    if not names:
        return [entry for entry in entries.values() if isinstance(entry, kinds)]
    chosen: list[Verifiable] = []
    for name in names:
        if name not in entries:
            raise SpecError(f"no entry is named {name!r}; {nearest(name, entries)}")
        entry = entries[name]
        if not isinstance(entry, Record | Baseline):
            raise SpecError(f"{name} is a {type(entry).__name__.lower()}: it names no artifact")
        chosen.append(entry)
    return chosen


def strangers(entries: Sequence[Verifiable], artifacts: Sequence[Path]) -> list[Path]:
    """Those of the files that are the artifact of no entry."""
    known = {run.artifact for entry in entries if isinstance(entry, Record) for run in entry.runs}
    return [path for path in artifacts if _digest(path) not in known]


def verify(
    directory: Path,
    board: Board,
    entries: Sequence[Verifiable],
    *,
    artifacts: Sequence[Path] = (),
    text: Path | None = None,
    remade: bool = False,
    device: str = "cpu",
    report: Report = lambda seconds, detail: None,
) -> Iterator[Verdict]:
    """Derive each entry again, in order; what is not at hand is said and does not stop the rest.

    Args:
        directory: the leaderboard, in which the texts of the tracks lie.
        board: what was read from it.
        entries: what to verify.
        artifacts: files that may be the artifacts of records.
        text: the text to score, where the track's own is not in the directory.
        remade: whether to make the artifacts of records anew, instead of looking for them.
        device: where to score.
        report: told about progress, of :func:`.duration.seconds_of` each entry.
    """
    paths = {_digest(path): path for path in artifacts}
    findings = check_all(board.tracks, board.links)
    files = {link.entry.name: link.file for link in board.links}
    texts: dict[str, Text | str] = {}
    for entry in entries:
        if entry.track not in texts:
            try:
                track = track_of(board.tracks, entry.track)
                track_text = text_of(directory, track, text)
                texts[entry.track] = track_text or "its text is not here; give it with --text"
            except SegptError as error:
                texts[entry.track] = str(error)
        text_or_why = texts[entry.track]
        if isinstance(text_or_why, str):
            verdict = Verdict(entry, (), missing=text_or_why)
        else:
            track = track_of(board.tracks, entry.track)
            bench = Bench(directory, track, text_or_why, device, report)
            verdict = bench.verify(entry, paths, remade=remade)
        opening = f"{files[entry.name]}: "
        wrong = [f.removeprefix(opening) for f in findings if f.startswith(opening)]
        together = tuple(dict.fromkeys((*wrong, *verdict.findings)))
        yield dataclasses.replace(verdict, findings=together)


def append(
    directory: Path, board: Board, verdict: Verdict, authors: Sequence[str], date: str
) -> Added:
    """Append to the chain what an entry was found to be.

    Raises:
        CheckError: if the verdict is not that it holds, or the chain is broken.
    """
    entry = verdict.entry
    if verdict.state is None or verdict.bpb is None:
        raise CheckError(f"{entry.name} was not verified, so nothing was added")
    made = Verification(
        name=_free_name(f"{verdict.state}-{entry.name}", board.links),
        track=entry.track,
        date=date,
        record=entry.name,
        authors=tuple(authors),
        state=verdict.state,
        artifact=verdict.artifact,
        bpb=verdict.bpb,
        conditions=encode(verdict.conditions),
    )
    # Others may have taken the name in the meantime.
    return append_entry(
        directory, lambda now: dataclasses.replace(made, name=_free_name(made.name, now.links))
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _free_name(wanted: str, links: Sequence[Link]) -> str:
    taken = {link.entry.name for link in links}
    name, number = wanted[:LONGEST_NAME].rstrip("-"), 1
    while name in taken:
        number += 1
        ending = f"-{number}"
        name = wanted[: LONGEST_NAME - len(ending)].rstrip("-") + ending
    return name
