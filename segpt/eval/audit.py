"""The legality of a score, checked from outside: what it does when the text changes.

A method of scoring is run again on a text of which some tokens are different. The conditions are
those of the Parameter Golf contest: a distribution depends on earlier tokens only, sums to one, is
fixed before its target is used for anything, and every target counts once.
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ScoreError

NORMALISED = 1e-4  # how far a sum of probabilities may be from 1
SUMMED = 1e-5  # how far nats may be from the row they come from, in parts of themselves above 1
EARLY = 16  # one flip is of a token up to here, before which a method can have used little text
PASSAGE = 24  # tokens that are repeated, for caches to find
COPIES = 4  # of them in one document, in as many documents as REPEATING
REPEATING = 4
LATER = 8  # further tokens that a flip of several changes
LEAST, MOST = 512, 8192  # targets of a slice, where the text allows
SHARE = 0.4  # of the cost of a score, for all runs over a slice, as a new process costs the rest


class Trial(NamedTuple):
    """One run of a method over a stream of ``targets`` + 1 tokens.

    Attributes:
        nats: (targets,) of every target, as the score sums them.
        rows: (probes, vocab) log-probabilities over the whole alphabet at the probed targets,
            after every cap, tilt and mixture.
        counts: (targets,) how often each target was scored.
    """

    nats: NDArray[np.float64]
    rows: NDArray[np.float64]
    counts: NDArray[np.uint8]


# Gets the tokens (targets + 1,) and the targets to probe, in order.
Method = Callable[[NDArray[np.uint32], NDArray[np.int64]], Trial]

Name = Literal[
    "coverage",
    "normalised",
    "summed",
    "causal",
    "score_first",
    "documents",
    "replay",
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
    """The conditions that a method of scoring was held against."""

    conditions: tuple[Condition, ...]

    @property
    def violations(self) -> tuple[Condition, ...]:
        return tuple(c for c in self.conditions if c.violation is not None)

    def also(self, condition: Condition) -> "Audit":
        """The same audit with one more condition."""
        return dataclasses.replace(self, conditions=(*self.conditions, condition))

    def plain(self) -> dict[str, str]:
        """Name to outcome, for people and for JSON."""
        return {condition.name: str(condition) for condition in self.conditions}


class Run(NamedTuple):
    """A trial, and the tokens and probes it was made with."""

    ids: NDArray[np.uint32]
    probed: NDArray[np.int64]
    trial: Trial


class _Flip(NamedTuple):
    """A run in which ``token`` is the first that differs from the plain run."""

    token: int
    what: str
    run: Run


class _Finding(NamedTuple):
    size: float
    what: str


def audit(
    method: Method,
    ids: NDArray[np.uint32],
    start: int,
    *,
    seed: int = 0,
    flips: int = 24,
    probes: int = 64,
    borders: Sequence[int] = (),
    independent: bool = False,
    tolerance: float = 0.0,
) -> Audit:
    """Hold a method of scoring against the conditions of a legal score.

    The method runs :func:`runs` times on ``ids``, in which one passage is repeated first, so that
    what remembers the text has something to remember. Start tokens stay where they are and no
    others appear.

    Args:
        method: scores a stream from its beginning, in a state that does not outlast the call.
        ids: (targets + 1,) the stream; a slice of the text as from :func:`slice_of` is enough.
        start: the token that begins a document.
        seed: what is flipped and probed.
        flips: runs in which a token and perhaps later ones are different.
        probes: targets drawn at random whose distributions are looked at, beside those that the
            flips call for.
        borders: targets before which the method learns, where flips are most telling.
        independent: the method claims that nothing passes from one document to another.
        tolerance: the largest difference, in nats, between numbers that should be identical: 0
            where the same computation gives the same bits.

    Raises:
        ScoreError: if there is no token to flip, or the method returns arrays of other shapes.
    """
    generator = np.random.default_rng(seed)
    ids, passages = _repeat(ids, start, generator)
    first = _first_flipped(ids, start, passages, borders, flips, generator)
    probed = _probed(ids, start, first, borders, probes, generator)
    plain, again = (Run(ids, probed, _run(method, ids, probed)) for _ in range(2))
    pool = _pool(ids, start, plain.trial.rows.shape[1])
    flipped: list[_Flip] = []
    for index, token in enumerate(first):
        # Each kind of place meets each kind of flip; the first flip is of the whole future.
        what, chosen = _chosen(ids, start, token, index % 3, generator)
        changed = _exchange(ids, chosen, pool, generator)
        # What picks the better of two scores decides anew where a target costs much more or less.
        row = plain.trial.rows[np.searchsorted(probed, token - 1), pool]
        likely = pool[np.argsort(row)]
        likely = likely[likely != ids[token]]
        changed[token] = likely[0 if index % 2 else -1]
        flipped.append(_Flip(token, what, Run(changed, probed, _run(method, changed, probed))))
    others: list[Run] = []
    number = np.cumsum(ids == start)
    if independent:
        for parity in (0, 1):
            chosen = np.flatnonzero((ids != start) & (number % 2 == parity))
            changed = _exchange(ids, chosen, pool, generator)
            others.append(Run(changed, probed, _run(method, changed, probed)))
    conditions = [
        *sound([plain, again, *(flip.run for flip in flipped), *others]),
        _causal(plain, flipped, tolerance),
        _score_first(plain, flipped, tolerance),
    ]
    if independent:
        conditions.append(_documents(plain, others, number, tolerance))
    conditions.append(replay(plain.trial.nats, again.trial.nats, tolerance))
    return Audit(tuple(conditions))


def runs(*, flips: int = 24, independent: bool = False) -> int:
    """How often :func:`audit` runs its method."""
    return 2 + flips + 2 * independent


def slice_of(
    ids: NDArray[np.uint32],
    start: int,
    *,
    flips: int = 24,
    independent: bool = False,
    chunk: int = 0,
    seed: int = 0,
) -> NDArray[np.uint32]:
    """A stream short enough that all runs over it cost less than half of one over the whole text.

    It holds the beginnings of consecutive documents, three at least if there are so many, from
    one drawn by the seed on. It is no shorter than three chunks of a policy that learns, nor
    than 512 targets, if the text is not; in a text that is too short for both, the audit
    costs more than a score.

    Args:
        ids: (targets + 1,) the stream of the text, which begins with ``start``.
        start: the token that begins a document.
        flips: as for :func:`audit`.
        independent: as for :func:`audit`.
        chunk: targets between which the policy learns, 0 if it never does.
        seed: where in the text to begin.
    """
    targets = len(ids) - 1
    affordable = min(MOST, int(SHARE * targets) // runs(flips=flips, independent=independent))
    wanted = min(targets, max(LEAST, 3 * chunk, affordable))
    begin = np.flatnonzero(ids == start)
    end = np.append(begin[1:], len(ids))
    turn = int(np.random.default_rng(seed).integers(len(begin)))
    begin, end = np.roll(begin, -turn), np.roll(end, -turn)
    left = wanted + 1
    size = end - begin
    # Tokens of one document: so few that three fit, so many that all together are enough.
    enough = bisect_left(range(left), left, key=lambda most: int(np.minimum(size, most).sum()))
    most = max(enough, -(-left // 3))
    parts: list[NDArray[np.uint32]] = []
    for i, j in zip(begin.tolist(), end.tolist(), strict=True):
        parts.append(ids[i : min(j, i + most, i + left)])
        left -= len(parts[-1])
    return np.concatenate(parts)


def sound(of: Sequence[Run]) -> list[Condition]:
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


def _causal(plain: Run, flips: Sequence[_Flip], tolerance: float) -> Condition:
    found: list[_Finding] = []
    compared = 0
    for token, what, (_, probed, trial) in flips:
        # Token j is target j - 1, whose own distribution is the matter of score_first.
        before = max(0, token - 1)
        gap = _beyond(plain.trial.nats[:before], trial.nats[:before], tolerance)
        seen = probed < before
        rows = _beyond(plain.trial.rows[seen], trial.rows[seen], tolerance).max(1, initial=0)
        compared += before + int(seen.sum())
        for kind, size, target in (
            ("nats", gap, np.arange(before)),
            ("distribution", rows, probed[seen]),
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
        f"were{_within(tolerance)}"
    )
    return _condition("causal", checked, found, len(flips))


def _score_first(plain: Run, flips: Sequence[_Flip], tolerance: float) -> Condition:
    found: list[_Finding] = []
    for token, what, (_, probed, trial) in flips:
        i = int(np.flatnonzero(probed == token - 1)[0])
        gap = _beyond(plain.trial.rows[i], trial.rows[i], tolerance)
        if gap.any():
            text = (
                f"the distribution at target {token - 1} depends on the target itself: changing "
                f"{what} changes it by up to {gap.max():.3g} nats"
            )
            found.append(_Finding(float(gap.max()), text))
    checked = (
        f"{len(flips)} changes of a target left its own distribution as it was{_within(tolerance)}"
    )
    return _condition("score_first", checked, found, len(flips))


def _documents(
    plain: Run, others: Sequence[Run], number: NDArray[np.int64], tolerance: float
) -> Condition:
    """``number`` is the document that each token belongs to; a target goes by its last input."""
    found: list[_Finding] = []
    for parity, (_, probed, trial) in enumerate(others):
        same = number[:-1] % 2 != parity
        gap = _beyond(plain.trial.nats, trial.nats, tolerance) * same
        rows = _beyond(plain.trial.rows, trial.rows, tolerance).max(1, initial=0) * same[probed]
        size = gap.copy()
        np.maximum.at(size, probed, rows)
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
    return _condition("documents", checked + _within(tolerance), found, len(others))


def _condition(name: Name, checked: str, found: Sequence[_Finding], of: int) -> Condition:
    if not found:
        return Condition(name, checked)
    worst = max(found, key=lambda finding: finding.size)
    return Condition(name, checked, f"{worst.what} (in {len(found)} of {_times(of)})")


def _run(method: Method, ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> Trial:
    trial = method(ids.copy(), probed.copy())
    targets = len(ids) - 1
    shapes = trial.nats.shape, trial.counts.shape, trial.rows.shape[:1]
    if shapes != ((targets,), (targets,), (len(probed),)):
        raise ScoreError(
            f"a method of scoring returned arrays of shapes {shapes} for {targets} targets and "
            f"{len(probed)} probes"
        )
    return trial


def _repeat(
    ids: NDArray[np.uint32], start: int, generator: np.random.Generator
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The stream with one passage of it in several places, and tokens in its later copies.

    A cache that finds one in ten thousand tokens of a text would hardly ever be caught at it.
    """
    begin = np.flatnonzero(ids == start) + 1
    begin = begin if len(begin) and ids[0] == start else np.append(0, begin)
    end = np.append(begin[1:] - 1, len(ids))
    longest = int(np.argmax(end - begin))
    length = min(PASSAGE, int(end[longest] - begin[longest]) // (2 * COPIES))
    if length < 4:
        return ids, np.empty(0, np.int64)
    source = int(generator.integers(begin[longest], end[longest] - length + 1))
    passage = ids[source : source + length]
    roomy = np.flatnonzero(end - begin >= 4 * length)
    roomy = np.sort(generator.permutation(roomy)[:REPEATING])
    ids, places = ids.copy(), []
    for b, e in zip(begin[roomy].tolist(), end[roomy].tolist(), strict=True):
        copies = min(COPIES, (e - b) // (2 * length))
        slot = (e - b) // copies
        places += [b + i * slot + (slot - length) // 2 for i in range(copies)]
    for place in places:
        ids[place : place + length] = passage
    later = np.array(places[len(places) // 2 :], np.int64)
    return ids, (later[:, None] + np.arange(length // 2, length)).ravel()


def _first_flipped(
    ids: NDArray[np.uint32],
    start: int,
    passages: NDArray[np.int64],
    borders: Sequence[int],
    count: int,
    generator: np.random.Generator,
) -> list[int]:
    """Where each flip begins: once early, then after borders, in repeated passages, anywhere."""
    movable = np.flatnonzero(ids[1:] != start) + 1
    if not movable.size:
        raise ScoreError("there is no token to flip in the text of the audit; give it more text")
    after = np.intersect1d(np.asarray(borders, np.int64) + 1, movable)
    early = movable[: max(1, int(np.searchsorted(movable, EARLY, "right")))]
    after, passages, movable = (generator.permutation(p) for p in (after, passages, movable))
    places = [p.tolist() for p in (after, passages[::2], movable, passages[1::2])]
    in_turn = (token for turn in zip_longest(*places) for token in turn if token is not None)
    return [int(generator.choice(early)), *islice(in_turn, count - 1)]


def _probed(
    ids: NDArray[np.uint32],
    start: int,
    first: Sequence[int],
    borders: Sequence[int],
    count: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Targets to look at: those of the flips, after borders and starts, and some anywhere."""
    every = np.arange(len(ids) - 1)
    after = np.union1d(np.asarray(borders, np.int64), np.flatnonzero(ids[:-1] == start))
    after = np.intersect1d(after, every)
    chosen = [
        np.asarray(first, np.int64) - 1,
        generator.permutation(after)[: count // 4],
        generator.permutation(every)[:count],
    ]
    return np.unique(np.concatenate(chosen))


def _pool(ids: NDArray[np.uint32], start: int, vocab: int) -> NDArray[np.uint32]:
    """The tokens to put in the place of others: those of the text, if it has more than one."""
    pool = np.setdiff1d(ids, [start])
    return pool if len(pool) > 1 else np.setdiff1d(np.arange(vocab, dtype=np.uint32), [start])


def _chosen(
    ids: NDArray[np.uint32], start: int, token: int, kind: int, generator: np.random.Generator
) -> tuple[str, NDArray[np.int64]]:
    """The tokens that a flip changes: all from ``token`` on (0), it alone (1) or some (2)."""
    later = np.flatnonzero(ids[token + 1 :] != start) + token + 1
    if kind == 0:
        return f"all tokens from {token} on", np.append(token, later)
    if kind == 1 or not later.size:
        return f"token {token}", np.array([token])
    some = generator.permutation(later)[:LATER]
    return f"token {token} and {len(some)} later ones", np.append(token, some)


def _exchange(
    ids: NDArray[np.uint32],
    chosen: NDArray[np.int64],
    pool: NDArray[np.uint32],
    generator: np.random.Generator,
) -> NDArray[np.uint32]:
    """The stream with another token of the pool in each of the chosen places."""
    drawn = generator.integers(0, len(pool), len(chosen))
    drawn = np.where(pool[drawn] == ids[chosen], (drawn + 1) % len(pool), drawn)
    changed = ids.copy()
    changed[chosen] = pool[drawn]
    return changed


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


def _within(tolerance: float) -> str:
    return ", to the last bit" if tolerance == 0 else f", within {tolerance:g} nats"


def _times(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
