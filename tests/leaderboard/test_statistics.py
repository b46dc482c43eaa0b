"""Intervals and p-values against SciPy's, and against what simulation says they mean."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.leaderboard.statistics import (
    Difference,
    incomplete_beta,
    paired,
    paired_ratio,
    quantile,
    summary,
    survival,
    welch,
)

FREEDOM = [0.5, 1.0, 1.7, 2.0, 3.3, 4.0, 9.0, 30.0, 237.0, 5_000.0, 50_000.0, 1e6]


@pytest.fixture(scope="module")
def scipy() -> Any:
    pytest.importorskip("scipy")
    import scipy.special
    import scipy.stats

    return scipy


@pytest.mark.parametrize("a", [0.1, 0.5, 1.0, 2.5, 17.0, 400.0, 1e5])
@pytest.mark.parametrize("b", [0.1, 0.5, 1.0, 3.0, 60.0, 2_000.0])
def test_incomplete_beta(scipy: Any, a: float, b: float) -> None:
    xs = [0.0, 1e-300, 1e-12, 1e-3, 0.02, 0.3, 0.5, a / (a + b), 0.7, 0.99, 1 - 1e-9, 1.0]
    found = [incomplete_beta(a, b, x) for x in xs]
    np.testing.assert_allclose(found, scipy.special.betainc(a, b, xs), rtol=1e-9, atol=1e-290)


@pytest.mark.parametrize("freedom", FREEDOM)
def test_tails_of_student(scipy: Any, freedom: float) -> None:
    ts = [0.0, 1e-3, 0.1, 0.7, 1.0, 1.7, 2.3, 3.4, 7.0, 11.8, 31.4, 250.0, 1e5, 1e200]
    for sign in (1, -1):
        found = [survival(sign * t, freedom) for t in ts]
        expected = scipy.stats.t.sf(sign * np.array(ts), freedom)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-290)


@pytest.mark.parametrize("freedom", FREEDOM)
def test_quantiles_of_student(scipy: Any, freedom: float) -> None:
    for tail in (0.5, 0.4999, 0.3, 0.1, 0.05, 0.025, 0.005, 1e-4, 1e-9):
        expected = scipy.stats.t.isf(tail, freedom)
        assert quantile(tail, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_tabled_values_without_scipy() -> None:
    """The table that every textbook prints, and the contest's own example of 3 runs."""
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 10: 2.228, 30: 2.042, 120: 1.980}
    for freedom, t in printed.items():
        assert round(quantile(0.025, freedom), 3) == t
    assert round(survival(31.4, 2), 4) == 0.0005
    assert survival(0, 7) == 0.5
    assert survival(1, 1) == pytest.approx(0.25, rel=1e-14)  # Cauchy: 1/2 - atan(t) / pi
    assert survival(1e-9, 1) == pytest.approx(0.5 - 1e-9 / math.pi, rel=1e-15)
    assert survival(-2, 1) == pytest.approx(0.5 + math.atan(2) / math.pi, rel=1e-14)


FIGURES = st.lists(st.floats(0.5, 3.0), min_size=2, max_size=12)


def spread(*sides: list[float]) -> bool:
    return all(np.std(side) > 1e-6 for side in sides)


@pytest.mark.slow
@given(FIGURES, FIGURES)
@settings(max_examples=150, deadline=None)
def test_welch_is_scipys(a: list[float], b: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    if not spread(a, b):
        return
    found = welch(a, b)
    assert found is not None
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found.t == pytest.approx(expected.statistic, rel=1e-8, abs=1e-12)
    assert found.freedom == pytest.approx(expected.df, rel=1e-8)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-7)
    one_sided = stats.ttest_ind(b, a, equal_var=False, alternative="less")
    assert found.p_better == pytest.approx(one_sided.pvalue, rel=1e-7)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.slow
