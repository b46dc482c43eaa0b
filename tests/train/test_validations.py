"""The best validation and the slope of the loss, the same in every process."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from segpt.config.base import encode
from segpt.config.model import ModelSpec
from segpt.config.schedule import Ramp, Schedule, Seconds, Steps
from segpt.config.train import TrainSpec
from segpt.train.validations import Validations
from tests.processes import in_two

SCRIPT = Path(__file__).with_name("two_validators.py")


def test_the_slope_is_per_billion_tokens_and_follows_slowly() -> None:
    found = Validations()
    assert found.slope is None
    found.add(10, 1_000_000, 5.0, 2.0)
    assert found.slope is None
    found.add(20, 3_000_000, 4.0, 1.9)
    assert found.slope == pytest.approx(-500.0)
    found.add(30, 4_000_000, 3.9, 1.8)
    assert found.slope == pytest.approx(0.7 * -500.0 + 0.3 * -100.0)


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_the_best_is_chosen_after_the_first(skip: int) -> None:
    # the first are skipped by comparing with None, where nothing is to be skipped
    found = Validations(skip)
    measured = [1.0, 3.0, math.nan, 2.0, 2.5, 2.0]
    best = [found.add(step, step, 0.0, bpb) for step, bpb in enumerate(measured, start=1)]
    expected = {0: [1], 1: [2, 4], 3: [4]}[skip]
    assert [step for step, is_best in enumerate(best, start=1) if is_best] == expected
    assert found.best_step == expected[-1]


def test_what_was_validated_is_restored() -> None:
    found, again = Validations(1), Validations(1)
    again.restore(found.state())
    for step in range(1, 6):
        for validations in (found, again):
            validations.add(step, 10 * step, 5.0 / step, 2.0 / step)
        fresh = Validations(1)
        fresh.restore(again.state())
        again = fresh
    assert again.slope == found.slope
    assert again.state().tolist() == found.state().tolist()


def two(spec: ModelSpec, how: TrainSpec, **task: Any) -> list[dict[str, Any]]:
    about = {"spec": encode(spec), "how": encode(how), "skew": 0.0, "target": 0.0} | task
    return [lines[0] for lines in in_two(SCRIPT, json.dumps(about))]


@pytest.mark.slow
def test_processes_that_measure_differently_agree(spec: ModelSpec, how: TrainSpec) -> None:
    # a slope from what one process measured, before the processes have shared it
    how = dataclasses.replace(how, length=Steps(count=20), validate_every=5)
    first, second = two(spec, how, target=1.91)
    assert first == second
    assert first["step"] == 10  # not before the mean is there, in any process
    losses = [loss for loss in first["losses"] if loss is not None]
    assert losses == pytest.approx([2.4, 1.9])
    slope = (1.9 - 2.4) / (5 * how.batch * spec.context) * 1e9
    assert first["slopes"][-1] == pytest.approx(slope)
    assert first["best"] == [5, 1.5]


@pytest.mark.slow
def test_skewed_clocks_stop_at_one_step_with_one_schedule(spec: ModelSpec, how: TrainSpec) -> None:
    # every process's own clock decides about its rate, its batch and its end
    schedule = Schedule(warmdown=0.5, ramp=Ramp(milestones=(0.5,)))
    how = dataclasses.replace(how, length=Seconds(count=1.5), schedule=schedule, batch=4)
    first, second = two(spec, how, skew=0.04)
    assert first == second
    assert first["step"] > 3
    assert 4 * first["step"] < first["blocks"] < 8 * first["step"]
    assert first["rates"][-1] == 0.0
