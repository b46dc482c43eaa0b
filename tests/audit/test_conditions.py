"""The audit catches every planted cheat, by the condition it breaks, and accuses no one else."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.audit import audit as auditing
from segpt.audit.audit import AuditPlan, audit, audit_whole
from segpt.audit.changes import runs, slice_of
from segpt.audit.conditions import Audit, replay, sound
from segpt.audit.run import borders_of, independent, method_of
from segpt.audit.trials import AuditedRun, Method, Trial
from segpt.config.ngram import Ngram
from segpt.config.score import Frozen, InPlace, LowRank, Phased, ScoreSpec, Sgd
from segpt.errors import ScoreError
from segpt.model.model import Model
from tests.eval import cheats
from tests.eval.cheats import CHEATS, CONTEXT, EVASIONS, HONEST, START, Evasion, honest_table

MakeModel = Callable[..., Model]
Ids = NDArray[np.uint32]
Probed = NDArray[np.int64]

SEEDS = [
    pytest.param(range(1), id="1 seed"),
    pytest.param(range(1, 20), id="19 more", marks=pytest.mark.campaign),
]
ADAPTERS = LowRank(rank=2, chunk=48, documents=4)
SPECS = {
    "frozen": ScoreSpec(stride=8),
    "another stride": ScoreSpec(stride=5, batch=3),
    "document": ScoreSpec(stride=8, boundaries="document"),
    "rolling": ScoreSpec(mode="rolling"),
    "rolling document": ScoreSpec(mode="rolling", boundaries="document"),
    "sgd": ScoreSpec(stride=8, policy=Sgd(chunk=96, rate=0.1)),
    "rolling sgd": ScoreSpec(mode="rolling", policy=Sgd(chunk=96, rate=0.1)),
    "adapters": ScoreSpec(stride=8, boundaries="document", policy=ADAPTERS),
    "phased": ScoreSpec(stride=8, boundaries="document", policy=Phased(adapters=ADAPTERS)),
    "in place": ScoreSpec(mode="rolling", boundaries="document", policy=InPlace()),
    "ngram": ScoreSpec(stride=8, ngram=Ngram()),
    "sgd and ngram": ScoreSpec(stride=8, policy=Sgd(chunk=96, rate=0.1), ngram=Ngram()),
}
FAST = {
    "mixer": {
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 8,
        "query_key": ["norm", {"kind": "rope", "dims": 4}],
    },
    "feed": {"hidden": 24, "fast": {"chunk": 4, "rate": 0.05}},
}


def text(seed: int, sizes: Iterable[int] = (8, 20, 40, 136)) -> Ids:
    """Documents of random tokens, in an order of their own, each after a start."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(1, 32, size) for size in draw.permutation(list(sizes))]
    return np.concatenate([np.append(START, d) for d in documents]).astype(np.uint32)


def broken(found: Audit) -> list[str]:
    return [condition.name for condition in found.violations]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_caught(tiny: MakeModel, name: str, seeds: range) -> None:
    cheat, model = CHEATS[name], tiny()
    for seed in seeds:
        ids = text(seed)
        found = audit(
            cheat.method(model),
            ids,
            START,
            AuditPlan(
                seed=seed,
                borders=cheats.borders(ids),
                independent=cheat.independent,
                flips=cheat.flips,
            ),
        )
        assert cheat.caught_by in broken(found), (seed, found.plain())


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", HONEST)
def test_its_honest_twin_is_not(tiny: MakeModel, name: str, seeds: range) -> None:
    (method, alone), model = HONEST[name], tiny()
    for seed in seeds:
        ids, borders = text(seed), cheats.borders(text(seed))
        found = audit(
            method(model),
            ids,
            START,
            AuditPlan(seed=seed, flips=12, borders=borders, independent=alone),
        )
        assert not found.violations, (seed, found.plain())