@given(FIGURES, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_pairs_are_scipys(a: list[float], random: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    b = [x + random.uniform(-0.2, 0.1) for x in a]
    if not spread([y - x for x, y in zip(a, b, strict=True)]):
        return
    found = paired(a, b)
    assert found is not None
    expected = stats.ttest_rel(b, a)
    assert found.t == pytest.approx(expected.statistic, rel=1e-8, abs=1e-9)
    assert (found.freedom, found.p) == pytest.approx((expected.df, expected.pvalue), rel=1e-7)
    one_sided = stats.ttest_rel(b, a, alternative="less")
    assert found.p_better == pytest.approx(one_sided.pvalue, rel=1e-7)


@given(FIGURES, st.floats(-0.1, 0.1))
@settings(max_examples=100, deadline=None)
def test_a_margin_is_a_test_against_shifted_figures(a: list[float], margin: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    b = [0.97 * x - 0.001 * i for i, x in enumerate(a)]
    if not spread(a, b):
        return
    found = welch(a, b)
    assert found is not None
    shifted = [x - margin for x in a]
    expected = stats.ttest_ind(b, shifted, equal_var=False, alternative="less")
    assert found.p_beyond(margin) == pytest.approx(expected.pvalue, rel=1e-6)


@given(FIGURES)
@settings(max_examples=100, deadline=None)
def test_the_interval_of_a_mean_is_scipys(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = summary(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    if spread(values):
        low, high = stats.t.interval(
            0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
        )
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_single_figures_have_no_spread_and_no_test() -> None:
    assert summary([1.5]) == summary([1.5])
    assert (summary([1.5]).sd, summary([1.5]).low, summary([1.5]).high) == (None, None, None)
    assert welch([1.0], [0.9, 0.8, 0.7]) is None
    assert welch([1.0, 1.1, 1.2], [0.9]) is None
    assert paired([1.0], [0.9]) is None
    assert paired_ratio([10.0], [9.0], [8.0]) is None


def test_figures_that_never_vary_are_not_certainty() -> None:
    assert welch([1.1, 1.1, 1.1], [1.0, 1.0, 1.0]) is None
    assert paired([1.1, 1.2, 1.3], [1.0, 1.1, 1.2]) is None
    assert paired_ratio([30.0, 60.0, 90.0], [20.0, 40.0, 60.0], [10, 20, 30]) is None
    one_sided = welch([1.1, 1.1, 1.1], [1.0, 1.01, 1.02])
    assert one_sided is not None
    assert one_sided.freedom == pytest.approx(2)


def test_equal_documents_make_the_ratio_a_mean() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(100, 9, 50), generator.normal(98, 9, 50)
    ratio, mean = paired_ratio(a.tolist(), b.tolist(), [25.0] * 50), paired(a.tolist(), b.tolist())
    assert ratio is not None
    assert mean is not None
    assert (ratio.mean, ratio.error) == pytest.approx((mean.mean / 25, mean.error / 25))
    assert (ratio.freedom, ratio.p) == pytest.approx((mean.freedom, mean.p))


def covered(found: Difference | None, truth: float) -> bool:
    assert found is not None
    return found.low <= truth <= found.high


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of documents of very different lengths too, whose nats grow with their bytes."""
    generator = np.random.default_rng(11)
    hits = np.zeros(3)
    rounds = 400
    for _ in range(rounds):
        a, b = generator.normal(1.08, 0.0006, 3), generator.normal(1.07, 0.0012, 3)
        hits[0] += covered(welch(a.tolist(), b.tolist()), -0.01)
        hits[1] += covered(paired(a.tolist(), b.tolist()), -0.01)
        sizes = generator.lognormal(7, 0.8, 120)
        before = sizes * generator.normal(0.8, 0.1, 120)
        after = before - sizes * generator.normal(0.02, 0.03, 120)
        ratio = paired_ratio(before.tolist(), after.tolist(), sizes.tolist())
        hits[2] += covered(ratio, -0.02)
    assert np.all(hits / rounds > 0.92)
    assert np.all(hits / rounds < 0.98)
