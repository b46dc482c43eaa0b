"""Schedules are pure functions of progress."""

import pytest

from segpt.errors import SpecError
from segpt.spec.train import Muon, Schedule
from segpt.train.schedule import momentum, rate


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
