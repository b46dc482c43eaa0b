"""What the average of a run is made of: which steps, with which weights, since when."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.config.schedule import Seconds
from segpt.config.train import Average
from segpt.model.params import weights
from segpt.train.trainer import Trainer
from tests.train.running import train

Make = Callable[..., Trainer]
Batches = Callable[[int], NDArray[np.int64]]


def trace(run: Trainer, batches: Batches, steps: int) -> list[Tensor]:
    """The table before the first step and after each of ``steps``."""
    table = run.model.table.weight
    found = [table.detach().clone()]
    for step in range(run.step, run.step + steps):
        run.train_step(batches(step))
        found.append(table.detach().clone())
    return found


def test_a_late_average_starts_from_the_weights_of_then(make: Make, batches: Batches) -> None:
    # a shadow that still holds the random weights of the start when it begins
    run = make(steps=20, average=Average(decay=0.9, since=0.5))
    tables = trace(run, batches, 10)
    assert torch.equal(run.average.weights()["table"], tables[-1])
    tables += trace(run, batches, 10)[1:]
    expected = tables[10]
    for i, table in enumerate(tables[11:]):
        decay = min(0.9, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * table
    assert torch.allclose(run.average.weights()["table"], expected, atol=1e-6)


def test_a_run_that_ends_before_the_average_begins_uses_its_last_weights(
    make: Make, batches: Batches
) -> None:
    # an average that starts at a step that a short run never reaches
    run = make(steps=20, average=Average(since=0.9))
    table = trace(run, batches, 17)[-1]
    assert torch.equal(run.average.weights()["table"], table)
    with run.average.applied():
        assert torch.equal(run.model.table.weight, table)


def test_a_tail_average_is_the_mean_of_the_last_steps(make: Make, batches: Batches) -> None:
    # what is called a mean of the last weights, but is a moving average
    run = make(steps=20, average=Average(decay=None, since=0.6))
    tables = trace(run, batches, 20)
    found = run.average.weights()["table"]
    assert torch.allclose(found, torch.stack(tables[-8:]).mean(0), atol=1e-6)
    assert run.average.updates == 8


@pytest.mark.slow
def test_a_tail_of_the_clock(make: Make, batches: Batches) -> None:
    now = [0.0]

    def read(step: int) -> NDArray[np.int64]:
        now[0] += 5.0 if step < 10 else 1.0
        return batches(step)

    run = make(length=Seconds(count=100.0), average=Average(decay=None, since=0.8))
    train(run, read, clock=lambda: now[0])
    assert run.step == 60
    assert run.average.updates == 20  # those that began after 80 of the 100 seconds


def test_an_average_begins_within_the_run_whatever_its_schedules_say(
    make: Make, batches: Batches
) -> None:
    # a start that is counted over a horizon that the run does not reach
    run = make(steps=12, horizon=120, average=Average(decay=None, since=0.5))
    trace(run, batches, 12)
    assert run.average.updates == 6


def test_without_an_average_the_weights_are_those_of_the_last_step(
    make: Make, batches: Batches
) -> None:
    run = make(average=None)
    table = trace(run, batches, 3)[-1]
    assert torch.equal(run.average.weights()["table"], table)


@pytest.mark.slow
@pytest.mark.parametrize(
    "average", [Average(), Average(decay=None, since=0.3), Average(decay=0.9, since=0.8)]
)
def test_a_resumed_average_is_the_same(make: Make, batches: Batches, average: Average) -> None:
    whole, again = (make(steps=12, average=average) for _ in range(2))
    trace(whole, batches, 7)
    again.restore(7, whole.averaged_weights(), whole.state())
    trace(whole, batches, 5)
    trace(again, batches, 5)
    for name, expected in whole.average.weights().items():
        assert torch.equal(again.average.weights()[name], expected)


def test_an_average_holds_every_weight(make: Make, batches: Batches) -> None:
    run = make(average=Average(decay=None))
    trace(run, batches, 2)
    assert run.average.weights().keys() == {w.name for w in weights(run.model)}
    assert all(t.dtype == torch.float32 for t in run.average.weights().values())
