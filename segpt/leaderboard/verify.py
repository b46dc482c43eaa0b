"""Entries to verdicts: what a record or baseline claims is derived again and compared."""

import dataclasses
import hashlib
import platform
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import segpt
from segpt.artifact.container import unpack
from segpt.artifact.reader import open_artifact
from segpt.config.base import decode, nearest
from segpt.config.score import ScoreSpec
from segpt.data.text import text_digest
from segpt.errors import CheckError, ScoreError, SegptError, SpecError
from segpt.eval.tally import Progress
from segpt.stages.open_model import open_model
from segpt.stages.pack import read_artifact
from segpt.stages.score import account_for, score
from segpt.values import Artifact, Quantized, Score, Text

from .check import READING, agrees, check, check_all
from .compressors import compressed
from .derive import (
    Derived,
    Fact,
    baseline_facts,
    derive,
    line_facts,
    overlap,
    record_facts,
    run_facts,
    run_findings,
    with_documents,
)
from .entry import Baseline, Entry, Link, Record, Run, ScoreLine, Verification, figure
from .fields import LONGEST_NAME
from .rerun_recipe import remake
from .store import Added, Board, append_entry, track_of
from .track import Track
from .track_text import text_of

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
        facts: of every other field that could be.
        findings: what the rules of its track and the order of the chain do not allow.
        missing: why the others could not, empty if all could.
        bpb: the figure that counts, as it was measured; None if something is missing.
        artifact: the digest of what was scored, None of a baseline.
        remade: whether the artifact was made anew.
        conditions: where, and with which versions.
    """

    entry: Verifiable
    comparisons: tuple[Comparison, ...]
    facts: tuple[Fact, ...] = ()
    findings: tuple[str, ...] = ()
    missing: str = ""
    bpb: float | None = None
    artifact: str | None = None
    remade: bool = False
    conditions: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def refuted(self) -> tuple[Fact, ...]:
        """The fields that are not what the entry claims."""
        return tuple(fact for fact in self.facts if not fact.agrees)

    @property
    def differs(self) -> bool:
        same = all(comparison.agrees for comparison in self.comparisons)
        return not same or bool(self.refuted or self.findings)

    @property
    def state(self) -> Literal["checked", "reproduced"] | None:
        """What the entry is found to be, None if it differs or something was missing."""
        if self.differs or self.missing or self.bpb is None:
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
    findings = check_all(board.tracks, board.links)
    files = {link.entry.name: link.file for link in board.links}
    texts: dict[str, Text | str] = {}
    for entry in entries:
        if entry.track not in texts:
            try:
                track = track_of(board.tracks, entry.track)
                found = text_of(directory, track, text)
                texts[entry.track] = found or "its text is not here; give it with --text"
            except SegptError as error:
                texts[entry.track] = str(error)
        text_or_why = texts[entry.track]
        if isinstance(text_or_why, str):
            verdict = Verdict(entry, (), missing=text_or_why)
        else:
            track = track_of(board.tracks, entry.track)
            bench = _Bench(directory, track, text_or_why, device, report)
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
        conditions=verdict.conditions,
    )
    # Others may have taken the name in the meantime.
    return append_entry(
        directory, lambda now: dataclasses.replace(made, name=_free_name(made.name, now.links))
    )


@dataclass(frozen=True)
class _Bench:
    """Where the entries of one track are derived again."""

    directory: Path
    track: Track
    text: Text
    device: str
    report: Report

    def verify(self, entry: Verifiable, paths: Mapping[str, Path], *, remade: bool) -> Verdict:
        """What comes of an entry; what keeps it from being derived again is said in the verdict."""
        try:
            if isinstance(entry, Baseline):
                return self.compress(entry)
            return self.remake(entry) if remade else self.check(entry, paths)
        except SegptError as error:
            return Verdict(entry, (), missing=str(error))

    def compress(self, entry: Baseline) -> Verdict:
        self._check_text(entry.text)
        self.report(0.0, entry.name)
        found = compressed(self.text, entry.program)
        same = agrees(self.track, entry.value, found.bpb)
        return Verdict(
            entry,
            (Comparison(entry.program, entry.value, found.bpb, same),),
            facts=tuple(baseline_facts(entry, text_digest(self.text), found)),
            bpb=found.bpb,
            conditions={"version": found.version},
        )

    def check(self, record: Record, paths: Mapping[str, Path]) -> Verdict:
        """Score every artifact that the record names in every way that it was scored.

        All else that the record says is derived from the artifacts and the scores.
        """
        tested: dict[int, _Tested] = {}
        for number, run in enumerate(record.runs):
            if run.artifact in paths:
                artifact = with_documents(read_artifact(paths[run.artifact]), self.directory)
                before = sum(_seconds(run.scores) for run in record.runs[:number])
                which = f"run {number + 1}, " if len(record.runs) > 1 else ""
                tested[number] = self._score(before, which, artifact, run.scores, number)
        derived = {number: each.derived for number, each in tested.items()}
        facts = list(record_facts(record, derived))
        findings = list(run_findings(derived))
        for number, each in tested.items():
            facts += [*run_facts(f"runs[{number}].", record.runs[number], each.derived)]
            facts += each.facts
            findings += each.findings
        again = None
        if len(tested) == len(record.runs) and not findings:
            again = _derived(record, tested)
            facts.append(Fact.near("bpb", record.bpb, again.bpb, self.track.tolerance))
            findings += check(self.track, again)
        return Verdict(
            record,
            tuple(c for each in tested.values() for c in each.comparisons),
            facts=tuple(facts),
            findings=tuple(findings),
            missing=_absent(record, tested.keys()),
            bpb=None if again is None else again.bpb,
            artifact=record.artifact,
            conditions=self._conditions(),
        )

    def remake(self, record: Record) -> Verdict:
        """Make the first artifact anew and score it as the figure that counts was scored."""
        first = record.runs[0]
        with tempfile.TemporaryDirectory(prefix="segpt-remake-") as name:
            self.report(0.0, f"making {record.name} anew")
            path = remake(record.recipe, Path(name), first.artifact)
            artifact = read_artifact(path)
        same = artifact.digest == first.artifact
        origin = open_artifact(artifact).header.origin
        told = ["the same bytes"] if same else []
        told += [say for key, say in OTHERS.items() if origin.get(key) != record.origin.get(key)]
        which = "".join(f"{words}, " for words in ("made anew", *told))
        found = self._score(MAKING, which, artifact, _counted(record), 0, anew=True)
        limited = dataclasses.replace(record, runs=(first,))
        again = _derived(limited, {0: found}) if found.lines else None
        parameters = Fact.exact("parameters", record.parameters, found.derived.parameters)
        shared = [fact for fact in found.facts if fact.field.endswith(".overlap")]
        limits = () if again is None else check(self.track, again)
        return Verdict(
            record,
            found.comparisons,
            facts=(parameters, *shared),
            findings=(*found.findings, *limits),
            bpb=None if again is None else again.bpb,
            artifact=artifact.digest,
            remade=True,
            conditions=self._conditions() | {"same_bytes": same},
        )

    def _score(
        self,
        before: float,
        which: str,
        artifact: Artifact,
        lines: Sequence[ScoreLine],
        number: int,
        *,
        anew: bool = False,
    ) -> "_Tested":
        """The lines of run ``number`` scored again; those that no score can repeat are findings."""
        self._check_text(lines[0].text)
        opened = open_model(dataclasses.replace(unpack(artifact), documents=None), self.device)
        assert isinstance(opened.source, Quantized)
        derived = derive(artifact, opened.source)
        accounted = account_for(opened, self.text)
        accounted = dataclasses.replace(accounted, overlap=overlap(artifact, self.text))
        tested = _Tested(derived, (), (), (), ())
        for place, line in enumerate(lines):
            field = f"runs[{number}].scores[{place}]."
            what = f"{which}{line.policy_kind}"
            telling = self._telling(before + _seconds(lines[:place]), line.seconds, what)
            try:
                reading = reading_of(line)
                found = score(opened, accounted, reading, report=telling)
            except (SpecError, ScoreError) as error:
                findings = (*tested.findings, f"{field}policy or conditions: {error}")
                tested = tested._replace(findings=findings)
                continue
            same = agrees(self.track, line.bpb, found.bpb, anew=anew)
            facts = line_facts(field, line, found, derived, self.track.tolerance)
            tested = tested._replace(
                comparisons=(*tested.comparisons, Comparison(what, line.bpb, found.bpb, same)),
                facts=(*tested.facts, *facts),
                lines=(*tested.lines, _line(line, found, derived)),
            )
        return tested

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


class _Tested(NamedTuple):
    """An artifact: what it is, its scores beside those that were claimed, and its own lines."""

    derived: Derived
    comparisons: tuple[Comparison, ...]
    facts: tuple[Fact, ...]
    findings: tuple[str, ...]
    lines: tuple[ScoreLine, ...]


def _line(line: ScoreLine, found: Score, derived: Derived) -> ScoreLine:
    """A line of a record with all that was found in place of what it claims.

    Time is that of another machine, and the overlap is compared by itself.
    """
    plain = found.plain()
    return dataclasses.replace(
        line,
        seed=derived.seed,
        policy=plain["policy"],
        bpb=found.bpb,
        nats=found.nats,
        bytes=found.bytes,
        tokens=found.tokens,
        model=derived.artifact,
        text=plain["conditions"]["text"],
        denominator=found.denominator,
        conditions={**plain["conditions"], "overlap": line.conditions.get("overlap", "")},
    )


def _derived(record: Record, tested: Mapping[int, _Tested]) -> Record:
    """The record as its artifacts and their scores say; limits hold for the largest of them."""
    runs = tuple(
        Run(
            artifact=each.derived.artifact,
            bytes=each.derived.bytes,
            seed=each.derived.seed,
            scores=each.lines,
        )
        for each in tested.values()
    )
    return dataclasses.replace(
        record,
        bytes=max(run.bytes for run in runs),
        parameters=max(each.derived.parameters for each in tested.values()),
        bpb=figure(runs).bpb,
        runs=runs,
        origin=tested[0].derived.origin,
        sections=tested[0].derived.sections,
    )


def _absent(record: Record, tested: Collection[int]) -> str:
    """Which artifacts are not at hand, empty if all are."""
    absent = [run.artifact for number, run in enumerate(record.runs) if number not in tested]
    if not absent:
        return ""
    return (
        f"{len(absent)} of its {len(record.runs)} artifacts are not here, such as "
        f"{absent[0][:12]}; give them with --artifact"
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _counted(record: Record) -> tuple[ScoreLine, ...]:
    """The scores of the first artifact that its figure comes from."""
    counts = figure(record.runs).policy
    return tuple(line for line in record.runs[0].scores if line.policy_kind == counts)


def _seconds(lines: Sequence[ScoreLine]) -> float:
    return sum(line.seconds for line in lines)


def _free_name(wanted: str, links: Sequence[Link]) -> str:
    taken = {link.entry.name for link in links}
    name, number = wanted[:LONGEST_NAME].rstrip("-"), 1
    while name in taken:
        number += 1
        ending = f"-{number}"
        name = wanted[: LONGEST_NAME - len(ending)].rstrip("-") + ending
    return name
