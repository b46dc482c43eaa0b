"""The audit of a method of scoring: it runs again on a text of which some tokens are different."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

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
from .conditions import (
    SHORTENED,
    Audit,
    Condition,
    Flip,
    causal,
    documents,
    replay,
    replays,
    score_first,
    shortened,
    sound,
    within,
)
from .trials import AuditedRun, Method, run_method

ROWS: Final = 1 << 24  # log-probabilities that one run is asked for at most: 128 MiB
NOBODY: Final[NDArray[np.int64]] = np.empty(0, np.int64)
ASKED: Final = 256  # targets of a whole text whose distributions are asked for


@dataclass(frozen=True)
class AuditPlan:
    """How an audit is made, and what the method claims of itself.

    Attributes:
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
    """

    seed: int | None = None
    flips: int = FLIPS
    probes: int = 64
    borders: Sequence[int] = ()
    independent: bool = False
    extends: bool = False
    tolerance: float = 0.0


DEFAULT: Final = AuditPlan()


def audit(
    method: Method,
    ids: NDArray[np.uint32],
    start: int,
    plan: AuditPlan = DEFAULT,
    *,
    fresh: Callable[[], Method] | None = None,
) -> Audit:
    """Hold a method of scoring against the conditions of a legal score.

    The method runs :func:`segpt.audit.changes.runs` times on ``ids``, in which one passage is
    repeated first, so that what remembers the text has something to remember. Start tokens stay
    where they are and no others appear. Four of the runs are on the same text: two ask for no
    distributions, as a score does, and two for those of one half of the targets each, drawn at
    random. So the nats of every target are held against its distribution, and against themselves
    when nobody asks.

    The method gets copies of the tokens (targets + 1,) and of the probed targets, sorted and
    perhaps none, and returns a :class:`Trial`. It must accept any tokens that occur in ``ids`` in
    any order, and, if it ``extends``, fewer of them. Between runs it may keep its weights, but
    nothing that it learnt or counted. At most 16 million log-probabilities are asked for at once;
    with a large vocabulary and a long ``ids`` that is less than half of the targets.

    Args:
        method: scores a stream from its beginning, in a state that does not outlast the call.
        ids: (targets + 1,) the stream; a slice of the text as from
            :func:`segpt.audit.changes.slice_of` is enough.
        start: the token that begins a document.
        plan: how it is audited, and what it claims.
        fresh: makes the method anew, for every run, so that it cannot remember other runs. Without
            it, a method that looks up what it answered to the same beginning is not caught.

    Raises:
        ScoreError: if there is no token to flip, or the method returns arrays of other shapes.
    """
    seed = drawn(plan.seed)
    generator = np.random.default_rng(seed)
    ids, passages = repeat_passage(ids, start, generator)
    first = first_flipped(ids, start, passages, plan.borders, plan.flips, generator)
    asker = _Asker(method, fresh, ids, start, generator, plan.probes)
    plain, reference = asker.plain(first)
    more, changes = asker.flips(first, reference)
    plain.append(more)
    others = asker.others() if plan.independent else []
    shorter = asker.shorter() if plan.extends else []
    conditions = [
        *sound([*plain, *(flip.run for flip in changes), *others, *shorter]),
        causal(reference, changes, plan.tolerance),
        score_first(reference, changes, plan.tolerance),
    ]
    if plan.independent:
        conditions.append(documents(reference, others, np.cumsum(ids == start), plan.tolerance))
    if plan.extends:
        conditions.append(shortened(reference, shorter, max(plan.tolerance, SHORTENED)))
    conditions.append(replays(plain, plan.tolerance))
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

    def run(self, ids: NDArray[np.uint32], probed: NDArray[np.int64]) -> AuditedRun:
        method = self.method if self.fresh is None else self.fresh()
        return AuditedRun(ids, probed, run_method(method, ids, probed))

    def plain(self, first: Sequence[int]) -> tuple[list[AuditedRun], AuditedRun]:
        """Three runs on the stream, and one that has the distributions of all of them.

        The targets of the flips that begin at the tokens ``first`` are asked for in any case.
        """
        runs = [self.run(self.ids, NOBODY)]
        vocab = runs[0].trial.rows.shape[1]
        self.most = max(1, ROWS // vocab)
        self.pool = pool_of(self.ids, self.start, vocab)
        runs += [self.run(self.ids, probed) for probed in self.halves(first)]
        return runs, _merged(runs)

    def flips(self, first: Sequence[int], reference: AuditedRun) -> tuple[AuditedRun, list[Flip]]:
        """A run on the stream itself, somewhere among runs in which it is changed."""
        expected = expected_of(self.ids, reference.probed, reference.trial.rows, self.pool)
        more, changes = None, list[Flip]()
        for index in self.generator.permutation(len(first) + 1).tolist():
            if index == len(first):
                more = self.run(self.ids, NOBODY)
                continue
            token = first[index]
            what, changed = flipped(
                self.ids, self.start, token, index, self.pool, expected, self.generator
            )
            changes.append(Flip(token, what, self.run(changed, self.some([token - 1]))))
        assert more is not None
        return more, changes

    def others(self) -> list[AuditedRun]:
        """Runs in which every second document is another."""
        number = np.cumsum(self.ids == self.start)
        runs = []
        for parity in (0, 1):
            chosen = np.flatnonzero((self.ids != self.start) & (number % 2 == parity))
            changed = exchange(self.ids, chosen, self.pool, self.generator)
            runs.append(self.run(changed, self.some()))
        return runs

    def shorter(self) -> list[AuditedRun]:
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


def _merged(plain: Sequence[AuditedRun]) -> AuditedRun:
    """The first run, with the distributions of all."""
    probed = np.concatenate([run.probed for run in plain])
    rows = np.concatenate([run.trial.rows for run in plain])
    order = np.argsort(probed)
    return AuditedRun(plain[0].ids, probed[order], plain[0].trial._replace(rows=rows[order]))


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
        seed: as in :class:`AuditPlan`.
        probes: targets whose distributions are asked for, drawn at random.
        tolerance: as in :class:`AuditPlan`.
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
    again = AuditedRun(ids, probed, run_method(method, ids, probed))
    # Others are asked for, but for those whose distributions are compared.
    probed = np.union1d(generator.permutation(targets)[:probes], probed[probed < token])
    flip = Flip(
        token,
        f"all tokens from {token} on",
        AuditedRun(changed, probed, run_method(method, changed, probed)),
    )
    whole = _whole(again, flip, nats, tolerance)
    return whole, replay(nats, again.trial.nats, tolerance, name=name)


def _whole(again: AuditedRun, flip: Flip, nats: NDArray[np.float64], tolerance: float) -> Condition:
    """What a second run and a flip say of the ``nats`` of a whole text."""
    token = flip.token
    held = [
        causal(again._replace(trial=again.trial._replace(nats=nats)), [flip], tolerance)
        if len(nats) == len(again.trial.nats)
        else Condition("causal", "", "the score is of another number of targets"),
        score_first(again, [flip], tolerance),
        *sound([again, flip.run]),
    ]
    broken = [f"{c.name}: {c.violation}" for c in held if c.violation is not None]
    return Condition(
        "whole_text",
        f"a text of the same length, other from token {token} on, gave the {token - 1:,} targets "
        f"before it the same nats{within(tolerance)}, and {len(again.probed):,} distributions "
        "agree with the nats",
        "; ".join(broken) or None,
    )


def drawn(seed: int | None) -> int:
    """The seed, or one of the operating system that nobody can know beforehand."""
    return secrets.randbits(63) if seed is None else seed
