"""Scales of charts: ends and ticks on round numbers, and numbers as short as can be read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

FARTHEST = 1e100  # from 0, of anything that is drawn
MOST_TICKS = 6

_STEPS = (1.0, 2.0, 5.0, 10.0)
_FEW_OCTAVES = 4.0  # below this ratio, powers of ten say too little
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """From values to their place between the two ends of an axis."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """The place of ``value``: 0 at the low end, 1 at the high one."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def tick_names(self) -> list[str]:
        """What is written at each tick: no two alike, with the digits that the gaps need."""
        gaps = [b - a for a, b in pairwise(self.ticks)]
        even = max(gaps, default=0.0) < 1.01 * min(gaps, default=0.0)
        return [short(tick, gaps[0] if even else 0.0) for tick in self.ticks]


def drawable(value: float | None, *, log: bool = False) -> bool:
    """Whether an axis has a place for ``value``."""
    return value is not None and abs(value) < FARTHEST and (not log or value > 1 / FARTHEST)


def scale(values: Iterable[float], *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that all of ``values`` fit, at least one; with ``zero`` it begins at 0."""
    low, high = min(numbers := list(values)), max(numbers)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    if low == high:
        reach = abs(low) / 2 or 1.0
        low, high = low - reach, high + reach
    if log and high / low >= _FEW_OCTAVES:
        return _decades(low, high)
    step = _step((high - low) / (MOST_TICKS - 1))
    if not log:  # whole halves of a step, so that little room is lost
        low = _round(math.floor(2 * low / step + 1e-9), step / 2)
        high = _round(math.ceil(2 * high / step - 1e-9), step / 2)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(_round(i, step) for i in range(first, last + 1)), log)


def short(value: float, step: float = 0.0) -> str:
    """``value`` for people: 1,250 or 12.5k or 3M or 0.018 or 4e-06.

    With ``step`` just the digits that tell it from ``value + step``; otherwise four of them.
    """
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e15:
        return f"{value:.3g}"
    unit, name = next((p for p in _PREFIXES if size >= max(p[0], 1e4)), (1.0, ""))
    digits = 3 - math.floor(math.log10(size / unit) + 1e-12)
    if step:
        digits = min(digits + 3, -math.floor(math.log10(step / unit) + 1e-9))
    digits = max(0, digits)
    text = f"{value / unit:,.{digits}f}"
    return (text if step or not digits else text.rstrip("0").rstrip(".")) + name


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in (*_STEPS, 20.0) if power * step >= least * (1 - 1e-9))


def _round(count: int, step: float) -> float:
    """``count * step`` without the dust of its multiplication."""
    return float(f"{count * step:.12g}")


def _decades(low: float, high: float) -> Scale:
    """A logarithmic scale between 1, 2 or 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    grid = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    low = max(tick for tick in grid if tick <= low * (1 + 1e-9))
    high = min(tick for tick in grid if tick >= high * (1 - 1e-9))
    within = [tick for tick in grid if low <= tick <= high]
    if len(within) > MOST_TICKS + 2:
        tens = [float(f"1e{power}") for power in powers]
        tens = [tick for tick in tens if low <= tick <= high]
        within = tens[:: -(-len(tens) // MOST_TICKS)]
    return Scale(low, high, tuple(within), True)
