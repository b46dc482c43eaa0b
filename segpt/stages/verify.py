"""Entries to verdicts: what a record or baseline claims is derived again and compared."""

import dataclasses
import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import segpt
from segpt.artifact import container
from segpt.artifact.opening import open_artifact
from segpt.board.check import READING, agrees
from segpt.data.text import text_digest
from segpt.errors import CheckError, SegptError, SpecError
from segpt.eval.tally import Progress
from segpt.spec.base import decode, nearest
from segpt.spec.score import ScoreSpec
from segpt.spec.track import (
    LONGEST_NAME,
    Baseline,
    Entry,
    Record,
    Run,
    ScoreLine,
    Track,
    Verification,
    figure,
)
from segpt.values import Text

from .compressors import compressed
from .pack import read_artifact
from .record import Added, Board, append_entry, text_of, track_of
from .remake import remake
from .score import account_for, score, source_of

Verifiable = Record | Baseline
Report = Callable[[float, str], None]  # told how many seconds' worth is done, and a detail

COMPRESSING, MAKING = 5.0, 300.0  # seconds, about

# What a record's commands may have made something else of than when it was added: a recipe is known
# by its name, and what ships under that name changes; the built-in text comes with Python.
OTHERS = {"recipe": "by another recipe", "tokens": "from other text"}


class Comparison(NamedTuple):
    """A figure that an entry claims, and the same derived again."""

    what: str
    claimed: float
    measured: float
    agrees: bool

    @property
    def difference(self) -> float:
        return self.measured - self.claimed


@dataclass(frozen=True)
class Verdict:
    """What came of an entry.

    Attributes:
        entry: what was verified.
        comparisons: of every figure that could be derived again.
        missing: why the others could not, empty if all could.
        bpb: the figure that counts, as it was measured; None if something is missing.
        artifact: the digest of what was scored, None of a baseline.
        remade: whether the artifact was made anew.
        conditions: where, and with which versions.
    """

    entry: Verifiable
    comparisons: tuple[Comparison, ...]
    missing: str = ""
    bpb: float | None = None
    artifact: str | None = None
    remade: bool = False
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def differs(self) -> bool:
        return not all(comparison.agrees for comparison in self.comparisons)

    @property
    def state(self) -> Literal["checked", "reproduced"] | None:
        """What the entry is found to be, None if it differs or something was missing."""
        if self.differs or self.bpb is None:
            return None
        return "reproduced" if self.remade else "checked"


def reading_of(line: ScoreLine) -> ScoreSpec:
    """How a text was scored: the inverse of what a score says of its spec.

    Raises:
        SpecError: if the line does not say all of it, or it is not sound.
    """
    if unsaid := sorted(set(READING) - line.conditions.keys()):
        raise SpecError(f"its conditions do not say {', '.join(unsaid)}; score it anew")
    policy = dict(line.policy)
    table = {name: line.conditions[name] for name in READING}
    if table["stride"] is None:  # of a rolling pass
        del table["stride"]
    return decode(ScoreSpec, table | {"ngram": policy.pop("ngram", None), "policy": policy})


def choose(board: Board, names: Sequence[str], *, remade: bool) -> list[Verifiable]:
    """The entries of these names, or all that can be verified; baselines are not made anew.

    Raises:
        SpecError: if there is no entry of a name, or nothing of it can be verified.
    """
    entries: dict[str, Entry] = {link.entry.name: link.entry for link in board.links}
    kinds = (Record,) if remade else (Record, Baseline)
    if not names:
        return [entry for entry in entries.values() if isinstance(entry, kinds)]
    found: list[Verifiable] = []
    for name in names:
        if name not in entries:
            raise SpecError(f"no entry is named {name!r}; {nearest(name, entries)}")
        entry = entries[name]
        if not isinstance(entry, Record | Baseline):
            raise SpecError(f"{name} is a {type(entry).__name__.lower()}: it names no artifact")
        found.append(entry)
    return found


def strangers(entries: Sequence[Verifiable], artifacts: Sequence[Path]) -> list[Path]:
    """Those of the files that are the artifact of no entry."""
    known = {run.artifact for entry in entries if isinstance(entry, Record) for run in entry.runs}
    return [path for path in artifacts if _digest(path) not in known]


