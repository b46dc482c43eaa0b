"""Schedules are pure functions of progress."""

import numpy as np
import pytest

from segpt.errors import SpecError
from segpt.spec.train import Loops, Muon, Schedule
from segpt.train.schedule import loops, momentum, rate


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_rate_holds_then_falls_to_the_floor(shape: str) -> None:
    schedule = Schedule(warmup=0.1, warmdown=0.4, floor=0.25, shape=shape)  # type: ignore[arg-type]
    assert rate(schedule, 0.0) == 0.0
    assert rate(schedule, 0.05) == pytest.approx(0.5)
    assert rate(schedule, 0.1) == rate(schedule, 0.6) == 1.0
    falling = [rate(schedule, 0.6 + 0.004 * i) for i in range(101)]
    assert falling == sorted(falling, reverse=True)
    assert rate(schedule, 1.0) == pytest.approx(0.25)
    assert rate(schedule, 1.5) == pytest.approx(0.25)  # never below the floor, never undefined


def test_warmdown_starts_where_the_fraction_says() -> None:
    # a warm-down counted in steps of the first, noisy step times starts at an eighth of the
    # run; a fraction of the run cannot
    schedule = Schedule(warmdown=0.72)
    assert rate(schedule, 0.279) == 1.0
    assert rate(schedule, 0.64) == pytest.approx(0.5)
    trace = [rate(schedule, second / 600) for second in range(601)]
    assert trace[:168] == [1.0] * 168
    assert trace[-1] == 0.0


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    with pytest.raises(SpecError, match="sum to at most 1"):
        Schedule(warmup=0.5, warmdown=0.6)


def test_momentum_rises_linearly_then_stays() -> None:
    # constant momentum from the first step on
    muon = Muon(momentum=0.95, momentum_start=0.85, momentum_warmup=0.2)
    assert momentum(muon, 0.0) == pytest.approx(0.85)
    assert momentum(muon, 0.1) == pytest.approx(0.90)
    assert momentum(muon, 0.2) == momentum(muon, 1.0) == 0.95


def test_loops_are_uniform_without_a_mean() -> None:
    draws = np.array([loops(Loops(least=2, most=6), 1, step) for step in range(4000)])
    counts = np.bincount(draws)
    assert counts[:2].sum() == 0
    assert len(counts) == 7
    assert np.abs(counts[2:] - 800).max() < 4 * 800**0.5


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_loops_with_a_mean_are_log_normal_poisson(spread: float) -> None:
    how = Loops(least=1, most=1000, mean=4.0, spread=spread)
    draws = np.array([loops(how, 1, step) for step in range(4000)])
    assert draws.min() == 1
    assert abs(draws.mean() - 4) < 0.2
    # variance of the Poisson number, and of its log-normal rate
    assert abs(draws.var() / (3 + 9 * np.expm1(spread**2)) - 1) < 0.15
    cut = np.array([loops(Loops(most=5, mean=4.0, spread=spread), 1, s) for s in range(4000)])
    assert np.array_equal(cut, np.minimum(draws, 5))


def test_loops_depend_on_seed_and_step_alone() -> None:
    how = Loops(most=9)
    draws = [loops(how, 1, step) for step in range(50)]
    np.random.default_rng(0).random(9)
    assert draws == [loops(how, 1, step) for step in range(50)]
    assert draws != [loops(how, 2, step) for step in range(50)]
