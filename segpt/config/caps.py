"""Soft caps of the head that are more than a number, for logits z."""

from segpt.errors import SpecError

from .base import spec
from .parts import Weightless
from .role import Entry, vector


@spec
class Sigmoid(Weightless):
    """``cap`` * sigmoid(z / ``divisor``), which lies between 0 and the cap."""

    cap: float
    divisor: float

    def __post_init__(self) -> None:
        if min(self.cap, self.divisor) <= 0:
            raise SpecError(
                f"cap and divisor of a sigmoid are positive, got {self.cap} and {self.divisor}"
            )


@spec
class Algebraic(Weightless):
    """``cap`` * z / sqrt(z^2 + cap^2)."""

    cap: float

    def __post_init__(self) -> None:
        if self.cap <= 0:
            raise SpecError(f"an algebraic cap is positive, got {self.cap}")


@spec
class Asymmetric:
    """c * tanh(z / c) with two learned c, for positive and for negative z, from ``init`` on."""

    init: float = 30.0

    def __post_init__(self) -> None:
        if self.init <= 0:
            raise SpecError(f"asymmetric caps start above zero, got {self.init}")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """The cap of positive logits, then that of negative ones."""
        return (vector("caps", 2),)
