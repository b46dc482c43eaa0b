"""Scores to a comparison: how far B is from A, and whether that is more than noise."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segpt.artifact.frame import MAGIC
from segpt.config.base import canonical, decode
from segpt.config.parameter_golf import MARGIN, SIGNIFICANCE, margin
from segpt.errors import SegptError, SpecError
from segpt.stages.json_files import read_json
from segpt.stages.run_directory import kind_of

from . import statistics
from .check import UNPROVED
from .comparison import (
    ComparisonReport,
    ContestReport,
    DifferenceReport,
    Scored,
    SideReport,
    TestedDifference,
    UnitDifferences,
)
from .record import score_line
from .statistics import FEWEST, Difference

Unit = Literal["bpb", "nats_per_token"]

WINDOWS = ("mode", "boundaries", "context", "stride", "loops", "ngram")  # how a text is read


@dataclass(frozen=True)
class ComparedSide:
    """The scores of one recipe, alike in all but their runs."""

    name: str
    files: tuple[Path, ...]
    scores: tuple[Scored, ...]

    @property
    def first(self) -> Scored:
        return self.scores[0]

    @property
    def size(self) -> int:
        return len(self.scores)

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(score.line.seed for score in self.scores)

    @property
    def bytes_per_token(self) -> float:
        return self.first.line.bytes / self.first.line.tokens

    def figures(self, unit: Unit) -> list[float]:
        if unit == "bpb":
            return [score.bpb for score in self.scores]
        return [score.line.nats / score.line.tokens for score in self.scores]


def compare(a: Path, b: Path) -> ComparisonReport:
    """What the scores of B are against those of A; lower is better.

    Differences are B - A. They are paired over runs if both sides have the same models or seeds,
    and over documents if each side is a single score of the same documents: then they are about
    this text alone, since one run does not show what another seed would change. Otherwise they
    are of two independent sets of runs (Welch). Only runs, ``FEWEST`` or more on each side, name
    a ``better`` side, where p < ``SIGNIFICANCE``.

    The contest's threshold is ``MARGIN`` nats per token, in bits per byte at the fewer bytes per
    token of the two; it is ``met`` if Welch's test excludes any smaller gain.

    Args:
        a: a file of ``segpt score --out``, or a directory with one for each run.
        b: the same for the other side.

    Raises:
        SegptError: naming the file that is not a score, or that does not go with the others of
            its side, or if the two sides are of different texts.
    """
    sides = read_side("A", a), read_side("B", b)
    _check_text(*sides)
    hindrance = _hindrance(*sides)
    tests = _tests(*sides, "bpb")
    over = next((name for name, test in tests.items() if test is not None), None)
    test = tests[over] if over else None
    better = None
    if hindrance is None and test is not None and test.p < SIGNIFICANCE:
        better = "B" if test.mean < 0 else "A"
    alike = sides[0].first.tokenizer == sides[1].first.tokenizer
    return ComparisonReport(
        a=_side(sides[0]),
        b=_side(sides[1]),
        difference=UnitDifferences(
            bpb=_difference(*sides, "bpb"),
            nats_per_token=_difference(*sides, "nats_per_token") if alike else None,
        ),
        over=over,
        contest=_contest(*sides, tests["welch"] if hindrance is None else None),
        better=better,
        verdict=_verdict(better, hindrance, over, test),
        flags=tuple(_flags(*sides)),
    )


def read_side(name: str, path: Path) -> ComparedSide:
    """The scores in a file, or in the ``.json`` files of a directory in the order of their names.

    Raises:
        SegptError: as :func:`compare`.
    """
    if _is_model(path):
        line = shlex.join(["segpt", "score", str(path), "--out", "FILE"])
        raise SegptError(f"{path} is a model, not a score; score it first: {line}")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise SegptError(
            f"{path}: no scores in this directory; write one per run: segpt score MODEL --out FILE"
        )
    side = ComparedSide(name, tuple(files), tuple(map(_read, files)))
    _check_alike(side)
    return side


def _is_model(path: Path) -> bool:
    """Whether a path is an artifact, a quantized model or a checkpoint."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        return path.is_dir() and kind_of(path) in ("quantized", "checkpoint")
    except (SegptError, OSError):  # what it is instead, reading it says
        return False


