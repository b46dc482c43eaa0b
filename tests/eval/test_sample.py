"""How one token is drawn: penalty, temperature, top-k and top-p by their formulas."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.config.sample import SampleSpec
from segpt.errors import ScoreError
from segpt.eval.sample import draw, kept, penalised

VOCAB = 50
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
FILTERS = [
    {"temperature": 0.3},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.6},
    {"top_p": 1e-9},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9},
]


def logits(seed: int, vocab: int = VOCAB) -> NDArray[np.float64]:
    return 2 * np.random.default_rng(seed).standard_normal(vocab)


def expected(row: NDArray[np.float64], spec: SampleSpec) -> dict[int, float]:
    """The distribution as it is defined, one plain number at a time."""
    most = max(row)
    weights = {i: math.exp((x - most) / spec.temperature) for i, x in enumerate(row.tolist())}
    order = sorted(weights, key=lambda i: (-weights[i], i))[: spec.top_k or None]
    total = math.fsum(weights[i] for i in order)
    chosen: list[int] = []
    for i in order:
        if spec.top_p < 1 and math.fsum(weights[j] for j in chosen) >= spec.top_p * total:
            break
        chosen.append(i)
    total = math.fsum(weights[i] for i in chosen)
    return {i: weights[i] / total for i in chosen}


@pytest.mark.parametrize("setting", [{}, *FILTERS], ids=str)
def test_the_distribution_is_the_defined_one(setting: dict[str, Any]) -> None:
    spec = SampleSpec(**PLAIN | setting)
    for seed in range(20):
        row = logits(seed)
        ids, shares = kept(row, spec)
        found, wanted = dict(zip(ids.tolist(), shares.tolist(), strict=True)), expected(row, spec)
        assert list(found) == list(wanted)
        assert shares == pytest.approx(list(wanted.values()), rel=1e-12)
        assert shares.sum() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{}, *FILTERS], ids=str)
def test_tokens_come_as_often_as_the_distribution_says(setting: dict[str, Any]) -> None:
    spec, row, chance = SampleSpec(**PLAIN | setting), logits(1), np.random.default_rng(5)
    count = 20_000
    drawn = np.bincount([draw(row, spec, chance) for _ in range(count)], minlength=VOCAB)
    shares = np.zeros(VOCAB)
    for i, share in expected(row, spec).items():
        shares[i] = share
    assert not drawn[shares == 0].any()
    likely = shares * count >= 5
    misses = (drawn - shares * count)[likely]
    chi2 = float((misses**2 / (shares * count)[likely]).sum())
    degrees = int(likely.sum())
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


def test_the_token_that_reaches_top_p_is_kept() -> None:
    """The fewest tokens with at least that share, not those with at most that share."""
    row = np.log([0.4, 0.3, 0.2, 0.1])
    assert kept(row, SampleSpec(**PLAIN | {"top_p": 0.5}))[0].tolist() == [0, 1]
    assert kept(row, SampleSpec(**PLAIN | {"top_p": 0.69}))[0].tolist() == [0, 1]
    assert kept(row, SampleSpec(**PLAIN | {"top_p": 0.71}))[0].tolist() == [0, 1, 2]


def test_top_p_counts_what_top_k_left() -> None:
    row = np.log([0.4, 0.3, 0.2, 0.1])
    ids, shares = kept(row, SampleSpec(**PLAIN | {"top_k": 2, "top_p": 0.56}))
    assert ids.tolist() == [0]  # 4/7 of what was left
    assert shares.tolist() == [1.0]


def test_exactly_k_tokens_are_left_where_many_are_alike() -> None:
    ids, shares = kept(np.zeros(9), SampleSpec(**PLAIN | {"top_k": 4}))
    assert ids.tolist() == [0, 1, 2, 3]
    assert shares.tolist() == [0.25] * 4


@pytest.mark.parametrize("seed", range(5))
def test_top_k_of_1_is_temperature_0(seed: int) -> None:
    row = np.round(logits(seed), 0 if seed == 4 else 9)  # the last one has ties
    chance = np.random.default_rng(0)
    certain = draw(row, SampleSpec(**PLAIN | {"temperature": 0}), chance)
    assert certain == row.argmax()
    for temperature in (0.01, 1.0, 50.0):
        spec = SampleSpec(**PLAIN | {"top_k": 1, "temperature": temperature})
        assert draw(row, spec, chance) == certain


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3])
def test_a_temperature_near_0_is_the_likeliest_without_a_warning(temperature: float) -> None:
    chance = np.random.default_rng(0)
    for seed in range(5):
        row = logits(seed)
        spec = SampleSpec(**PLAIN | {"temperature": temperature})
        assert draw(row, spec, chance) == row.argmax()


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_distribution_is_an_error(temperature: float, bad: float) -> None:
    row = logits(0)
    row[3] = bad
    with pytest.raises(ScoreError, match="not finite"):
        draw(row, SampleSpec(**PLAIN | {"temperature": temperature}), np.random.default_rng(0))


def test_a_sure_draw_takes_as_much_chance_as_any() -> None:
    """So that a text goes on alike where rounding decided how many tokens were left."""
    sure, other = np.random.default_rng(3), np.random.default_rng(3)
    draw(logits(0), SampleSpec(**PLAIN | {"top_k": 1}), sure)
    draw(logits(0), SampleSpec(**PLAIN), other)
    assert sure.random() == other.random()


def by_formula(row: NDArray[np.float64], recent: list[int], penalty: float) -> NDArray[np.float64]:
    """Half as much every 140 tokens, the last one at distance 1, at most 3 in all."""
    found = row.copy()
    for token in set(recent):
        places = [len(recent) - i for i, other in enumerate(recent) if other == token]
        scale = penalty ** min(3.0, sum(0.5 ** (d / 140) for d in places))
        found[token] = row[token] / scale if row[token] > 0 else row[token] * scale
    return found


@pytest.mark.parametrize("penalty", [1.0, 1.15, 1.35, 4.0])
@pytest.mark.parametrize("length", [0, 1, 2, 60, 128])
def test_the_penalty_is_the_defined_one(penalty: float, length: int) -> None:
    for seed in range(5):
        row = logits(seed)
        recent = np.random.default_rng(seed).integers(VOCAB, size=length)
        before = row.copy()
        found = penalised(row, recent, penalty)
        assert found == pytest.approx(by_formula(row, recent.tolist(), penalty), rel=1e-12)
        assert np.array_equal(row, before)


def test_the_penalty_by_hand() -> None:
    row = np.array([2.0, -2.0, 2.0, 0.0])
    found = penalised(row, np.array([0, 1, 3]), 2.0)
    far, near = 2 ** (0.5 ** (3 / 140)), 2 ** (0.5 ** (2 / 140))
    assert found == pytest.approx([2 / far, -2 * near, 2.0, 0.0], rel=1e-12)
    often = penalised(row, np.array([0] * 128), 2.0)
    assert often == pytest.approx([2 / 8, -2.0, 2.0, 0.0], rel=1e-12)


def test_a_penalty_is_never_a_reward() -> None:
    """A logit below 0 that was divided would rise."""
    row = logits(0)
    recent = np.arange(VOCAB)
    assert (penalised(row, recent, 1.5) <= row).all()
    assert (penalised(row, recent, 1.5)[row != 0] < row[row != 0]).all()
