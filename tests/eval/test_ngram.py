"""Counts of the scored text help where it repeats itself, and only what was scored is counted."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.base import decode, encode
from segpt.config.ngram import Ngram
from segpt.errors import ScoreError, SpecError
from segpt.eval.ngram import Mixture, NgramTable, Seen

VOCAB, START = 24, 1

Ids = NDArray[np.uint32]
Rows = NDArray[np.float64]


def text(targets: int, seed: int = 0) -> Ids:
    """Documents of a start token and phrases that come again."""
    generator = np.random.default_rng(seed)
    phrases = [generator.integers(2, VOCAB, generator.integers(2, 9)) for _ in range(20)]
    ids = [START]
    while len(ids) <= targets:
        ids += phrases[generator.integers(0, 20)].tolist()
        if generator.random() < 0.2:
            ids.append(START)
    return np.array(ids[: targets + 1], np.uint32)


def model(targets: int, seed: int = 0) -> Rows:
    """Random distributions over the vocabulary as log-probabilities, (targets, vocab)."""
    logits = np.random.default_rng(seed).normal(0, 2, (targets, VOCAB))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def of(rows: Rows, ids: Ids) -> NDArray[np.float64]:
    return rows[np.arange(len(ids) - 1), ids[1:]]


def begun(ids: Ids, spec: Ngram | None = None) -> Mixture:
    mixture = Mixture(spec or Ngram(), VOCAB, START)
    mixture.read(ids[:1])
    return mixture


def nats_of(ids: Ids, rows: Rows, spec: Ngram | None = None) -> NDArray[np.float64]:
    return begun(ids, spec).adjust(ids[1:], of(rows, ids))


def whole(mixture: Mixture, row: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each token would be given, were it the target: each in a mixture of its own."""
    found = []
    for token in range(VOCAB):
        copy = type(mixture)(mixture.spec, VOCAB, START)
        copy.restore(mixture.state())
        found.append(-copy.adjust(np.array([token], np.uint32), row[[token]])[0])
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        Ngram(),
        Ngram(orders=(0,), document_orders=()),
        Ngram(orders=(), document_orders=(1, 4)),
        Ngram(keep=0.01, rate=3.0, block=1),
        Ngram(contexts=8, block=7),
    ],
)
def test_every_distribution_sums_to_one_and_is_what_targets_are_scored_by(spec: Ngram) -> None:
    ids, rows = text(400), model(400)
    mixture = begun(ids, spec)
    for t in range(400):
        row = mixture.row(rows[t])
        assert np.exp(row).sum() == pytest.approx(1, abs=1e-9)
        if t % 50 == 0:
            assert whole(mixture, rows[t]) == pytest.approx(row, abs=1e-9)
        nats = mixture.adjust(ids[t + 1 : t + 2], rows[t, ids[t + 1 : t + 2]])
        assert nats[0] == pytest.approx(-row[ids[t + 1]], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "largest", "block"), [(400, 3, 1), (3_000, 200, 32), (20_000, 15_000, 32)]
)
def test_pieces_of_any_size_give_the_same_bits(targets: int, largest: int, block: int) -> None:
    ids, rows, spec = text(targets), model(targets), Ngram(block=block)
    generator = np.random.default_rng(1)
    mixture, found, first = begun(ids, spec), [], 0
    while first < targets:
        stop = min(targets, first + int(generator.integers(0, largest + 1)))
        found.append(mixture.adjust(ids[first + 1 : stop + 1], of(rows, ids)[first:stop]))
        first = stop
    assert np.array_equal(np.concatenate(found), nats_of(ids, rows, spec))


def test_no_target_depends_on_a_later_token() -> None:
    ids, rows = text(200), model(200)
    plain = nats_of(ids, rows)
    generator = np.random.default_rng(0)
    changed = 0
    for _ in range(100):
        where = int(generator.integers(1, 201))
        flipped = ids.copy()
        flipped[where] = (ids[where] + generator.integers(1, VOCAB)) % VOCAB
        nats = nats_of(flipped, rows)
        assert np.array_equal(nats[: where - 1], plain[: where - 1])
        changed += not np.array_equal(nats[where:], plain[where:])
    assert changed > 90


