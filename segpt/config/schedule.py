"""How long a run is, and how its rate and batch go over time, as data."""

import dataclasses
import itertools
import math

from segpt.errors import SpecError

from .base import ADDED, spec


# How long a run is. Progress, the fraction done, is what every schedule depends on.
@spec
class Steps:
    """A number of optimizer steps."""

    count: int


@spec
class Seconds:
    """Wall-clock seconds of training, summed over resumed sessions."""

    count: float


def check_span(name: str, span: float | Steps) -> None:
    """Refuse a negative number of steps."""
    if isinstance(span, Steps) and span.count < 0:
        raise SpecError(f"{name} is a number of steps or a fraction of the run, got {span.count}")


@spec
class Ramp:
    """Batches that grow instead of rates that fall as much (Seesaw, arXiv 2510.14717).

    At each of the ``milestones``, fractions of the run, a step takes twice as many sequences and
    the rate is divided by the square root of 2.
    """

    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        points = (0.0, *self.milestones, 1.0)
        if any(later <= earlier for earlier, later in itertools.pairwise(points)):
            raise SpecError(
                f"milestones are rising fractions between 0 and 1, got {list(self.milestones)}"
            )


@spec
class LinearWarmdown:
    """The rate falls in proportion to what remains of the run."""

    WORD = "linear"

    def multiplier(self, remaining: float) -> float:
        """From 1 to 0 as the part of the warm-down that remains goes from 1 to 0."""
        return remaining


@spec
class CosineWarmdown:
    """The rate falls as a half cosine: slowly, fast, slowly (arXiv 1608.03983)."""

    WORD = "cosine"

    def multiplier(self, remaining: float) -> float:
        """From 1 to 0 as the part of the warm-down that remains goes from 1 to 0."""
        return 0.5 - 0.5 * math.cos(math.pi * remaining)


@spec
class SqrtWarmdown:
    """The rate falls as 1 - sqrt of what is done: fast, then slowly (arXiv 2405.18392)."""

    WORD = "sqrt"

    def multiplier(self, remaining: float) -> float:
        """From 1 to 0 as the part of the warm-down that remains goes from 1 to 0."""
        return 1.0 - math.sqrt(1.0 - remaining)


@spec
class Schedule:
    """The learning-rate multiplier as a function of progress.

    Stays at 0 for ``zero``, rises linearly over ``warmup``, holds 1, and falls over the last
    ``warmdown`` of the run to ``floor``: linearly, as a half cosine, or as 1 - sqrt. The first
    two are fractions of the run or numbers of steps. A ``ramp`` grows the batch on the way.

    A run that only cools down what an earlier one left has a warm-up of 0 and a warm-down of 1.
    """

    warmup: float | Steps = 0.0
    warmdown: float = 0.7
    floor: float = 0.0
    shape: LinearWarmdown | CosineWarmdown | SqrtWarmdown = LinearWarmdown()
    zero: float | Steps = dataclasses.field(default=0.0, metadata=ADDED)
    ramp: Ramp | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        check_span("zero", self.zero)
        check_span("warmup", self.warmup)
        if (
            self.zero
            and self.warmup
            and isinstance(self.zero, Steps) != isinstance(self.warmup, Steps)
        ):
            raise SpecError("zero and warmup are both in steps or both fractions of the run")
        parts = (self.zero, self.warmup, self.warmdown)
        fractions = [part for part in parts if not isinstance(part, Steps)]
        if min(fractions) < 0 or sum(fractions) > 1:
            raise SpecError("warmup and warmdown are fractions of the run that sum to at most 1")