def held(model: Model, spec: ScoreSpec, seed: int) -> Audit:
    ids = text(seed)
    return audit(
        method_of(model, spec, CONTEXT, START),
        ids,
        START,
        AuditPlan(
            seed=seed,
            flips=8,
            borders=borders_of(ids, spec, CONTEXT, START),
            independent=independent(spec),
            extends=isinstance(spec.policy, Frozen),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", SPECS)
def test_no_policy_is_accused(tiny: MakeModel, name: str, seeds: range) -> None:
    model = tiny(layer=FAST) if isinstance(SPECS[name].policy, InPlace) else tiny()
    for seed in seeds:
        found = held(model, SPECS[name], seed)
        assert not found.violations, (seed, found.plain())


def evaded(evasion: Evasion, ids: Ids, seed: int, **more: Any) -> Audit:
    fresh = evasion.make if evasion.remembers else None
    return audit(evasion.make(), ids, START, AuditPlan(seed=seed, flips=12, **more), fresh=fresh)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", EVASIONS)
def test_what_behaves_where_it_is_looked_at_is_caught(name: str, seeds: range) -> None:
    for seed in seeds:
        outcome = evaded(EVASIONS[name], text(seed), seed)
        assert set(EVASIONS[name].caught_by) & set(broken(outcome)), (seed, outcome.plain())


@pytest.mark.parametrize("seeds", SEEDS)
def test_a_table_is_not_accused(seeds: range) -> None:
    for seed in seeds:
        honest = Evasion(lambda: honest_table, (), remembers=seed % 2 == 0)
        outcome = evaded(honest, text(seed), seed, extends=True)
        assert not outcome.violations, (seed, outcome.plain())


@pytest.mark.slow
def test_documents_that_share_something_are_told_apart(tiny: MakeModel) -> None:
    model, ids = tiny(), text(0)
    for spec, shared in ((SPECS["frozen"], True), (SPECS["sgd"], True), (SPECS["document"], False)):
        method = method_of(model, spec, CONTEXT, START)
        found = audit(method, ids, START, AuditPlan(seed=0, flips=6, independent=True))
        assert broken(found) == (["documents"] if shared else [])


# What the audit does, seen by methods of closed form.


def uniform(ids: Ids, probed: Probed) -> Trial:
    targets = len(ids) - 1
    rows = np.full((len(probed), 32), -np.log(32.0))
    return Trial(np.full(targets, np.log(32.0)), rows, np.ones(targets, np.uint8))


def test_only_tokens_that_may_change_are_changed() -> None:
    seen: list[Ids] = []

    def method(ids: Ids, probed: Probed) -> Trial:
        seen.append(ids)
        return uniform(ids, probed)

    ids = text(3)
    found = audit(method, ids, START, AuditPlan(seed=0, flips=7, independent=True, borders=[96]))
    assert not found.violations
    assert len(seen) == runs(flips=7, independent=True) == 13
    assert sum(np.array_equal(seen[0], one) for one in seen) == 4
    for changed in seen:
        assert np.array_equal(changed == START, ids == START)
        assert np.isin(changed, ids).all()
    first = [int(np.flatnonzero(one != seen[0])[0]) for one in seen[3:11] if (one != seen[0]).any()]
    assert len(first) == 7
    assert min(first) <= 16
    assert 97 in first
    odd, even = (changed != seen[0] for changed in seen[11:])
    assert np.array_equal(odd ^ even, ids != START)


def test_a_passage_comes_again() -> None:
    seen: list[Ids] = []

    def method(ids: Ids, probed: Probed) -> Trial:
        seen.append(ids)
        return uniform(ids, probed)

    audit(method, text(4, [300]), START, AuditPlan(seed=0))
    twelves = np.lib.stride_tricks.sliding_window_view(seen[0], 12)
    assert np.unique(twelves, axis=0, return_counts=True)[1].max() >= 4


def test_a_violation_names_its_place_and_size() -> None:
    def method(ids: Ids, probed: Probed) -> Trial:
        nats, rows, counts = uniform(ids, probed)
        counts[5:7] = 0, 3
        rows[probed % 50 == 3] += 0.5
        nats = nats + np.arange(len(nats)) * (ids[-1] + 1)
        return Trial(nats, rows, counts)

    told = audit(method, text(5), START, AuditPlan(seed=0)).plain()
    assert told["coverage"].startswith(
        "VIOLATED: target 5 was scored 0 times, and 2 of 207 targets other than once"
    )
    assert "sum to 1.64872" in told["normalised"]
    assert "but its distribution gives it 3.465736" in told["summed"]
    assert "changes the nats of target" in told["causal"]
    assert told["score_first"].startswith("24 changes of a target left its own distribution")
    assert told["replay"] == (
        "4 runs on the same text, asked for other distributions each, gave the same 207 nats, to "
        "the last bit"
    )


def test_what_changes_by_itself_is_found() -> None:
    draw = np.random.default_rng(0)

    def method(ids: Ids, probed: Probed) -> Trial:
        nats, rows, counts = uniform(ids, probed)
        return Trial(nats + 1e-7 * draw.random(len(nats)), rows, counts)

    found = audit(method, text(6), START, AuditPlan(seed=0))
    assert broken(found) == ["causal", "replay"]
    assert not audit(method, text(6), START, AuditPlan(seed=0, tolerance=1e-6)).violations


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_found(value: float) -> None:
    def method(ids: Ids, probed: Probed) -> Trial:
        nats, rows, counts = uniform(ids, probed)
        nats[17] = value
        return Trial(nats, rows, counts)

    for probes in (4, 300):
        assert "summed" in broken(audit(method, text(7), START, AuditPlan(seed=0, probes=probes)))

    def mute(ids: Ids, probed: Probed) -> Trial:
        nats, rows, counts = uniform(ids, probed)
        return Trial(nats, np.full_like(rows, value), counts)

    assert {"normalised", "summed"} <= set(broken(audit(mute, text(7), START, AuditPlan(seed=0))))


def test_probabilities_of_zero_are_allowed() -> None:
    def method(ids: Ids, probed: Probed) -> Trial:
        nats, rows, counts = uniform(ids, probed)
        rows[:, :] = -np.log(31.0)
        rows[:, START] = -np.inf  # which no target of one document is
        return Trial(np.full(len(nats), np.log(31.0)), rows, counts)

    assert not audit(method, text(8, [150]), START, AuditPlan(seed=0)).violations


def test_a_method_of_other_shapes_is_refused() -> None:
    def method(ids: Ids, probed: Probed) -> Trial:
        nats, rows, counts = uniform(ids, probed)
        return Trial(nats[1:], rows, counts)

    with pytest.raises(ScoreError, match="shapes"):
        audit(method, text(9), START)


@pytest.mark.parametrize("rows", [None, np.zeros((1, 2)), np.zeros(3), "rows", [[0.0], [1, 2]]])
def test_what_is_no_trial_is_refused(rows: Any) -> None:
    def method(ids: Ids, probed: Probed) -> Trial:
        return uniform(ids, probed)._replace(rows=rows)

    with pytest.raises(ScoreError, match="a method of scoring"):
        audit(method, text(9), START)


# Whom it asks.


def asked_in(**more: Any) -> list[Probed]:
    asked: list[Probed] = []

    def method(ids: Ids, probed: Probed) -> Trial:
        asked.append(probed)
        return uniform(ids, probed)

    audit(method, text(3), START, AuditPlan(flips=7, **more))
    return asked


def test_every_target_is_asked_for_and_not_asked_for() -> None:
    asked = asked_in(seed=1)
    assert not len(asked[0])
    halves = np.concatenate(asked[1:3])
    assert np.array_equal(np.sort(halves), np.arange(207))
    assert sum(not len(probed) for probed in asked) == 2
    assert len({len(probed) for probed in asked[3:]}) > 4


def test_no_one_can_know_what_it_asks() -> None:
    one, two = asked_in(), asked_in()
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    seeds = {audit(uniform, text(3), START, AuditPlan(flips=2)).seed for _ in range(3)}
    assert len(seeds) == 3


def test_an_audit_is_repeated_by_its_seed() -> None:
    seed = audit(uniform, text(3), START, AuditPlan(flips=2)).seed
    one, two = asked_in(seed=seed), asked_in(seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_large_vocabularies_are_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "ROWS", 32 * 20)
    asked = asked_in(seed=1)
    assert max(map(len, asked)) <= 21
    assert len(np.union1d(*asked[1:3])) == 40


# The whole text.


LENGTH = len(text(0, [700]))


def long_texts_alone(ids: Ids, asked: Probed) -> Trial:
    """Cheats, by a bias that is shown, only if the text is as long as the one that counts."""
    rows = cheats.bias_of_whole(ids) if len(ids) == LENGTH else cheats.table(ids)
    return Trial(cheats.nats(rows, ids), rows[asked], np.ones(len(rows), np.uint8))


def asked_in_long_texts(ids: Ids, asked: Probed) -> Trial:
    """Halves a hundredth of what is not asked for, only in the text that counts."""
    rows = cheats.table(ids)
    nats = cheats.nats(rows, ids)
    nats[cheats.unasked(ids, asked) & (len(ids) == LENGTH)] *= 0.99
    return Trial(nats, rows[asked], np.ones(len(rows), np.uint8))


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("method", [long_texts_alone, asked_in_long_texts, honest_table])
def test_the_whole_text_is_held_too(method: Method, seeds: range) -> None:
    for seed in seeds:
        ids = text(seed, [700])
        nats = method(ids, np.empty(0, np.int64)).nats
        assert not audit(method, ids[:300], START, AuditPlan(seed=0, flips=6)).violations
        outcome = audit_whole(method, ids, START, nats)
        broken = [one.name for one in outcome if one.violation is not None]
        assert bool(broken) == (method is not honest_table), outcome


def test_a_score_of_another_text_is_found() -> None:
    ids = text(1)
    whole, again = audit_whole(honest_table, ids, START, np.zeros(7))
    assert "another number of targets" in str(whole)
    assert again.violation is not None


@pytest.mark.parametrize("ids", [[0, 5], [0, 5, 5, 5], [0, 1, 0, 2], [0, 0, 7, 0, 0]])
def test_the_smallest_texts_can_be_audited(ids: list[int]) -> None:
    found = audit(
        uniform,
        np.array(ids, np.uint32),
        START,
        AuditPlan(seed=0, independent=True, borders=[1, 9]),
    )
    assert not found.violations


def test_a_text_of_starts_has_nothing_to_change() -> None:
    with pytest.raises(ScoreError, match="no token to flip"):
        audit(uniform, np.zeros(9, np.uint32), START)


def test_a_whole_score_can_be_looked_at() -> None:
    ids, probed = text(10), np.arange(0, 200, 7)
    assert not any(c.violation for c in sound([AuditedRun(ids, probed, uniform(ids, probed))]))


def test_replays_are_compared_to_the_last_bit() -> None:
    nats = np.random.default_rng(0).random(100)
    assert replay(nats, nats.copy()).violation is None
    again = nats.copy()
    again[[40, 60]] = np.nextafter(nats[[40, 60]], 2)
    found = replay(nats, again, name="fresh_process")
    assert found.name == "fresh_process"
    assert "the nats of 2 targets, from target 40 on" in str(found)
    assert replay(nats, again, 1e-9).violation is None
    assert "99 targets, the first of 100" in str(replay(nats, nats[1:]))


# Slices.


def test_a_slice_makes_the_audit_cheaper_than_a_score() -> None:
    ids = text(11, [400] * 200)
    short = slice_of(ids, START)
    assert 512 <= len(short) - 1 <= (len(ids) - 1) / runs()
    assert 0.3 * len(ids) < runs() * (len(short) - 1) < 0.5 * len(ids)
    assert (short == START).sum() >= 3


@pytest.mark.parametrize(
    ("sizes", "chunk"), [([5000] * 40, 0), ([30_000, 10, 20], 0), ([90_000], 0), ([3000] * 9, 2000)]
)
def test_a_slice_holds_documents_and_chunks(sizes: list[int], chunk: int) -> None:
    ids = text(12, sizes)
    for seed in range(5):
        short = slice_of(ids, START, chunk=chunk, seed=seed)
        starts = np.flatnonzero(short == START)
        assert len(starts) >= min(3, len(sizes))
        assert short[0] == START
        assert len(short) - 1 >= max(512, 3 * chunk)
        # Each part is the beginning of a document.
        for part in np.split(short, starts[1:]):
            wholes = [
                d for d in np.split(ids, np.flatnonzero(ids == START)[1:]) if len(d) >= len(part)
            ]
            assert any(np.array_equal(whole[: len(part)], part) for whole in wholes)


def test_a_short_text_is_audited_whole() -> None:
    ids = text(13, [100, 150, 1, 200])
    short = slice_of(ids, START)
    assert len(short) == len(ids)
    assert np.array_equal(np.sort(short), np.sort(ids))
    assert len(slice_of(text(13, [1]), START)) == 2


def test_slices_begin_in_different_places() -> None:
    ids = text(14, [400] * 200)
    assert len({slice_of(ids, START, seed=seed).tobytes() for seed in range(8)}) > 4
    assert np.array_equal(slice_of(ids, START, seed=3), slice_of(ids, START, seed=3))
