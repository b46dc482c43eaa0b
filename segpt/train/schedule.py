"""Rates, momenta and depths as pure functions of time, so that resuming is exact."""

import math

import numpy as np

from segpt.config.optimizer import FollowRate, Linear, Muon, Rule
from segpt.config.schedule import Schedule, Steps
from segpt.config.train import Loops


def rate(schedule: Schedule, progress: float, steps: float) -> float:
    """The learning-rate multiplier after a fraction ``progress`` of the run, in ``steps`` steps.

    Outside [0, 1] progress is clamped, and a warm-up in steps that lasts into the warm-down is
    cut by it. A ramp of the batch divides the multiplier by the root of the batch's factor.
    """
    progress = min(max(progress, 0.0), 1.0)
    rise = _rise(schedule.zero, schedule.warmup, progress, steps)
    return rise * _fall(schedule, progress) / math.sqrt(batch(schedule, progress))


def _rise(zero: float | Steps, warmup: float | Steps, progress: float, steps: float) -> float:
    at = progress
    if isinstance(zero, Steps) or isinstance(warmup, Steps):
        at = steps
        zero, warmup = (s.count if isinstance(s, Steps) else s for s in (zero, warmup))
    if at < zero:
        return 0.0
    return (at - zero) / warmup if at < zero + warmup else 1.0


def _fall(schedule: Schedule, progress: float) -> float:
    """1 until the warm-down begins, then what its shape says, down to the floor."""
    left = 1.0 - progress
    if left >= schedule.warmdown:
        return 1.0
    remaining = left / schedule.warmdown
    return schedule.floor + (1.0 - schedule.floor) * schedule.shape.multiplier(remaining)


def batch(schedule: Schedule, progress: float) -> int:
    """How many times the sequences of the spec's batch a step takes (arXiv 2510.14717)."""
    if schedule.ramp is None:
        return 1
    return 1 << sum(milestone <= progress for milestone in schedule.ramp.milestones)


def momentum(muon: Muon, progress: float, steps: float) -> float:
    """Muon's momentum: a linear rise over the first ``momentum_warmup`` of the run."""
    span, at = muon.momentum_warmup, progress
    if isinstance(span, Steps):
        span, at = span.count, steps
    if at >= span:
        return muon.momentum
    risen = max(at, 0.0) / span
    return muon.momentum_start + risen * (muon.momentum - muon.momentum_start)


def decay(rule: Rule, multiplier: float, progress: float) -> float:
    """Which part of a weight the decay of one step takes away.

    Args:
        rule: what updates the weight.
        multiplier: of the rate, as :func:`rate` gives it.
        progress: the fraction of the run.
    """
    strength = rule.decay
    match rule.decay_schedule:
        case Linear(start=start, end=end, since=since):
            gone = (min(max(progress, since), 1.0) - since) / (1.0 - since)
            strength *= start + (end - start) * gone
        case FollowRate(least=least):
            strength *= least + (1.0 - least) * multiplier
        case None:
            pass
    match rule.decay_mode:
        case "lr_coupled":
            return rule.rate * multiplier * strength
        case "independent":
            return multiplier * strength
        case "fixed":
            return strength


def loops(spec: Loops, seed: int, step: int) -> int:
    """How often the loop runs in a step, the same in every process and after resuming."""
    generator = np.random.default_rng([seed, step])
    if spec.mean is None:
        return int(generator.integers(spec.least, spec.most, endpoint=True))
    center = math.log(spec.mean - spec.least) - spec.spread**2 / 2
    more = generator.poisson(generator.lognormal(center, spec.spread))
    return min(spec.least + int(more), spec.most)
