"""The conditions of a legal score, each a function of runs on changed and unchanged text.

They are those of the Parameter Golf contest: a distribution depends on earlier tokens only, sums to
one, is fixed before its target is used for anything, and every target counts once.

Tokens are counted from 0, and so are targets: target t is token t + 1, read from tokens 0 to t::

    ids       | 0 | 1 | 2 | 3 | 4 |       (targets + 1,)
    targets       | 0 | 1 | 2 | 3 |       nats and counts (targets,)
    probed            | 1 |   | 3 |       (probes,) here [1, 3], so that
                                          rows[k] (vocab,) is for the target probed[k]

A flip of token j changes target j - 1 and no target before. The distribution of target j - 1 must
not know of it.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .trials import AuditedRun

NORMALISED: Final = 1e-4  # how far a sum of probabilities may be from 1
SUMMED: Final = 1e-5  # how far nats may be from their row, in parts of themselves above 1
SHORTENED: Final = 1e-3  # nats: shorter texts make other batches, which round differently

Name = Literal[
    "coverage",
    "normalised",
    "summed",
    "causal",
    "score_first",
    "documents",
    "replay",
    "shortened",
    "whole_text",
    "fresh_process",
]


@dataclass(frozen=True)
class Condition:
    """What was checked, and where and by how much it was violated, if it was."""

    name: Name
    checked: str
    violation: str | None = None

    def __str__(self) -> str:
        return self.checked if self.violation is None else f"VIOLATED: {self.violation}"


@dataclass(frozen=True)
class Audit:
    """The conditions that a method of scoring was held against.

    ``seed`` repeats it: it is that of all places that were asked for, flipped and cut.
    """

    conditions: tuple[Condition, ...]
    seed: int = 0

    @property
    def violations(self) -> tuple[Condition, ...]:
        return tuple(c for c in self.conditions if c.violation is not None)

    def also(self, *conditions: Condition) -> "Audit":
        """The same audit with more conditions."""
        return dataclasses.replace(self, conditions=(*self.conditions, *conditions))

    def plain(self) -> dict[str, str]:
        """Name to outcome, for people and for JSON."""
        return {condition.name: str(condition) for condition in self.conditions}


class Flip(NamedTuple):
    """A run in which ``token`` is the first that differs from the plain run."""

    token: int
    what: str
    run: AuditedRun


class _Finding(NamedTuple):
    """A violation: how large it is, so that the worst is told, and in words."""

    size: float
    what: str


def sound(of: Sequence[AuditedRun]) -> list[Condition]:
    """What holds for a single run: coverage, and that the nats are those of distributions.

    A score of a whole text can be given as one run; its probes cost nothing but their rows.
    """
    coverage = [_covered(run) for run in of]
    normalised, worst_sum = _findings_and_worst(_normalised(run) for run in of)
    summed, worst_nats = _findings_and_worst(_summed(run) for run in of)
    targets, rows = len(of[0].trial.nats), sum(len(run.probed) for run in of)
    counted = f"each of {targets:,} targets counted once, in {_times(len(of))}"
    sums = f"{rows:,} distributions sum to 1 within {worst_sum:.0e}"
    agree = f"{rows:,} of the nats summed are those of the distributions, within {worst_nats:.0e}"
    return [
        _condition("coverage", counted, [f for f in coverage if f is not None], len(of)),
        _condition("normalised", sums, normalised, len(of)),
        _condition("summed", agree, summed, len(of)),
    ]


def _findings_and_worst(
    checks: Iterable[tuple[_Finding | None, float]],
) -> tuple[list[_Finding], float]:
    """The violations of some runs, and the largest gap in all of them, violation or not."""
    findings, gaps = zip(*checks, strict=True)
    return [f for f in findings if f is not None], max(0.0, *gaps)


def _covered(run: AuditedRun) -> _Finding | None:
    """Whether some target was not scored once."""
    counts = run.trial.counts
    wrong = np.flatnonzero(counts != 1)
    if not wrong.size:
        return None
    return _Finding(
        wrong.size,
        f"target {wrong[0]} was scored {counts[wrong[0]]} times, and "
        f"{wrong.size:,} of {len(counts):,} targets other than once",
    )


def _normalised(run: AuditedRun) -> tuple[_Finding | None, float]:
    """The distribution that is furthest from summing to 1, if that is too far; and how far."""
    with np.errstate(over="ignore"):
        sums = np.exp(run.trial.rows).sum(1)
    off = np.abs(sums - 1)  # (probes,)
    worst, k = float(off.max(initial=0)), _worst_beyond(off, NORMALISED)
    if k is None:
        return None, worst
    what = f"the probabilities at target {run.probed[k]} sum to {sums[k]:.6g}"
    return _Finding(off[k], what), worst


def _summed(run: AuditedRun) -> tuple[_Finding | None, float]:
    """The target whose nats are furthest from its distribution, if too far; and how far.

    The gap is in nats, or in parts of the nats where these are more than 1.
    """
    ids, probed, (nats, rows, _) = run
    expected = -rows[np.arange(len(probed)), ids[probed + 1]]  # of each target in its own row
    gap = _gap(nats[probed], expected)
    finite = np.isfinite(gap)
    gap[finite] /= np.maximum(1, np.abs(expected[finite]))
    worst, k = float(gap.max(initial=0)), _worst_beyond(gap, SUMMED)
    if k is not None:
        what = (
            f"target {probed[k]} counts {nats[probed[k]]:.6f} nats, but its distribution "
            f"gives it {expected[k]:.6f}"
        )
        return _Finding(gap[k], what), worst
    infinite = np.flatnonzero(~np.isfinite(nats))
    if infinite.size:
        return _Finding(np.inf, f"target {infinite[0]} has no finite number of nats"), worst
    return None, worst


def _worst_beyond(gap: NDArray[np.float64], tolerance: float) -> int | None:
    """Where the largest of the gaps beyond a tolerance is; one that is not a number is beyond."""
    beyond = np.flatnonzero(~(gap <= tolerance))
    return int(beyond[np.argmax(gap[beyond])]) if beyond.size else None


def replay(
    nats: NDArray[np.float64],
    again: NDArray[np.float64],
    tolerance: float = 0.0,
    *,
    name: Literal["replay", "fresh_process"] = "replay",
) -> Condition:
    """Two runs on the same input give the same nats, to the last bit if the tolerance is 0."""
    where = "a run in a new process" if name == "fresh_process" else "a second run"
    if len(nats) != len(again):
        what = f"{where} has nats of {len(again):,} targets, the first of {len(nats):,}"
        return Condition(name, "", what)
    closeness = "to the last bit" if tolerance == 0 else f"within {tolerance:g}"
    checked = f"{where} gave the same {len(nats):,} nats, {closeness}"
    gap = _beyond(nats, again, tolerance)
    if not gap.any():
        return Condition(name, checked)
    i = int(np.flatnonzero(gap)[0])
    what = (
        f"{where} changed the nats of {np.count_nonzero(gap):,} targets, from target {i} on, by "
        f"up to {gap.max():.3g}"
    )
    return Condition(name, checked, what)


def replays(plain: Sequence[AuditedRun], tolerance: float) -> Condition:
    """Runs on the same text that differ in whose distributions are asked for."""
    findings: list[_Finding] = []
    first = plain[0].trial.nats
    for _, probed, trial in plain[1:]:
        gap = _beyond(first, trial.nats, tolerance)
        if gap.any():
            i = int(np.flatnonzero(gap)[0])
            asked = f"asked for {len(probed):,} distributions" if len(probed) else "once more"
            what = (
                f"scoring the same text {asked} changed the nats of {np.count_nonzero(gap):,} "
                f"targets, from target {i} on, by up to {gap.max():.3g}"
            )
            findings.append(_Finding(float(gap.max()), what))
    checked = (
        f"{len(plain)} runs on the same text, asked for other distributions each, gave the same "
        f"{len(first):,} nats{within(tolerance)}"
    )
    return _condition("replay", checked, findings, len(plain) - 1)


def shortened(plain: AuditedRun, shorter: Sequence[AuditedRun], tolerance: float) -> Condition:
    """Runs on the beginning of the text give the nats and the distributions of the whole run."""
    findings: list[_Finding] = []
    for ids, probed, trial in shorter:
        size = _beyond(plain.trial.nats[: len(ids) - 1], trial.nats, tolerance)
        mine, theirs = _common(plain, probed)
        rows = _beyond(plain.trial.rows[mine], trial.rows[theirs], tolerance)
        np.maximum.at(size, probed[theirs], rows.max(1, initial=0))
        if size.any():
            i = int(np.flatnonzero(size)[0])
            what = (
                f"without the {len(plain.ids) - len(ids):,} tokens after target {len(ids) - 2}, "
                f"target {i} and {np.count_nonzero(size):,} in all change, by up to "
                f"{size.max():.3g} nats"
            )
            findings.append(_Finding(float(size.max()), what))
    sizes = " and ".join(f"{len(ids) - 1:,}" for ids, _, _ in shorter)
    checked = f"the first {sizes} targets alone score the same{within(tolerance)}"
    return _condition("shortened", checked, findings, len(shorter))


def causal(plain: AuditedRun, flips: Sequence[Flip], tolerance: float) -> Condition:
    """No target before the first flipped token has other nats or another distribution.

    Those marked = are compared::

        ids        .   .   .   .   j   x   x     flipped from token j on
        targets        =   =   =  j-1  ?   ?

    Target j - 1, whose own distribution is the matter of :func:`score_first`, is left out.
    """
    findings: list[_Finding] = []
    compared = 0
    for token, what, (_, probed, trial) in flips:
        before = max(0, token - 1)  # how many targets are compared
        gap = _beyond(plain.trial.nats[:before], trial.nats[:before], tolerance)
        mine, theirs = _common(plain, probed[probed < before])
        rows = _beyond(plain.trial.rows[mine], trial.rows[theirs], tolerance).max(1, initial=0)
        compared += before + len(mine)
        for kind, size, target in (
            ("nats", gap, np.arange(before)),
            ("distribution", rows, probed[theirs]),
        ):
            if size.any():
                i = int(np.flatnonzero(size)[-1])
                text = (
                    f"changing {what} changes the {kind} of target {target[i]}, which is token "
                    f"{target[i] + 1}, and of {np.count_nonzero(size):,} targets in all, by up "
                    f"to {size.max():.3g} nats"
                )
                findings.append(_Finding(float(size.max()), text))
                break
    checked = (
        f"{len(flips)} changes of later tokens left {compared:,} nats and distributions as they "
        f"were{within(tolerance)}"
    )
    return _condition("causal", checked, findings, len(flips))


def score_first(plain: AuditedRun, flips: Sequence[Flip], tolerance: float) -> Condition:
    """The distribution of a target, which every run was asked for, does not depend on it."""
    findings: list[_Finding] = []
    for token, what, (_, probed, trial) in flips:
        mine = np.searchsorted(plain.probed, token - 1)
        theirs = np.searchsorted(probed, token - 1)
        gap = _beyond(plain.trial.rows[mine], trial.rows[theirs], tolerance)
        if gap.any():
            text = (
                f"the distribution at target {token - 1} depends on the target itself: changing "
                f"{what} changes it by up to {gap.max():.3g} nats"
            )
            findings.append(_Finding(float(gap.max()), text))
    checked = (
        f"{len(flips)} changes of a target left its own distribution as it was{within(tolerance)}"
    )
    return _condition("score_first", checked, findings, len(flips))


def documents(
    plain: AuditedRun, others: Sequence[AuditedRun], number: NDArray[np.int64], tolerance: float
) -> Condition:
    """No target changes when every second document does, first the even ones, then the odd ones.

    ``number`` (targets + 1,) is the document that each token belongs to; a target goes by its last
    input.
    """
    findings: list[_Finding] = []
    for parity, (_, probed, trial) in enumerate(others):
        same = number[:-1] % 2 != parity  # targets of documents that have not changed
        gap = _beyond(plain.trial.nats, trial.nats, tolerance) * same
        mine, theirs = _common(plain, probed)
        rows = _beyond(plain.trial.rows[mine], trial.rows[theirs], tolerance).max(1, initial=0)
        where = probed[theirs]
        size = gap.copy()
        np.maximum.at(size, where, rows * same[where])
        if size.any():
            i = int(np.flatnonzero(size)[0])
            begin = int(np.searchsorted(number, number[i]))
            text = (
                f"changing other documents changes target {i}, number {i - begin + 1} of document "
                f"{number[i]}, and {np.count_nonzero(size):,} targets in all, by up to "
                f"{size.max():.3g} nats"
            )
            findings.append(_Finding(float(size.max()), text))
    count = int(number[-1] - number[0] + 1)
    checked = f"each of {count} documents scores the same when those around it change"
    return _condition("documents", checked + within(tolerance), findings, len(others))


def _condition(name: Name, checked: str, findings: Sequence[_Finding], of: int) -> Condition:
    if not findings:
        return Condition(name, checked)
    worst = max(findings, key=lambda finding: finding.size)
    return Condition(name, checked, f"{worst.what} (in {len(findings)} of {_times(of)})")


def _common(
    plain: AuditedRun, probed: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of the plain run and of one with these probes are of the same target."""
    _, mine, theirs = np.intersect1d(plain.probed, probed, return_indices=True)
    return mine, theirs


def _gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far numbers are apart; infinitely, if one of them is not a number."""
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
    return np.nan_to_num(gap, nan=np.inf, posinf=np.inf)


def _beyond(
    a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """How far numbers are apart, 0 within the tolerance."""
    gap = _gap(a, b)
    return np.where(gap <= tolerance, 0.0, gap)


def within(tolerance: float) -> str:
    return ", to the last bit" if tolerance == 0 else f", within {tolerance:g} nats"


def _times(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