def _read(path: Path) -> Scored:
    table = read_json(path, "score")
    line = score_line(table, path)
    try:
        return decode(
            Scored,
            {
                "line": line,
                "tokenizer": table["origin"].get("tokenizer"),
                "by_document": table.get("by_document"),
                "nats_per_token": table.get("nats_per_token"),
            },
        )
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


# What must be the same of all scores of a side, and is flagged if it differs between sides.
_ALIKE: dict[str, Callable[[Scored], Hashable]] = {
    "texts": lambda score: score.line.text,
    "denominators": lambda score: (score.line.denominator, score.line.bytes),
    "tokenizers": lambda score: score.tokenizer,
    "policies": lambda score: canonical(score.line.policy),
    "windows": lambda score: canonical([score.line.conditions.get(key) for key in WINDOWS]),
    "precisions": lambda score: score.line.conditions.get("precision", "float32"),
}


def _check_alike(side: ComparedSide) -> None:
    for path, score in zip(side.files[1:], side.scores[1:], strict=True):
        for what, key in _ALIKE.items():
            if key(score) != key(side.first):
                raise SegptError(
                    f"{path} and {side.files[0]} have different {what}; a side takes scores that "
                    "differ in their run alone"
                )
    models: dict[str, Path] = {}
    for path, score in zip(side.files, side.scores, strict=True):
        if (first := models.setdefault(score.line.model, path)) != path:
            raise SegptError(
                f"{path} and {first} are of the same model, which is one run; give one of them"
            )


def _check_text(a: ComparedSide, b: ComparedSide) -> None:
    """Refuse figures of two texts, and two accounts of what is in one text."""
    ours, other = a.first, b.first
    if ours.line.text != other.line.text:
        raise SegptError(
            f"{a.files[0]} is of text {ours.line.text[:12]} and {b.files[0]} of text "
            f"{other.line.text[:12]}, so that no figures compare; score both sides on one text"
        )
    scored = [
        (path, score)
        for side in (a, b)
        for path, score in zip(side.files, side.scores, strict=True)
        if score.by_document is not None and score.line.denominator == ours.line.denominator
    ]
    for path, score in scored[1:]:
        first_path, first = scored[0]
        assert score.by_document is not None
        assert first.by_document is not None
        if score.by_document.bytes != first.by_document.bytes:
            raise SegptError(
                f"{path} and {first_path} are of one text, but its documents have other bytes; "
                "one of the two files was changed: score anew"
            )


def _tests(a: ComparedSide, b: ComparedSide, unit: Unit) -> dict[str, Difference | None]:
    """Every test that the scores allow, the most telling first."""
    before, after = a.figures(unit), b.figures(unit)
    order, documents = _order(a, b), _documents(a, b) if unit == "bpb" else None
    return {
        "runs": statistics.paired(before, [after[i] for i in order]) if order else None,
        "welch": statistics.welch(before, after),
        "documents": statistics.paired_ratio(*documents) if documents else None,
    }


def _order(a: ComparedSide, b: ComparedSide) -> list[int] | None:
    """Which score of B goes with each score of A, if each has one and only one."""
    keys: tuple[Callable[[Scored], Hashable], ...] = (
        lambda score: score.line.model,
        lambda score: score.line.seed,
    )
    for key in keys:
        before, after = list(map(key, a.scores)), list(map(key, b.scores))
        unique = None not in before and len(set(before)) == a.size == b.size
        if unique and set(before) == set(after):
            return [after.index(value) for value in before]
    return None


def _documents(
    a: ComparedSide, b: ComparedSide
) -> tuple[Sequence[float], Sequence[float], list[float]] | None:
    """The nats of each document on both sides, and the bytes by which nats are bits per byte."""
    before, after = a.first.by_document, b.first.by_document
    if not a.size == b.size == 1 or before is None or after is None:
        return None
    if a.first.line.text != b.first.line.text or before.bytes != after.bytes:
        return None
    return before.nats, after.nats, [math.log(2) * size for size in before.bytes]


