"""How far back attention sees: its windows, and how they widen over training."""

import math
from typing import Literal

from segpt.errors import SpecError

from .base import spec


def narrower(first: int | None, second: int | None) -> int | None:
    """The narrower of two windows; None is no limit."""
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise SpecError(f"a window holds at least the own position, got {window}")


@spec
class Growth:
    """Windows that widen over training, as in the nanoGPT speed runs.

    At a fraction p of training the widest is ``full`` * f(p), rounded up to a ``multiple``. f(p) is
    p (``linear``) or 4p^3 - 6p^2 + 3p (``cubic``). Windows as wide as it is at the end are cut to
    that, and so is attention without a window; narrower ones keep their share of it, rounded down.
    None is narrower than one multiple, unless it is so by itself. After training all are as the
    layers and visits say.
    """

    full: int
    shape: Literal["linear", "cubic"] = "linear"
    multiple: int = 128

    def __post_init__(self) -> None:
        if min(self.full, self.multiple) < 1:
            raise SpecError(
                f"windows grow to a positive size in positive multiples, got {self.full} and "
                f"{self.multiple}"
            )

    def at(self, window: int | None, progress: float) -> int | None:
        """How wide a window is at this fraction of training; None is no limit."""
        if progress >= 1:
            return window
        widest, end = self._widest(progress), self._widest(1.0)
        if window is None:
            return widest
        if window >= end:
            return min(window, widest)
        share = window * widest // end // self.multiple * self.multiple
        return min(window, max(self.multiple, share))

    @property
    def widths(self) -> int:
        """How many sizes the widest window has over training, the last one included."""
        return 1 + self._widest(1.0) // self.multiple

    def _widest(self, progress: float) -> int:
        if self.shape == "cubic":
            progress = ((4 * progress - 6) * progress + 3) * progress
        return self.multiple * max(1, math.ceil(self.full * progress / self.multiple))
