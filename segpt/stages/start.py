"""What a training run begins with."""

from dataclasses import dataclass

from segpt.values import Checkpoint


@dataclass(frozen=True)
class Scratch:
    """Random weights."""


@dataclass(frozen=True)
class From:
    """The weights of a checkpoint, and nothing else of it.

    The run has its own steps, schedules and optimizer.
    """

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Resume:
    """The state of a checkpoint, from which the run goes on exactly."""

    checkpoint: Checkpoint


Start = Scratch | From | Resume
SCRATCH = Scratch()
