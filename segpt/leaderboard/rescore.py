"""Records scored again and baselines compressed again, to verdicts."""

import dataclasses
import platform
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from segpt.artifact.container import unpack
from segpt.artifact.reader import open_artifact
from segpt.config.conditions import ReadingConditions
from segpt.config.environment import Environment
from segpt.data.text import text_digest
from segpt.errors import CheckError, ScoreError, SegptError, SpecError
from segpt.eval.tally import ScoreProgress
from segpt.stages.environment import environment
from segpt.stages.open_model import open_model
from segpt.stages.pack import read_artifact
from segpt.stages.score import account_for, score
from segpt.values import Artifact, Quantized, Score, Text

from .check import agrees, check
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
from .duration import MAKING, counted, seconds
from .entry import Baseline, Record, Run, ScoreLine, figure
from .rerun_recipe import remake
from .track import Track
from .verdict import Comparison, Verdict, VerdictConditions, Verifiable

Report = Callable[[float, str], None]  # told how many seconds' worth is done, and a detail

# What a record's commands may have made something else of than when it was added: a recipe is known
# by its name, and what ships under that name changes; the built-in text comes with Python.
OTHERS = {"recipe": "by another recipe", "tokens": "from other text"}


@dataclass(frozen=True)
class Bench:
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
        size = compressed(self.text, entry.program)
        same = agrees(self.track, entry.value, size.bpb)
        return Verdict(
            entry,
            (Comparison(entry.program, entry.value, size.bpb, same),),
            facts=tuple(baseline_facts(entry, text_digest(self.text), size)),
            bpb=size.bpb,
            conditions=VerdictConditions(version=size.version),
        )

    def check(self, record: Record, paths: Mapping[str, Path]) -> Verdict:
        """Score every artifact that the record names in every way that it was scored.

        All else that the record says is derived from the artifacts and the scores.
        """
        tested: dict[int, _Tested] = {}
        for number, run in enumerate(record.runs):
            if run.artifact in paths:
                artifact = with_documents(read_artifact(paths[run.artifact]), self.directory)
                before = sum(seconds(run.scores) for run in record.runs[:number])
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
            conditions=VerdictConditions(environment=self._environment()),
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
        changes = ["the same bytes"] if same else []
        changes += [say for key, say in OTHERS.items() if origin.get(key) != record.origin.get(key)]
        which = "".join(f"{words}, " for words in ("made anew", *changes))
        tested = self._score(MAKING, which, artifact, counted(record), 0, anew=True)
        limited = dataclasses.replace(record, runs=(first,))
        again = _derived(limited, {0: tested}) if tested.lines else None
        parameters = Fact.exact("parameters", record.parameters, tested.derived.parameters)
        shared = [fact for fact in tested.facts if fact.field.endswith(".overlap")]
        limits = () if again is None else check(self.track, again)
        return Verdict(
            record,
            tested.comparisons,
            facts=(parameters, *shared),
            findings=(*tested.findings, *limits),
            bpb=None if again is None else again.bpb,
            artifact=artifact.digest,
            remade=True,
            conditions=VerdictConditions(environment=self._environment(), same_bytes=same),
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
            telling = self._telling(before + seconds(lines[:place]), line.seconds, what)
            try:
                reading = ReadingConditions.read(line.conditions).spec(line.policy)
                result = score(opened, accounted, reading, report=telling)
            except (SpecError, ScoreError) as error:
                findings = (*tested.findings, f"{field}policy or conditions: {error}")
                tested = tested._replace(findings=findings)
                continue
            same = agrees(self.track, line.bpb, result.bpb, anew=anew)
            facts = line_facts(field, line, result, derived, self.track.tolerance)
            tested = tested._replace(
                comparisons=(*tested.comparisons, Comparison(what, line.bpb, result.bpb, same)),
                facts=(*tested.facts, *facts),
                lines=(*tested.lines, _line(line, result, derived)),
            )
        return tested

    def _telling(self, begun: float, seconds: float, what: str) -> Callable[[ScoreProgress], None]:
        return lambda p: self.report(begun + seconds * p.done / p.total, f"{what}: BPB {p.bpb:.4f}")

    def _check_text(self, digest: str) -> None:
        if (actual := text_digest(self.text)) != digest:
            raise CheckError(
                f"it is of text {digest[:12]}, and {self.text.name} has the digest {actual[:12]}; "
                "give its own with --text"
            )

    def _environment(self) -> Environment:
        return dataclasses.replace(environment(self.device), machine=platform.machine())


class _Tested(NamedTuple):
    """An artifact: what it is, its scores beside those that were claimed, and its own lines."""

    derived: Derived
    comparisons: tuple[Comparison, ...]
    facts: tuple[Fact, ...]
    findings: tuple[str, ...]
    lines: tuple[ScoreLine, ...]


def _line(line: ScoreLine, result: Score, derived: Derived) -> ScoreLine:
    """A line of a record with all that was found in place of what it claims.

    Time is that of another machine, and the overlap is compared by itself.
    """
    plain = result.plain()
    return dataclasses.replace(
        line,
        seed=derived.seed,
        policy=plain["policy"],
        bpb=result.bpb,
        nats=result.nats,
        bytes=result.bytes,
        tokens=result.tokens,
        model=derived.artifact,
        text=plain["conditions"]["text"],
        denominator=result.denominator,
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
