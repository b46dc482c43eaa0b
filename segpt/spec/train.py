"""How a model is trained, as data: length, optimizers by role, schedules, averaging."""

import dataclasses
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, spec


def _check_rates(rate: float, decay: float, *fractions: float) -> None:
    if rate < 0 or decay < 0:
        raise SpecError(f"rate and decay are not negative; got {rate} and {decay}")
    if not all(0 <= f < 1 for f in fractions):
        raise SpecError(f"momentum and betas lie in [0, 1); got {fractions}")


# How long a run is. Progress, the fraction done, is what every schedule depends on.
@spec
class Steps:
    """A number of optimizer steps."""

    count: int


@spec
class Seconds:
    """Wall-clock seconds of training, summed over resumed sessions."""

    count: float


@spec
class Muon:
    """Momentum orthogonalised by Newton-Schulz iterations (Jordan 2024), for matrices.

    ``equilibrate`` normalises rows or columns first (MuonEq, arXiv 2603.28254).
    ``coefficients``: ``classic`` is Jordan's quintic, ``polar`` is Polar Express
    (arXiv 2505.16932). ``scale`` multiplies the update of an (out, in) matrix: ``spectral`` by
    sqrt(max(1, out/in)), ``rms`` by 0.2 sqrt(max(out, in)). Decay is decoupled. Momentum rises
    linearly from ``momentum_start`` over the first ``momentum_warmup`` of the run.
    """

    rate: float = 0.02
    decay: float = 0.0
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup: float = 0.1
    nesterov: bool = True
    coefficients: Literal["classic", "polar"] = "polar"
    iterations: int = 5
    equilibrate: Literal["none", "row", "column", "both"] = "row"
    scale: Literal["spectral", "rms"] = "spectral"

    def __post_init__(self) -> None:
        _check_rates(self.rate, self.decay, self.momentum, self.momentum_start)
        limit = 5 if self.coefficients == "polar" else 30
        if not 1 <= self.iterations <= limit:
            raise SpecError(f"{self.coefficients} iterations are 1 to {limit}: {self.iterations}")


@spec
class Adam:
    """AdamW with decoupled decay (arXiv 1711.05101)."""

    rate: float = 0.01
    decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_rates(self.rate, self.decay, self.beta1, self.beta2)


@spec
class Optimizer:
    """Which rule updates the weights of each role. Muon is for matrices only."""

    matrix: Muon | Adam = Muon()
    table: Adam = Adam()
    head: Adam = Adam()
    vector: Adam = Adam()


@spec
class Schedule:
    """The learning-rate multiplier as a function of progress.

    Rises linearly over the first ``warmup`` of the run, holds 1, and falls over the last
    ``warmdown`` to ``floor``: linearly, as a half cosine, or as 1 - sqrt.
    """

    warmup: float = 0.0
    warmdown: float = 0.7
    floor: float = 0.0
    shape: Literal["linear", "cosine", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        if min(self.warmup, self.warmdown) < 0 or self.warmup + self.warmdown > 1:
            raise SpecError("warmup and warmdown are fractions of the run that sum to at most 1")


@spec
class Average:
    """An exponential moving average of the weights in float32.

    Step t uses min(decay, (1 + t) / (10 + t)), so that the average is right from the first step
    on instead of remembering the initialisation.
    """

    decay: float = 0.9965

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise SpecError(f"average.decay is below 1, got {self.decay}")


@spec
class Scaling:
    """How weights start: matrices orthogonal or normal with std 1/sqrt(fan-in), table std.

    Matrices that write to the stream start at zero, so that every layer starts as identity.
    """

    matrix: Literal["orthogonal", "normal"] = "orthogonal"
    table: float = 0.005


@spec
class Loops:
    """How often the loop of the route runs, drawn for every step once the whole loop has joined.

    A model that has seen several depths can be scored at any of them. The number is uniform from
    ``least`` to ``most`` or, with a ``mean``, ``least`` plus a log-normal Poisson number, cut at
    ``most`` (Geiping et al. 2025, arXiv 2502.05171). ``mean`` is the one before the cut and
    ``spread`` the deviation of the logarithm. With ``back``, gradients see only so many passes,
    the last ones; what comes before them learns as if earlier passes added a constant.
    """

    least: int = 1
    most: int
    mean: float | None = None
    spread: float = 0.5
    back: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise SpecError(f"loops run from 1 time up; got {self.least} to {self.most}")
        if self.mean is not None and not self.least < self.mean <= self.most:
            raise SpecError(
                f"the mean of loops lies above {self.least} and not above {self.most}, "
                f"got {self.mean}"
            )
        if self.spread < 0:
            raise SpecError(f"loops.spread is not negative, got {self.spread}")
        if self.back is not None and self.back < 1:
            raise SpecError(f"loops.back is at least one pass, got {self.back}")


@spec
class TrainSpec:
    """A training run: everything that, with the tokens, determines the result.

    ``batch`` sequences of the model's context make one step, in ``accumulation`` micro-batches,
    shared among the processes. ``precision: auto`` is bfloat16 autocast on CUDA and float32
    elsewhere; master weights are float32 always. ``clip`` bounds the global gradient norm.
    ``loops`` varies how deep the model is; without it the route runs as written.
    """

    length: Steps | Seconds
    batch: int
    accumulation: int = 1
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    scaling: Scaling = Scaling()
    average: Average | None = Average()
    clip: float | None = 1.0
    seed: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    validate_every: int = 200
    validate_tokens: int = 65_536
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    loops: Loops | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.length.count <= 0:
            raise SpecError(f"length must be positive, got {self.length.count}")
        if self.batch < 1 or self.accumulation < 1 or self.batch % self.accumulation:
            raise SpecError(
                f"a batch of {self.batch} sequences does not divide into "
                f"{self.accumulation} micro-batches"
            )
        for name in ("validate_every", "validate_tokens", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clip is not None and self.clip <= 0:
            raise SpecError(f"clip must be positive or null, got {self.clip}")
