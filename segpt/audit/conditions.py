"""The conditions of a legal score, each a function of runs on changed and unchanged text.

They are those of the Parameter Golf contest: a distribution depends on earlier tokens only, sums to
one, is fixed before its target is used for anything, and every target counts once.
"""

import dataclasses
from collections.abc import Sequence
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
    size: float
    what: str


def sound(of: Sequence[AuditedRun]) -> list[Condition]:
    """What holds for a single run: coverage, and that the nats are those of distributions.

    A score of a whole text can be given as one run; its probes cost nothing but their rows.
    """
    found: dict[Name, list[_Finding]] = {"coverage": [], "normalised": [], "summed": []}
    worst_sum = worst_nats = 0.0
    for ids, probed, (nats, rows, counts) in of:
        if (wrong := np.flatnonzero(counts != 1)).size:
            found["coverage"].append(
                _Finding(
                    wrong.size,
                    f"target {wrong[0]} was scored {counts[wrong[0]]} times, and "
                    f"{wrong.size:,} of {len(counts):,} targets other than once",
                )
            )
        with np.errstate(over="ignore"):
            sums = np.exp(rows).sum(1)
        off = np.abs(sums - 1)
        if (bad := np.flatnonzero(~(off <= NORMALISED))).size:
            i = bad[np.argmax(off[bad])]
            what = f"the probabilities at target {probed[i]} sum to {sums[i]:.6g}"
            found["normalised"].append(_Finding(off[i], what))
        told = -rows[np.arange(len(probed)), ids[probed + 1]]
        gap = _gap(nats[probed], told)
        gap[np.isfinite(gap)] /= np.maximum(1, np.abs(told[np.isfinite(gap)]))
        if (bad := np.flatnonzero(~(gap <= SUMMED))).size:
            i = bad[np.argmax(gap[bad])]
            what = (
                f"target {probed[i]} counts {nats[probed[i]]:.6f} nats, but its distribution "
                f"gives it {told[i]:.6f}"
            )
            found["summed"].append(_Finding(gap[i], what))
        elif not np.isfinite(nats).all():
            where = int(np.flatnonzero(~np.isfinite(nats))[0])
            what = f"target {where} has no finite number of nats"
            found["summed"].append(_Finding(np.inf, what))
        worst_sum = max(worst_sum, float(off.max(initial=0)))
        worst_nats = max(worst_nats, float(gap.max(initial=0)))
    targets = len(of[0].trial.nats)
    rows_seen = sum(len(run.probed) for run in of)
    checked: dict[Name, str] = {
        "coverage": f"each of {targets:,} targets counted once, in {_times(len(of))}",
        "normalised": f"{rows_seen:,} distributions sum to 1 within {worst_sum:.0e}",
        "summed": f"{rows_seen:,} of the nats summed are those of the distributions, within "
        f"{worst_nats:.0e}",
    }
    return [_condition(name, checked[name], found[name], len(of)) for name in found]


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
    how = "to the last bit" if tolerance == 0 else f"within {tolerance:g}"
    checked = f"{where} gave the same {len(nats):,} nats, {how}"
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
    found: list[_Finding] = []
    compared = 0
    for token, what, (_, probed, trial) in flips:
        # Token j is target j - 1, whose own distribution is the matter of score_first.
        before = max(0, token - 1)
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
                found.append(_Finding(float(size.max()), text))
                break
    checked = (
        f"{len(flips)} changes of later tokens left {compared:,} nats and distributions as they "
        f"were{within(tolerance)}"
    )
    return _condition("causal", checked, found, len(flips))


def score_first(plain: AuditedRun, flips: Sequence[Flip], tolerance: float) -> Condition:
    found: list[_Finding] = []
    for token, what, (_, probed, trial) in flips:
        mine = np.searchsorted(plain.probed, token - 1)
        at = np.searchsorted(probed, token - 1)
        gap = _beyond(plain.trial.rows[mine], trial.rows[at], tolerance)
        if gap.any():
            text = (
                f"the distribution at target {token - 1} depends on the target itself: changing "
                f"{what} changes it by up to {gap.max():.3g} nats"
            )
            found.append(_Finding(float(gap.max()), text))
    checked = (
        f"{len(flips)} changes of a target left its own distribution as it was{within(tolerance)}"
    )
    return _condition("score_first", checked, found, len(flips))


def documents(
    plain: AuditedRun, others: Sequence[AuditedRun], number: NDArray[np.int64], tolerance: float
) -> Condition:
    """``number`` is the document that each token belongs to; a target goes by its last input."""
    found: list[_Finding] = []
    for parity, (_, probed, trial) in enumerate(others):
        same = number[:-1] % 2 != parity
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
            found.append(_Finding(float(size.max()), text))
    count = int(number[-1] - number[0] + 1)
    checked = f"each of {count} documents scores the same when those around it change"
    return _condition("documents", checked + within(tolerance), found, len(others))


def _condition(name: Name, checked: str, found: Sequence[_Finding], of: int) -> Condition:
    if not found:
        return Condition(name, checked)
    worst = max(found, key=lambda finding: finding.size)
    return Condition(name, checked, f"{worst.what} (in {len(found)} of {_times(of)})")


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
