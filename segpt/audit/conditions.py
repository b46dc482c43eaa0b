"""The legality of a score, checked from outside: what it does when the text changes.

A method of scoring is run again on a text of which some tokens are different. The conditions are
those of the Parameter Golf contest: a distribution depends on earlier tokens only, sums to one, is
fixed before its target is used for anything, and every target counts once.
"""

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ScoreError

from .changes import (
    FLIPS,
    exchange,
    expected_of,
    first_flipped,
    flipped,
    movable_of,
    other_part,
    pool_of,
    repeat_passage,
)
from .changes import runs as runs
from .changes import slice_of as slice_of

NORMALISED: Final = 1e-4  # how far a sum of probabilities may be from 1
SUMMED: Final = 1e-5  # how far nats may be from their row, in parts of themselves above 1
SHORTENED: Final = 1e-3  # nats: shorter texts make other batches, which round differently
ROWS: Final = 1 << 24  # log-probabilities that one run is asked for at most: 128 MiB
NOBODY: Final[NDArray[np.int64]] = np.empty(0, np.int64)
ASKED: Final = 256  # targets of a whole text whose distributions are asked for


class Trial(NamedTuple):
    """One run of a method over a stream of ``targets`` + 1 tokens.

    Attributes:
        nats: (targets,) of every target, as the score sums them.
        rows: (probes, vocab) log-probabilities over the whole alphabet at the probed targets,
            after every cap, tilt and mixture; (0, vocab) if none are probed.
        counts: (targets,) how often each target was scored.
    """

    nats: NDArray[np.float64]
    rows: NDArray[np.float64]
    counts: NDArray[np.integer[Any]]


# Gets the tokens (targets + 1,) and the targets to probe, in order, perhaps none.
Method = Callable[[NDArray[np.uint32], NDArray[np.int64]], Trial]

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
    seed: int | None = None,
    flips: int = FLIPS,
    probes: int = 64,
    borders: Sequence[int] = (),
    independent: bool = False,
    extends: bool = False,
    tolerance: float = 0.0,
    fresh: Callable[[], Method] | None = None,
) -> Audit:
    """Hold a method of scoring against the conditions of a legal score.

    The method runs :func:`runs` times on ``ids``, in which one passage is repeated first, so that
    what remembers the text has something to remember. Start tokens stay where they are and no
    others appear. Four of the runs are on the same text: two ask for no distributions, as a score
    does, and two for those of one half of the targets each, drawn at random. So the nats of every
    target are held against its distribution, and against themselves when nobody asks.

    The method gets copies of the tokens (targets + 1,) and of the probed targets, sorted and
    perhaps none, and returns a :class:`Trial`. It must accept any tokens that occur in ``ids`` in
    any order, and, if it ``extends``, fewer of them. Between runs it may keep its weights, but
    nothing that it learnt or counted. At most 16 million log-probabilities are asked for at once;
    with a large vocabulary and a long ``ids`` that is less than half of the targets.

    Args:
        method: scores a stream from its beginning, in a state that does not outlast the call.
        ids: (targets + 1,) the stream; a slice of the text as from :func:`slice_of` is enough.
        start: the token that begins a document.
        seed: what is flipped and probed. Drawn from the operating system if it is null, so that
            no method can have been made to fit it; give one only to repeat an audit.
        flips: runs in which a token and perhaps later ones are different.
        probes: targets drawn at random whose distributions are looked at in a flip, on average.
        borders: targets before which the method learns, where flips are most telling.
        independent: the method claims that nothing passes from one document to another.
        extends: the method claims that a text which goes on does not change what came before; not
            what plans its steps by the length of the text.
        tolerance: the largest difference, in nats, between numbers that should be identical: 0
            where the same computation gives the same bits.
        fresh: makes the method anew, for every run, so that it cannot remember other runs. Without
            it, a method that looks up what it answered to the same beginning is not caught.

    Raises:
        ScoreError: if there is no token to flip, or the method returns arrays of other shapes.
    """
    seed = drawn(seed)
    generator = np.random.default_rng(seed)
    ids, passages = repeat_passage(ids, start, generator)
    first = first_flipped(ids, start, passages, borders, flips, generator)
    asker = _Asker(method, fresh, ids, start, generator, probes)
    plain, reference = asker.plain(first)
    more, changes = asker.flips(first, reference)
    plain.append(more)
    others = asker.others() if independent else []
    shorter = asker.shorter() if extends else []
    conditions = [
        *sound([*plain, *(flip.run for flip in changes), *others, *shorter]),
        _causal(reference, changes, tolerance),
        _score_first(reference, changes, tolerance),
    ]
    if independent:
        conditions.append(_documents(reference, others, np.cumsum(ids == start), tolerance))
    if extends:
        conditions.append(_shortened(reference, shorter, max(tolerance, SHORTENED)))
    conditions.append(_replays(plain, tolerance))
    return Audit(tuple(conditions), seed)


