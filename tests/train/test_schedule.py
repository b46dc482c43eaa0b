"""Schedules are pure functions of progress and steps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.model import ModelSpec, joined_visits
from segpt.config.optimizer import Adam, FollowRate, Linear, Muon, Optimizer, Rule
from segpt.config.schedule import (
    CosineWarmdown,
    LinearWarmdown,
    Ramp,
    Schedule,
    Seconds,
    SqrtWarmdown,
    Steps,
)
from segpt.config.train import Loops, TrainSpec
from segpt.errors import SpecError
from segpt.model.params import weights
from segpt.train.loop import StepMetrics
from segpt.train.mesh import Mesh
from segpt.train.schedule import batch, decay, loops, momentum, rate
from segpt.train.trainer import Trainer
from tests.train.running import train


@pytest.mark.parametrize("shape", [LinearWarmdown(), CosineWarmdown(), SqrtWarmdown()])
def test_rate_holds_then_falls_to_the_floor(shape: Any) -> None:
    schedule = Schedule(warmup=0.1, warmdown=0.4, floor=0.25, shape=shape)
    assert rate(schedule, 0.0, 0) == 0.0
    assert rate(schedule, 0.05, 0) == pytest.approx(0.5)
    assert rate(schedule, 0.1, 0) == rate(schedule, 0.6, 0) == 1.0
    falling = [rate(schedule, 0.6 + 0.004 * i, 0) for i in range(101)]
    assert falling == sorted(falling, reverse=True)
    assert rate(schedule, 1.0, 0) == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [LinearWarmdown(), CosineWarmdown(), SqrtWarmdown()])
@pytest.mark.parametrize("warmdown", [0.0, 0.3, 1.0])
def test_rate_is_defined_outside_the_run(shape: Any, warmdown: float) -> None:
    # the root of a negative number before the fall begins, and less than the floor after it ends
    schedule = Schedule(warmdown=warmdown, floor=0.1, shape=shape)
    assert rate(schedule, -0.5, 0) == rate(schedule, 0.0, 0) == 1.0
    last = 0.1 if warmdown else 1.0
    for progress in (1.0, 1.0 + 1e-9, 1.5, 100.0):
        assert rate(schedule, progress, 0) == pytest.approx(last)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(LinearWarmdown(), 0.5), (CosineWarmdown(), 0.5), (SqrtWarmdown(), 1 - math.sqrt(0.5))],
)
def test_the_middle_of_a_fall(shape: Any, expected: float) -> None:
    schedule = Schedule(warmdown=0.5, floor=0.2, shape=shape)
    assert rate(schedule, 0.75, 0) == pytest.approx(0.2 + 0.8 * expected)


@pytest.mark.parametrize("steps", [True, False])
def test_rate_stays_at_zero_then_rises_then_falls(steps: bool) -> None:
    # a schedule without any warm-up
    spans = {"zero": Steps(count=50), "warmup": Steps(count=100)}
    schedule = Schedule(warmdown=0.5, **(spans if steps else {"zero": 0.05, "warmup": 0.1}))
    trace = [rate(schedule, (i + 0.5) / 1000, i + 0.5) for i in range(1000)]
    assert trace[:50] == [0.0] * 50
    assert trace[50:150] == pytest.approx([(i + 0.5) / 100 for i in range(100)])
    assert trace[150:500] == [1.0] * 350
    assert trace[500:] == pytest.approx([1 - (i + 0.5) / 500 for i in range(500)])


def test_a_warm_up_longer_than_the_run_meets_the_fall() -> None:
    schedule = Schedule(warmup=Steps(count=400), warmdown=0.5)
    trace = [rate(schedule, i / 100, i) for i in range(101)]
    assert trace[50] == 50 / 400
    assert max(trace) < 0.2
    assert trace[-1] == 0.0


def test_warmdown_starts_where_the_fraction_says() -> None:
    # a warm-down counted in steps of the first, noisy step times starts at an eighth of the
    # run; a fraction of the run cannot
    schedule = Schedule(warmdown=0.72)
    assert rate(schedule, 0.279, 0) == 1.0
    assert rate(schedule, 0.64, 0) == pytest.approx(0.5)
    trace = [rate(schedule, second / 600, 0) for second in range(601)]
    assert trace[:168] == [1.0] * 168
    assert trace[-1] == 0.0


@pytest.mark.slow
def test_rate_falls_over_the_stated_part_of_the_clock(
    make: Callable[..., Trainer], batches: Callable[[int], NDArray[np.int64]]
) -> None:
    # the first steps are slow, as they are where something compiles
    now = [0.0]

    def read(step: int) -> NDArray[np.int64]:
        now[0] += 20.0 if step < 2 else 1.0
        return batches(step)

    run = make(length=Seconds(count=100.0), schedule=Schedule(warmdown=0.4))
    found: list[StepMetrics] = []
    train(run, read, report=found.append, clock=lambda: now[0])
    assert run.step == 62
    assert found[-1].seconds == 100.0
    for report in found:
        left = 1 - report.seconds / 100
        assert report.rate == pytest.approx(min(1.0, left / 0.4))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [LinearWarmdown(), CosineWarmdown(), SqrtWarmdown()])
def test_a_run_that_only_cools_down_is_the_end_of_a_whole_one(
    shape: Any, spec: ModelSpec, how: TrainSpec, batches: Callable[[int], NDArray[np.int64]]
) -> None:
    def run(steps: int, schedule: Schedule) -> Trainer:
        optimizer = Optimizer(matrix=Muon(momentum_warmup=0.0))
        changed = dataclasses.replace(
            how, length=Steps(count=steps), optimizer=optimizer, schedule=schedule
        )
        return Trainer(joined_visits(spec, 1.0)[0], changed, Mesh(0, 1, torch.device("cpu")))

    fall: dict[str, Any] = {"floor": 0.1, "shape": shape}
    whole = run(16, Schedule(warmdown=0.5, **fall))
    stable = run(8, Schedule(warmdown=0.0))
    for step in range(8):
        whole.train_step(batches(step))
        stable.train_step(batches(step))
    cooling = run(8, Schedule(warmdown=1.0, **fall))
    cooling.start_from({w.name: w.tensor.detach().numpy().copy() for w in weights(stable.model)})
    cooling.optimizers.restore(stable.optimizers.state())
    for step in range(8):
        expected = rate(whole.cfg.schedule, (step + 8.5) / 16, step + 8.5)
        assert rate(cooling.cfg.schedule, (step + 0.5) / 8, step + 0.5) == pytest.approx(expected)
        whole.train_step(batches(step + 8))
        cooling.train_step(batches(step + 8))
    for ours, theirs in zip(weights(whole.model), weights(cooling.model), strict=True):
        assert torch.allclose(ours.tensor, theirs.tensor, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup": 0.5, "warmdown": 0.6}, "sum to at most 1"),
        ({"zero": 0.3, "warmdown": 0.8}, "sum to at most 1"),
        ({"warmup": -0.1}, "sum to at most 1"),
        ({"zero": 0.1, "warmup": Steps(count=3)}, "both in steps or both fractions"),
        ({"warmup": Steps(count=-3)}, "warmup is a number of steps"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Schedule(**fields)


def test_a_ramp_doubles_the_batch_at_each_milestone() -> None:
    # a getter that doubles the batch whenever it is asked, twice in each step
    schedule = Schedule(warmdown=0.0, ramp=Ramp(milestones=(0.25, 0.5, 0.9)))
    for _ in range(2):
        factors = [batch(schedule, i / 100) for i in range(101)]
        assert factors == [1] * 25 + [2] * 25 + [4] * 40 + [8] * 11
        for i, factor in enumerate(factors):
            assert rate(schedule, i / 100, i) == pytest.approx(factor**-0.5)
    assert batch(Schedule(), 0.5) == 1
    assert batch(schedule, 7.0) == 8  # also right after a restart behind every milestone


def test_a_ramp_goes_with_a_fall() -> None:
    ramped = Schedule(warmdown=0.5, ramp=Ramp(milestones=(0.25,)))
    assert rate(ramped, 0.75, 0) == pytest.approx(0.5 / math.sqrt(2))


@pytest.mark.parametrize("milestones", [(0.0, 0.5), (0.5, 0.5), (0.6, 0.2), (0.5, 1.0)])
def test_milestones_rise(milestones: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match="rising fractions between 0 and 1"):
        Ramp(milestones=milestones)


def test_momentum_rises_linearly_then_stays() -> None:
    # constant momentum from the first step on
    muon = Muon(momentum=0.95, momentum_start=0.85, momentum_warmup=0.2)
    assert momentum(muon, 0.0, 0) == pytest.approx(0.85)
    assert momentum(muon, 0.1, 0) == pytest.approx(0.90)
    assert momentum(muon, 0.2, 0) == momentum(muon, 1.0, 0) == 0.95


def test_momentum_rises_over_steps_whatever_the_length() -> None:
    muon = Muon(momentum=0.95, momentum_start=0.85, momentum_warmup=Steps(count=300))
    for progress in (0.0, 0.5, 1.0):
        assert momentum(muon, progress, 0) == pytest.approx(0.85)
        assert momentum(muon, progress, 150) == pytest.approx(0.90)
        assert momentum(muon, progress, 300) == momentum(muon, progress, 9999) == 0.95


@pytest.mark.parametrize("cls", [Muon, Adam])
def test_decay_goes_with_the_rate_its_schedule_or_nothing(cls: type[Rule]) -> None:
    how: dict[str, Any] = {"rate": 0.02, "decay": 0.1}
    assert decay(cls(**how), 0.5, 0.3) == pytest.approx(0.02 * 0.5 * 0.1)
    assert decay(cls(**how, decay_mode="independent"), 0.5, 0.3) == pytest.approx(0.5 * 0.1)
    assert decay(cls(**how, decay_mode="fixed"), 0.5, 0.3) == 0.1


def test_decay_is_constant_linear_tapered_or_follows() -> None:
    def trace(schedule: Linear | FollowRate | None) -> list[float]:
        rule = Muon(decay=0.1, decay_mode="fixed", decay_schedule=schedule)
        return [decay(rule, 1 - i / 10, i / 10) for i in range(11)]

    assert trace(None) == [0.1] * 11
    assert trace(Linear(start=0.1, end=1.0)) == pytest.approx([0.01 + 0.009 * i for i in range(11)])
    taper = trace(Linear(start=1.0, end=0.5, since=0.7))
    assert taper[:8] == pytest.approx([0.1] * 8)
    assert taper[8:] == pytest.approx([0.1 - 0.05 * i / 3 for i in (1, 2, 3)])
    follow = trace(FollowRate(least=0.5))
    assert follow == pytest.approx([0.1 * (0.5 + 0.5 * (1 - i / 10)) for i in range(11)])
    rule = Muon(decay=0.1, decay_mode="fixed", decay_schedule=Linear(start=1.0, end=0.5, since=0.7))
    assert decay(rule, 1.0, 1.5) == pytest.approx(0.05)  # clamped


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