def _side(side: ComparedSide) -> SideReport:
    first = side.first
    return SideReport(
        files=tuple(str(path) for path in side.files),
        n=side.size,
        seeds=side.seeds,
        policy=first.line.policy,
        text=first.line.text,
        bytes=first.line.bytes,
        tokens=first.line.tokens,
        denominator=first.line.denominator,
        tokenizer=first.tokenizer,
        bpb=statistics.summary(side.figures("bpb")),
        nats_per_token=statistics.summary(side.figures("nats_per_token")),
    )


def _difference(a: ComparedSide, b: ComparedSide, unit: Unit) -> DifferenceReport:
    tests = _tests(a, b, unit)
    mean = statistics.summary(b.figures(unit)).mean - statistics.summary(a.figures(unit)).mean
    return DifferenceReport(
        mean=mean,
        runs=_tested(tests["runs"]),
        welch=_tested(tests["welch"]),
        documents=_tested(tests["documents"]),
    )


def _tested(test: Difference | None) -> TestedDifference | None:
    if test is None:
        return None
    names = [field.name for field in dataclasses.fields(TestedDifference)]
    return TestedDifference(**{name: getattr(test, name) for name in names})


def _contest(a: ComparedSide, b: ComparedSide, test: Difference | None) -> ContestReport:
    bits = margin(min(a.bytes_per_token, b.bytes_per_token))
    p = None if test is None else test.p_beyond(bits)
    return ContestReport(
        nats_per_token=MARGIN,
        bytes_per_token=min(a.bytes_per_token, b.bytes_per_token),
        bpb=bits,
        p=p,
        met=None if p is None else p < SIGNIFICANCE,
    )


def _hindrance(a: ComparedSide, b: ComparedSide) -> str | None:
    """Why no side can be called better, whatever the figures are."""
    for what in ("texts", "denominators"):
        if _ALIKE[what](a.first) != _ALIKE[what](b.first):
            return f"the {what} differ, so that the figures do not compare"
    if few := [side for side in (a, b) if side.size < FEWEST]:
        counts = " and ".join(f"{side.name} has {side.size}" for side in few)
        return f"{counts} of the {FEWEST} runs that it takes to tell a difference from chance"
    if statistics.welch(a.figures("bpb"), b.figures("bpb")) is None:
        return "the figures never vary, so that nothing tells what chance does"
    return None


def _verdict(
    better: str | None, hindrance: str | None, over: str | None, test: Difference | None
) -> str:
    if hindrance is not None:
        verdict = f"no verdict: {hindrance}"
        if over == "documents" and test is not None:
            verdict += (
                f". On this text B - A is {test.mean:+.5f} bits per byte with a standard error of "
                f"{test.error:.5f} over its {test.freedom + 1:,.0f} documents, which says nothing "
                "about the noise of training"
            )
        return verdict
    assert test is not None
    if better is None:
        return f"no difference is shown: p = {test.p:.2g} is not below {SIGNIFICANCE}"
    return f"{better} is better by {abs(test.mean):.5f} bits per byte (p = {test.p:.2g})"


def _flags(a: ComparedSide, b: ComparedSide) -> Iterator[str]:
    """Whatever a reader should know before believing a figure."""
    for side in (a, b):
        if side.size < FEWEST:
            yield f"{side.name} has n = {side.size}: fewer than {FEWEST} runs"
        if None in side.seeds:
            yield f"{side.name} does not say which seeds its runs had"
        elif len(set(side.seeds)) < side.size:
            yield f"{side.name} has a seed twice: {', '.join(map(str, side.seeds))}"
        unproved = {
            name
            for score in side.scores
            for name, state in score.line.conditions.items()
            if isinstance(state, str) and state.startswith(UNPROVED)
        }
        if unproved:
            yield f"{side.name} has conditions that are not proved: {', '.join(sorted(unproved))}"
    for what, key in _ALIKE.items():
        if key(a.first) != key(b.first):
            yield f"different {what}{_CONSEQUENCES[what]}"


_CONSEQUENCES = {
    "texts": ": no figures compare",
    "denominators": ": bits per byte do not compare",
    "tokenizers": ": nats per token do not compare, bits per byte do",
    "policies": ": the difference is of these as well as of the models",
    "windows": ": the difference is of these as well as of the models",
    "precisions": ": the difference is of these as well as of the models",
}