class _Asker:
    """Runs a method on one stream and on changed copies, and decides which targets to ask for."""

    def __init__(
        self,
        method: Method,
        fresh: Callable[[], Method] | None,
        ids: NDArray[np.uint32],
        start: int,
        generator: np.random.Generator,
        probes: int,
    ) -> None:
        self.method, self.fresh, self.ids, self.start = method, fresh, ids, start
        self.generator, self.probes = generator, probes
        self.most, self.pool = 1, ids[:0]

    def run(self, ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> Run:
        method = self.method if self.fresh is None else self.fresh()
        return Run(ids, probed, _run(method, ids, probed))

    def plain(self, first: Sequence[int]) -> tuple[list[Run], Run]:
        """Three runs on the stream, and one that has the distributions of all of them.

        The targets of the flips that begin at the tokens ``first`` are asked for in any case.
        """
        runs = [self.run(self.ids, NOBODY)]
        vocab = runs[0].trial.rows.shape[1]
        self.most = max(1, ROWS // vocab)
        self.pool = pool_of(self.ids, self.start, vocab)
        runs += [self.run(self.ids, probed) for probed in self.halves(first)]
        return runs, _merged(runs)

    def flips(self, first: Sequence[int], reference: Run) -> tuple[Run, list[_Flip]]:
        """A run on the stream itself, somewhere among runs in which it is changed."""
        expected = expected_of(self.ids, reference.probed, reference.trial.rows, self.pool)
        more, changes = None, list[_Flip]()
        for index in self.generator.permutation(len(first) + 1).tolist():
            if index == len(first):
                more = self.run(self.ids, NOBODY)
                continue
            token = first[index]
            what, changed = flipped(
                self.ids, self.start, token, index, self.pool, expected, self.generator
            )
            changes.append(_Flip(token, what, self.run(changed, self.some([token - 1]))))
        assert more is not None
        return more, changes

    def others(self) -> list[Run]:
        """Runs in which every second document is another."""
        number = np.cumsum(self.ids == self.start)
        runs = []
        for parity in (0, 1):
            chosen = np.flatnonzero((self.ids != self.start) & (number % 2 == parity))
            changed = exchange(self.ids, chosen, self.pool, self.generator)
            runs.append(self.run(changed, self.some()))
        return runs

    def shorter(self) -> list[Run]:
        """Runs in which the stream ends early."""
        targets, runs = len(self.ids) - 1, []
        for _ in range(2):
            cut = int(self.generator.integers(targets // 2, targets))
            probed = self.some()
            runs.append(self.run(self.ids[: cut + 1], probed[probed < cut]))
        return runs

    def some(self, wanted: Sequence[int] = ()) -> NDArray[np.int64]:
        """The wanted targets and others, nobody knows how many."""
        count = min(self.most, int(self.generator.integers(2 * self.probes + 1)))
        drawn = self.generator.permutation(len(self.ids) - 1)[:count]
        return np.union1d(drawn, wanted).astype(np.int64)

    def halves(self, first: Sequence[int]) -> list[NDArray[np.int64]]:
        """The targets in two random halves, or as many as two runs can be asked for."""
        wanted = np.unique(np.asarray(first, np.int64) - 1)
        rest = np.setdiff1d(np.arange(len(self.ids) - 1), wanted)
        chosen = np.append(wanted, self.generator.permutation(rest))
        chosen = self.generator.permutation(chosen[: max(len(wanted), 2 * self.most)])
        return [np.sort(half) for half in np.array_split(chosen, 2)]


def audit_whole(
    method: Method,
    ids: NDArray[np.uint32],
    start: int,
    nats: NDArray[np.float64],
    *,
    seed: int | None = None,
    probes: int = ASKED,
    tolerance: float = 0.0,
    name: Literal["replay", "fresh_process"] = "replay",
) -> tuple[Condition, Condition]:
    """Hold the score of a whole text against two more, for what is legal only in a slice of it.

    One is of the same text, but distributions are asked for; the score was asked for none. The
    other is of a text of the same length that goes on differently from some place on.

    Args:
        method: as for :func:`audit`.
        ids: (targets + 1,) the stream of the whole text.
        start: the token that begins a document.
        nats: (targets,) what the score found for every target.
        seed: as for :func:`audit`.
        probes: targets whose distributions are asked for, drawn at random.
        tolerance: as for :func:`audit`.
        name: what the first of the two conditions is called; the other is ``whole_text``.

    Raises:
        ScoreError: if there is no token to flip, or the method returns arrays of other shapes.
    """
    generator = np.random.default_rng(drawn(seed))
    targets = np.arange(len(ids) - 1)
    movable = movable_of(ids, start)
    late = movable[int(0.4 * len(movable)) : max(1, int(0.9 * len(movable)))]
    token = int(generator.choice(late if late.size else movable))
    later = movable[movable > token]
    pool = pool_of(ids, start, int(ids.max()) + 1)
    changed = other_part(ids, token, later, pool, generator)
    probed = np.union1d(generator.permutation(targets)[:probes], [token - 1])
    again = Run(ids, probed, _run(method, ids, probed))
    # Others are asked for, but for those whose distributions are compared.
    probed = np.union1d(generator.permutation(targets)[:probes], probed[probed < token])
    flip = _Flip(
        token, f"all tokens from {token} on", Run(changed, probed, _run(method, changed, probed))
    )
    held = [
        _causal(again._replace(trial=again.trial._replace(nats=nats)), [flip], tolerance)
        if len(nats) == len(targets)
        else Condition("causal", "", "the score is of another number of targets"),
        _score_first(again, [flip], tolerance),
        *sound([again, flip.run]),
    ]
    broken = [f"{c.name}: {c.violation}" for c in held if c.violation is not None]
    whole = Condition(
        "whole_text",
        f"a text of the same length, other from token {token} on, gave the {token - 1:,} targets "
        f"before it the same nats{_within(tolerance)}, and {len(again.probed):,} distributions "
        "agree with the nats",
        "; ".join(broken) or None,
    )
    return whole, replay(nats, again.trial.nats, tolerance, name=name)


def drawn(seed: int | None) -> int:
    """The seed, or one of the operating system that nobody can know beforehand."""
    return secrets.randbits(63) if seed is None else seed


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


def _replays(plain: Sequence[Run], tolerance: float) -> Condition:
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
        f"{len(first):,} nats{_within(tolerance)}"
    )
    return _condition("replay", checked, findings, len(plain) - 1)


def _shortened(plain: Run, shorter: Sequence[Run], tolerance: float) -> Condition:
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
    checked = f"the first {sizes} targets alone score the same{_within(tolerance)}"
    return _condition("shortened", checked, findings, len(shorter))


def _merged(plain: Sequence[Run]) -> Run:
    """The first run, with the distributions of all."""
    probed = np.concatenate([run.probed for run in plain])
    rows = np.concatenate([run.trial.rows for run in plain])
    order = np.argsort(probed)
    return Run(plain[0].ids, probed[order], plain[0].trial._replace(rows=rows[order]))


def _common(plain: Run, probed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of the plain run and of one with these probes are of the same target."""
    _, mine, theirs = np.intersect1d(plain.probed, probed, return_indices=True)
    return mine, theirs


def _causal(plain: Run, flips: Sequence[_Flip], tolerance: float) -> Condition:
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
        f"were{_within(tolerance)}"
    )
    return _condition("causal", checked, found, len(flips))


def _score_first(plain: Run, flips: Sequence[_Flip], tolerance: float) -> Condition:
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
    return _condition("documents", checked + _within(tolerance), found, len(others))


def _condition(name: Name, checked: str, found: Sequence[_Finding], of: int) -> Condition:
    if not found:
        return Condition(name, checked)
    worst = max(found, key=lambda finding: finding.size)
    return Condition(name, checked, f"{worst.what} (in {len(found)} of {_times(of)})")


def _run(method: Method, ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> Trial:
    answer = method(ids.copy(), probed.copy())
    try:
        # Copies, as a method could change what it has returned in a later run.
        nats, rows, counts = answer
        trial = Trial(
            np.array(nats, np.float64), np.array(rows, np.float64), np.array(counts, np.int64)
        )
    except (TypeError, ValueError) as error:
        raise ScoreError(
            "a method of scoring must return a Trial of three arrays: nats, rows and counts"
        ) from error
    targets = len(ids) - 1
    shapes = tuple(array.shape for array in trial)
    vocab = trial.rows.shape[-1] if trial.rows.ndim else 0
    if shapes != ((targets,), (len(probed), vocab), (targets,)) or vocab <= int(ids.max()):
        raise ScoreError(
            f"a method of scoring returned arrays of shapes {shapes} for {targets} targets and "
            f"{len(probed)} probes; right is ({targets},), ({len(probed)}, tokens of the "
            f"vocabulary) and ({targets},)"
        )
    return trial


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
