"""Rates, momenta and depths as pure functions of time, so that resuming is exact."""

import math

import numpy as np

from segpt.spec.train import Loops, Muon, Schedule


def rate(schedule: Schedule, progress: float) -> float:
    """The learning-rate multiplier at this fraction of the run; outside [0, 1] it is clamped."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < schedule.warmup:
        return progress / schedule.warmup
    left = 1.0 - progress
    if left >= schedule.warmdown:
        return 1.0
    remaining = left / schedule.warmdown
    match schedule.shape:
        case "linear":
            fall = remaining
        case "cosine":
            fall = 0.5 - 0.5 * math.cos(math.pi * remaining)
        case "sqrt":
            fall = 1.0 - math.sqrt(1.0 - remaining)
    return schedule.floor + (1.0 - schedule.floor) * fall


def momentum(muon: Muon, progress: float) -> float:
    """Muon's momentum: a linear rise over the first ``momentum_warmup`` of the run."""
    if progress >= muon.momentum_warmup:
        return muon.momentum
    risen = max(progress, 0.0) / muon.momentum_warmup
    return muon.momentum_start + risen * (muon.momentum - muon.momentum_start)


def loops(how: Loops, seed: int, step: int) -> int:
    """How often the loop runs in a step, the same in every process and after resuming."""
    generator = np.random.default_rng([seed, step])
    if how.mean is None:
        return int(generator.integers(how.least, how.most, endpoint=True))
    center = math.log(how.mean - how.least) - how.spread**2 / 2
    more = generator.poisson(generator.lognormal(center, how.spread))
    return min(how.least + int(more), how.most)
