"""Where curves of KL over bytes lie to each other: interpolation, never extrapolation."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Mix(NamedTuple):
    """A place on a curve: ``share`` of the way from point ``first`` to point ``first + 1``."""

    first: int
    share: float


class Curve:
    """Points (x, y > 0) joined by lines of log y over x."""

    def __init__(self, points: Iterable[tuple[float, float]]) -> None:
        """Take points in any order."""
        self.points = sorted(points)

    @property
    def least(self) -> float:
        return min(y for _, y in self.points)

    @property
    def most(self) -> float:
        return max(y for _, y in self.points)

    def value(self, x: float) -> float | None:
        """What the curve is at ``x``; None beyond the ends."""
        xs, ys = zip(*self.points, strict=True)
        if not xs[0] <= x <= xs[-1]:
            return None
        return math.exp(float(np.interp(x, xs, np.log(ys))))

    def place(self, y: float) -> float | None:
        """The smallest x at which the curve is ``y``; None if it never is."""
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:], strict=False):
            if min(y0, y1) <= y <= max(y0, y1) and y0 != y1:
                share = math.log(y / y0) / math.log(y1 / y0)
                return x0 + share * (x1 - x0)
        return None

    def mix(self, x: float) -> Mix | None:
        """Which two points, mixed linearly how, have the value of the curve at ``x``.

        What was measured on parts of the text can be mixed in the same way.
        """
        value = self.value(x)
        for i, ((x0, y0), (x1, y1)) in enumerate(zip(self.points, self.points[1:], strict=False)):
            if value is not None and x0 <= x <= x1:
                return Mix(i, 0.0 if y0 == y1 else (value - y0) / (y1 - y0))
        return None


def mean(values: Sequence[float | None]) -> dict[str, float | list[float | None] | None]:
    """The mean over checkpoints and its standard error; None where any of them is missing."""
    known = [v for v in values if v is not None]
    if len(known) < len(values) or not known:
        return {"mean": None, "error": None, "each": list(values)}
    error = float(np.std(known, ddof=1) / math.sqrt(len(known))) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "error": error, "each": list(values)}
