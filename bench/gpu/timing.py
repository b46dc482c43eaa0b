"""Two callables that take turns, and what their calls cost."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

WARMUP = 2  # calls of each side that are not counted: they compile and fill caches


class Sides(NamedTuple):
    """Medians of both sides: seconds of a call, and the peak of bytes that it added."""

    seconds: float
    other_seconds: float
    peak: int
    other_peak: int

    @property
    def ratio(self) -> float:
        """How many times as long the other side takes."""
        return self.other_seconds / self.seconds

    @property
    def memory(self) -> float | None:
        """Our peak over the other side's; None where memory is not counted."""
        return self.peak / self.other_peak if self.other_peak else None


def paired(
    ours: Callable[[], object], other: Callable[[], object], device: str, rounds: int
) -> Sides:
    """Time both in turns, ours first and last, so that both meet the same clock and temperature."""
    for _ in range(WARMUP):
        ours()
        other()
    seconds: tuple[list[float], list[float]] = [], []
    peaks = [0, 0]
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for side in order:
            spent, peak = _call((ours, other)[side], device)
            seconds[side].append(spent)
            peaks[side] = max(peaks[side], peak)
    mine, others = (statistics.median(side) for side in seconds)
    return Sides(mine, others, *peaks)


def alone(run: Callable[[], object], device: str, rounds: int) -> float:
    """The median of seconds of a call."""
    for _ in range(WARMUP):
        run()
    return statistics.median(_call(run, device)[0] for _ in range(rounds))


def _call(run: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds of a call, and the peak of bytes beyond those that were there before."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started, 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() - before
