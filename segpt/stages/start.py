"""What a training run begins with."""

from dataclasses import dataclass
from typing import Literal

from segpt.values import Checkpoint


@dataclass(frozen=True)
class Scratch:
    """Random weights."""


@dataclass(frozen=True)
class From:
    """The weights of a checkpoint, and nothing else of it unless its ``optimizer`` is kept.

    The run has its own steps and schedules, and an optimizer that remembers nothing, or what it had
    come to.
    """

    checkpoint: Checkpoint
    optimizer: Literal["fresh", "kept"] = "fresh"


@dataclass(frozen=True)
class Resume:
    """The state of a checkpoint, from which the run goes on exactly."""

    checkpoint: Checkpoint


Start = Scratch | From | Resume
SCRATCH = Scratch()