class Peeking(NgramTable):
    """Counts a target before it says what it knew: the key holds the target."""

    def observe(self, tokens: Any) -> Seen:
        parts = []
        for token in tokens:
            found = self.successors()
            known = dict(found.counts) if found else {}
            super().observe([token])
            known[token] = known.get(token, 0) + 1
            parts.append((known[token], sum(known.values()), len(known), 0))
        return Seen(*np.array(parts, np.float64).reshape(-1, 4).T)


class Leaky(Mixture):
    def __init__(self, spec: Ngram, vocab: int, start: int) -> None:
        super().__init__(spec, vocab, start)
        self._tables = [
            Peeking(t.order, vocab, start, spec.contexts, t.document) for t in self._tables
        ]


@pytest.mark.slow
def test_a_table_that_looks_at_its_target_is_found_out() -> None:
    ids, rows = text(400), model(401)
    honest, leaky = begun(ids), Leaky(Ngram(), VOCAB, START)
    leaky.read(ids[:1])
    good, bad = (m.adjust(ids[1:], of(rows, ids)) for m in (honest, leaky))
    assert bad.sum() < 0.7 * good.sum()
    assert np.exp(whole(honest, rows[400])).sum() == pytest.approx(1, abs=1e-9)
    assert np.exp(whole(leaky, rows[400])).sum() > 1.5


def test_a_cache_of_gold_tokens_is_no_distribution_and_ours_is() -> None:
    """Hashed counts looked up for the target alone: what the row of all targets sums to."""
    ids, rows, buckets = text(3_000), model(3_001), 64
    contexts, pairs = np.zeros(buckets), np.zeros(buckets)
    for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
        key = int(a) * 31 + int(b)
        contexts[key % buckets] += 1
        pairs[(key * 131 + int(c)) % buckets] += 1
    key = int(ids[-2]) * 31 + int(ids[-1])
    counts = pairs[(key * 131 + np.arange(VOCAB)) % buckets]
    cache = np.minimum(counts / contexts[key % buckets], 1)
    assert (0.5 * np.exp(rows[-1]) + 0.5 * cache).sum() > 3
    mixture = begun(ids)
    mixture.adjust(ids[1:], of(rows, ids))
    assert np.exp(mixture.row(rows[-1])).sum() == pytest.approx(1, abs=1e-9)


def test_text_that_repeats_itself_becomes_cheap() -> None:
    generator = np.random.default_rng(0)
    ids = np.tile(np.concatenate([[START], generator.integers(2, VOCAB, 99)]), 30)
    ids = ids.astype(np.uint32)
    rows = model(len(ids) - 1)
    plain, nats = -of(rows, ids), nats_of(ids, rows)
    assert nats[1_000:].sum() < 0.05 * plain[1_000:].sum()
    assert nats[-100:].sum() < nats[200:300].sum()


def test_text_without_repetition_costs_little() -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 2_048, 20_001, dtype=np.uint32)
    plain = np.full(20_000, math.log(2_048))
    mixture = Mixture(Ngram(), 2_048, START)
    mixture.read(ids[:1])
    assert plain.sum() < mixture.adjust(ids[1:], -plain).sum() < 1.005 * plain.sum()


def test_a_model_that_knows_the_text_is_left_alone() -> None:
    ids, sure = text(5_000), math.log(0.999)
    rows = np.full((5_000, VOCAB), math.log(0.001 / (VOCAB - 1)))
    rows[np.arange(5_000), ids[1:]] = sure
    nats = nats_of(ids, rows)
    assert nats[2_500:].mean() < 0.02 < nats[:100].mean()


