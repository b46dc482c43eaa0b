"""Batches that grow: micro-batches stay as large as they are, and nothing is counted twice."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segpt.config.model import ModelSpec
from segpt.config.schedule import Ramp, Schedule, Seconds, Steps
from segpt.config.train import TrainSpec
from segpt.errors import TrainError
from segpt.train.mesh import Mesh
from segpt.train.trainer import Trainer, sequences
from tests.train.running import train

Make = Callable[..., Trainer]
RAMP = Schedule(ramp=Ramp(milestones=(0.25, 0.5)))


def drawn(run: Trainer) -> Callable[[int], NDArray[np.int64]]:
    """Blocks by their number, in batches of the size that the run asks for."""

    def batch(step: int) -> NDArray[np.int64]:
        rows = range(run.blocks, run.blocks + run.size)
        length = run.spec.context + 1
        return np.stack(
            [np.random.default_rng(i).integers(run.spec.vocab, size=length) for i in rows]
        )

    return batch


def test_tokens_are_those_of_the_blocks(make: Make) -> None:
    run = make(schedule=RAMP, steps=8)
    expected = sequences(run.cfg)
    reported: list[int] = []
    train(run, drawn(run), report=lambda report: reported.append(report.tokens))
    sizes = [8, 8, 16, 16, 32, 32, 32, 32]
    assert reported == (12 * np.cumsum(sizes)).tolist()
    assert run.blocks == expected == sum(sizes)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_micro_batches_keep_their_size(make: Make, accumulation: int) -> None:
    run = make(schedule=RAMP, accumulation=accumulation)
    for factor in (1, 2, 4):
        parts = run.parts(8 * factor)
        assert {part.stop - part.start for part in parts} == {8 // accumulation}
        assert len(parts) == accumulation * factor


@pytest.mark.slow
def test_accumulation_changes_only_rounding_on_a_ramp(make: Make) -> None:
    one, two = make(schedule=RAMP, steps=8), make(schedule=RAMP, steps=8, accumulation=2)
    for run in (one, two):
        train(run, drawn(run))
    for name, value in one.averaged_weights().items():
        assert np.allclose(value, two.averaged_weights()[name], atol=5e-4), name


def test_a_batch_that_does_not_divide_is_refused(make: Make, spec: ModelSpec) -> None:
    # a number of micro-batches that is rounded down changes the batch without a word
    run = make(schedule=RAMP, accumulation=2)
    for rows in (4, 12):
        with pytest.raises(TrainError, match=f"{rows} sequences are no multiple"):
            run.parts(rows)
    with pytest.raises(TrainError, match="does not divide among 3 processes"):
        Trainer(spec, run.cfg, Mesh(0, 3, torch.device("cpu")))


def test_processes_share_every_size(make: Make) -> None:
    how = make(schedule=RAMP, accumulation=2).cfg
    spec = make().spec
    runs = [Trainer(spec, how, Mesh(rank, 2, torch.device("cpu"))) for rank in range(2)]
    for rows in (8, 16, 32):
        taken = [i for run in runs for part in run.parts(rows) for i in range(*part.indices(rows))]
        assert sorted(taken) == list(range(rows))


def test_what_is_left_counts_from_where_the_run_is(how: TrainSpec) -> None:
    ramped = dataclasses.replace(how, schedule=RAMP, length=Steps(count=8))
    assert sequences(ramped) == 176
    assert sequences(ramped, 6) == 64
    early = dataclasses.replace(ramped, length=Steps(count=3), horizon=8)
    assert sequences(early) == 8 + 8 + 16
    assert sequences(dataclasses.replace(how, length=Seconds(count=1.0))) is None