def seconds_of(entry: Verifiable, *, remade: bool) -> float:
    """About how long it takes to verify an entry: as long as its scores took before."""
    if isinstance(entry, Baseline):
        return COMPRESSING
    return (
        _seconds(_counted(entry)) + MAKING
        if remade
        else sum(_seconds(r.scores) for r in entry.runs)
    )


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
        report: told about progress, of :func:`seconds_of` each entry.
    """
    paths = {_digest(path): path for path in artifacts}
    texts: dict[str, Text | str] = {}
    for entry in entries:
        if entry.track not in texts:
            try:
                track = track_of(board.tracks, entry.track)
                found = text_of(directory, track, text)
                texts[entry.track] = found or "its text is not here; give it with --text"
            except SegptError as error:
                texts[entry.track] = str(error)
        at_hand = texts[entry.track]
        if isinstance(at_hand, str):
            yield Verdict(entry, (), at_hand)
            continue
        bench = _Bench(track_of(board.tracks, entry.track), at_hand, device, report)
        try:
            if isinstance(entry, Baseline):
                yield bench.compress(entry)
            elif remade:
                yield bench.remake(entry)
            else:
                yield bench.check(entry, paths)
        except SegptError as error:
            yield Verdict(entry, (), str(error))


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
    return append_entry(
        directory,
        Verification(
            name=_free_name(f"{verdict.state}-{entry.name}", board),
            track=entry.track,
            date=date,
            record=entry.name,
            authors=tuple(authors),
            state=verdict.state,
            artifact=verdict.artifact,
            bpb=verdict.bpb,
            conditions=verdict.conditions,
        ),
    )


@dataclass(frozen=True)
class _Bench:
    """Where the entries of one track are derived again."""

    track: Track
    text: Text
    device: str
    report: Report

    def compress(self, entry: Baseline) -> Verdict:
        self._check_text(entry.text)
        self.report(0.0, entry.name)
        found = compressed(self.text, entry.program)
        same = agrees(self.track, entry.value, found.bpb)
        comparison = Comparison(entry.program, entry.value, found.bpb, same)
        conditions = {"version": found.version}
        return Verdict(entry, (comparison,), bpb=found.bpb, conditions=conditions)

    def check(self, record: Record, paths: dict[str, Path]) -> Verdict:
        """Score every artifact that the record names in every way that it was scored."""
        comparisons: list[Comparison] = []
        runs: list[Run] = []
        absent = [run.artifact for run in record.runs if run.artifact not in paths]
        for number, run in enumerate(record.runs, 1):
            if run.artifact in absent:
                continue
            which = f"run {number}, " if len(record.runs) > 1 else ""
            before = sum(_seconds(run.scores) for run in record.runs[: number - 1])
            found = self._score(before, which, paths[run.artifact], run, run.scores)
            comparisons += found.comparisons
            runs.append(dataclasses.replace(run, scores=found.lines))
        if absent:
            missing = (
                f"{len(absent)} of its {len(record.runs)} artifacts are not here, such as "
                f"{absent[0][:12]}; give them with --artifact"
            )
            return Verdict(record, tuple(comparisons), missing)
        return Verdict(
            record,
            tuple(comparisons),
            bpb=figure(runs).bpb,
            artifact=record.artifact,
            conditions=self._conditions(),
        )

    def remake(self, record: Record) -> Verdict:
        """Make the first artifact anew and score it as the figure that counts was scored."""
        run, lines = record.runs[0], _counted(record)
        with tempfile.TemporaryDirectory(prefix="segpt-remake-") as name:
            self.report(0.0, f"making {record.name} anew")
            path = remake(record.recipe, Path(name), run.artifact)
            artifact = container.load(path)
            same = artifact.digest == run.artifact
            origin = open_artifact(artifact).header.origin
            told = ["the same bytes"] if same else []
            told += [
                say for key, say in OTHERS.items() if origin.get(key) != record.origin.get(key)
            ]
            which = "".join(f"{words}, " for words in ("made anew", *told))
            found = self._score(MAKING, which, path, run, lines, anew=True)
        return Verdict(
            record,
            found.comparisons,
            bpb=figure([dataclasses.replace(run, scores=found.lines)]).bpb,
            artifact=artifact.digest,
            remade=True,
            conditions=self._conditions() | {"same_bytes": same},
        )

    def _score(
        self,
        before: float,
        which: str,
        path: Path,
        run: Run,
        lines: Sequence[ScoreLine],
        *,
        anew: bool = False,
    ) -> "_Scored":
        self._check_text(run.scores[0].text)
        value = read_artifact(path)
        accounted = account_for(source_of(value), self.text)
        comparisons, measured = [], []
        for number, line in enumerate(lines):
            begun = before + _seconds(lines[:number])
            what = f"{which}{line.policy_kind}"
            found = score(
                value,
                accounted,
                reading_of(line),
                device=self.device,
                report=self._telling(begun, line.seconds, what),
            )
            same = agrees(self.track, line.bpb, found.bpb, anew=anew)
            comparisons.append(Comparison(what, line.bpb, found.bpb, same))
            measured.append(dataclasses.replace(line, bpb=found.bpb, nats=found.nats))
        return _Scored(tuple(comparisons), tuple(measured))

    def _telling(self, begun: float, seconds: float, what: str) -> Callable[[Progress], None]:
        return lambda p: self.report(begun + seconds * p.done / p.total, f"{what}: BPB {p.bpb:.4f}")

    def _check_text(self, digest: str) -> None:
        if (found := text_digest(self.text)) != digest:
            raise CheckError(
                f"it is of text {digest[:12]}, and {self.text.name} has the digest {found[:12]}; "
                "give its own with --text"
            )

    def _conditions(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {
                "segpt": segpt.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        }


class _Scored(NamedTuple):
    """The scores of an artifact beside those that were claimed, and as lines of a record."""

    comparisons: tuple[Comparison, ...]
    lines: tuple[ScoreLine, ...]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _counted(record: Record) -> tuple[ScoreLine, ...]:
    """The scores of the first artifact that its figure comes from."""
    counts = figure(record.runs).policy
    return tuple(line for line in record.runs[0].scores if line.policy_kind == counts)


def _seconds(lines: Sequence[ScoreLine]) -> float:
    return sum(line.seconds for line in lines)


def _free_name(wanted: str, board: Board) -> str:
    taken = {link.entry.name for link in board.links}
    name, number = wanted[:LONGEST_NAME].rstrip("-"), 1
    while name in taken:
        number += 1
        ending = f"-{number}"
        name = wanted[: LONGEST_NAME - len(ending)].rstrip("-") + ending
    return name