def test_contexts_end_where_a_document_starts() -> None:
    ids = np.array([START, 5, 6, 7, START, 5, 6, 7, 5, 6], np.uint32)
    table = NgramTable(2, VOCAB, START, 16, document=False)
    table.read(START)
    seen = table.observe(ids[1:].tolist())
    assert seen.total.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0]
    assert seen.hits.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0]
    own = NgramTable(1, VOCAB, START, 16, document=True)
    own.read(START)
    assert own.observe(ids[1:].tolist()).total.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_counts_are_those_of_counting_by_hand() -> None:
    ids = text(600).tolist()
    for order in (0, 1, 3):
        table = NgramTable(order, VOCAB, START, 10**6, document=False)
        table.read(ids[0])
        seen = table.observe(ids[1:])
        known: dict[tuple[int, ...], list[int]] = {}
        for t, target in enumerate(ids[1:]):
            context = tuple(ids[t + 1 - order : t + 1]) if t + 1 >= order else None
            if context is None or START in context[1:]:
                expected = (0, 0, 0)
            else:
                followed = known.setdefault(context, [])
                expected = followed.count(target), len(followed), len(set(followed))
                followed.append(target)
            assert (seen.hits[t], seen.total[t], seen.distinct[t]) == expected


def test_a_table_forgets_what_it_has_not_met_for_long() -> None:
    generator = np.random.default_rng(0)
    table = NgramTable(2, 1_000, START, 64, document=False)
    table.read(2)
    for _ in range(50):
        table.observe(generator.integers(2, 1_000, 100).tolist())
        assert len(table) <= 64
    often = NgramTable(1, 1_000, START, 8, document=False)
    often.read(2)
    seen = often.observe([token for new in range(10, 200) for token in (3, 4, new)])
    assert seen.total[1::3].tolist() == list(range(190))


@pytest.mark.parametrize("after", [1, 57, 128])
def test_a_restored_state_goes_on_exactly(after: int) -> None:
    ids, rows = text(400), model(400)
    expected = nats_of(ids, rows)
    mixture = begun(ids)
    mixture.adjust(ids[1 : after + 1], of(rows, ids)[:after])
    copy = Mixture(Ngram(), VOCAB, START)
    copy.restore(mixture.state())
    assert np.array_equal(copy.row(rows[after]), mixture.row(rows[after]))
    assert np.array_equal(copy.adjust(ids[after + 1 :], of(rows, ids)[after:]), expected[after:])
    with pytest.raises(ScoreError, match="new mixture"):
        copy.restore(mixture.state())
    with pytest.raises(ScoreError, match="spec"):
        Mixture(Ngram(orders=(1,)), VOCAB, START).restore(mixture.state())


def test_given_tokens_are_counted_and_not_scored() -> None:
    ids, rows = text(200), model(200)
    given = Mixture(Ngram(rate=0.0), VOCAB, START)
    given.read(ids[:101])
    scored = begun(ids, Ngram(rate=0.0))
    scored.adjust(ids[1:101], of(rows, ids)[:100])
    assert np.array_equal(given.row(rows[100]), scored.row(rows[100]))


@pytest.mark.parametrize("log_probability", [-1e-9, -800.0, -5_000.0])
def test_extreme_probabilities_have_finite_nats_and_do_no_harm(log_probability: float) -> None:
    ids, rows = text(500), model(500)
    mixture = begun(ids)
    nats = mixture.adjust(ids[1:], np.full(500, log_probability))
    assert np.isfinite(nats).all()
    assert np.exp(mixture.row(rows[0])).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: Mixture(Ngram(), VOCAB, START).adjust(np.array([3]), np.zeros(1)), "read"),
        (lambda m: m.adjust(np.array([3, 4]), np.zeros(1)), "give one for each"),
        (lambda m: m.adjust(np.array([VOCAB]), np.zeros(1)), "vocabulary of 24"),
        (lambda m: m.row(np.zeros(VOCAB + 1)), "row of 24"),
    ],
)
def test_misuse_is_refused(call: Callable[[Mixture], object], says: str) -> None:
    with pytest.raises(ScoreError, match=says):
        call(begun(text(10)))


@pytest.mark.parametrize(
    "fields",
    [
        {"orders": [2, 1]},
        {"orders": [-1]},
        {"document_orders": [1, 1]},
        {"orders": [], "document_orders": []},
        {"keep": 1.0},
        {"rate": -0.1},
        {"block": 0},
        {"contexts": 1},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    assert decode(Ngram, encode(Ngram())) == Ngram()
    with pytest.raises(SpecError):
        decode(Ngram, fields)
