"""How a model is trained, as data: length, optimizers by role, schedules, averaging."""

import dataclasses
import itertools
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, spec
from .kernels import Kernels
from .layout import Role, Weight


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


def _check_span(name: str, span: "float | Steps") -> None:
    if isinstance(span, Steps) and span.count < 0:
        raise SpecError(f"{name} is a number of steps or a fraction of the run, got {span.count}")


@spec
class Linear:
    """A factor that is ``start`` up to ``since``, a fraction of the run, then goes to ``end``."""

    start: float
    end: float
    since: float = 0.0

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < 0 or not 0 <= self.since < 1:
            raise SpecError(
                f"a linear factor goes between numbers that are not negative, since a fraction "
                f"of the run below 1; got {self.start} to {self.end} since {self.since}"
            )


@spec
class FollowRate:
    """A factor that goes with the schedule of the rate, from ``least`` (at rate 0) to 1."""

    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise SpecError(f"the least factor of a decay lies in [0, 1], got {self.least}")


# What a decay of 0.1 means where the rate is lr and its schedule stands at m, from 0 to 1: a step
# takes away 0.1 lr m of a weight, 0.1 m, or 0.1.
DecayMode = Literal["lr_coupled", "independent", "fixed"]


@spec
class Neurons:
    """Second moments that even out what is orthogonalised (NorMuon, arXiv 2510.05491).

    Each row of the update is divided by the root of a moving average of its mean square, and the
    whole keeps its Frobenius norm. With ``axis: auto`` it is each column where a matrix has more
    columns than rows.
    """

    beta2: float = 0.95
    axis: Literal["row", "auto"] = "row"

    def __post_init__(self) -> None:
        if not 0 <= self.beta2 < 1:
            raise SpecError(f"beta2 lies in [0, 1), got {self.beta2}")


@spec
class Muon:
    """Momentum orthogonalised by Newton-Schulz iterations (Jordan 2024), for matrices.

    ``equilibrate`` normalises rows or columns first (MuonEq, arXiv 2603.28254); before the
    fraction ``both_until`` of the run, both. ``coefficients``: ``classic`` is Jordan's quintic in
    every iteration; ``five``, ``seven`` and ``polar`` (Polar Express, arXiv 2505.16932) are
    schedules of five, seven and five. ``scale`` multiplies the update of an (out, in) matrix:
    ``spectral`` by sqrt(max(1, out/in)), ``ratio`` by sqrt(out/in), ``rms`` by
    0.2 sqrt(max(out, in)). Momentum rises linearly from ``momentum_start`` over the first
    ``momentum_warmup`` of the run, a fraction or a number of steps.

    The matrices of one mixer that ``joint`` names are updated as one, stacked by rows.

    Decay is decoupled. ``decay_mode`` is what it is in proportion to, ``decay_schedule`` a factor
    over the run. A ``cautious`` decay spares weights that the update moves away from zero
    (arXiv 2510.12402).
    """

    rate: float = 0.02
    decay: float = 0.0
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup: float | Steps = 0.1
    nesterov: bool = True
    coefficients: Literal["classic", "five", "seven", "polar"] = "polar"
    iterations: int = 5
    equilibrate: Literal["none", "row", "column", "both"] = "row"
    scale: Literal["spectral", "ratio", "rms"] = "spectral"
    both_until: float = dataclasses.field(default=0.0, metadata=ADDED)
    neurons: Neurons | None = dataclasses.field(default=None, metadata=ADDED)
    joint: tuple[Literal["query", "key", "value"], ...] = dataclasses.field(
        default=(), metadata=ADDED
    )
    cautious: bool = dataclasses.field(default=False, metadata=ADDED)
    decay_mode: DecayMode = dataclasses.field(default="lr_coupled", metadata=ADDED)
    decay_schedule: Linear | FollowRate | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        _check_rates(self.rate, self.decay, self.momentum, self.momentum_start)
        _check_span("momentum_warmup", self.momentum_warmup)
        if self.coefficients == "seven" and self.iterations != 7:
            raise SpecError(
                f"the seven coefficients converge in iterations: 7, not {self.iterations}"
            )
        limit = {"five": 5, "seven": 7, "polar": 5}.get(self.coefficients, 30)
        if not 1 <= self.iterations <= limit:
            raise SpecError(f"{self.coefficients} iterations are 1 to {limit}: {self.iterations}")
        if not 0 <= self.both_until <= 1:
            raise SpecError(f"both_until is a fraction of the run, got {self.both_until}")
        if len(self.joint) == 1 or len(set(self.joint)) < len(self.joint):
            raise SpecError(f"joint names different matrices, at least two: {list(self.joint)}")


@spec
class Adam:
    """AdamW with decoupled decay (arXiv 1711.05101), which goes as that of :class:`Muon`."""

    rate: float = 0.01
    decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    cautious: bool = dataclasses.field(default=False, metadata=ADDED)
    decay_mode: DecayMode = dataclasses.field(default="lr_coupled", metadata=ADDED)
    decay_schedule: Linear | FollowRate | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        _check_rates(self.rate, self.decay, self.beta1, self.beta2)


Rule = Muon | Adam


@spec
class Override:
    """What is different for some weights: those of a ``role``, at a ``place``, of a ``part``.

    ``part`` is the last word of a weight's name, such as ``query`` or ``up``. A ``rule`` replaces
    that of the role; then its rate and decay are multiplied.
    """

    role: Literal["table", "matrix", "head", "vector"] | None = None
    place: Literal["embed", "value", "join", "lanes", "mixer", "feed", "head"] | None = None
    part: str | None = None
    rule: Rule | None = None
    rate_times: float = 1.0
    decay_times: float = 1.0

    def __post_init__(self) -> None:
        if self.role is None and self.place is None and self.part is None:
            raise SpecError("an override names a role, a place or a part of the model")
        if isinstance(self.rule, Muon) and self.role != "matrix":
            raise SpecError("Muon is for matrices: an override with that rule needs role: matrix")
        if self.rate_times < 0 or self.decay_times < 0:
            raise SpecError(
                "rate_times and decay_times are not negative; got "
                f"{self.rate_times} and {self.decay_times}"
            )

    def covers(self, weight: Weight) -> bool:
        """Whether the weight is one of those that the override names."""
        return (
            self.role in (None, weight.role.value)
            and self.place in (None, weight.place.value)
            and self.part in (None, weight.part)
        )


@spec
class Optimizer:
    """Which rule updates the weights of each role. Muon is for matrices only.

    Each of the ``overrides`` changes in turn what it covers.
    """

    matrix: Rule = Muon()
    table: Adam = Adam()
    head: Adam = Adam()
    vector: Adam = Adam()
    overrides: tuple[Override, ...] = dataclasses.field(default=(), metadata=ADDED)

    def rule(self, weight: Weight) -> Rule:
        """The rule that updates a weight."""
        by_role: dict[Role, Rule] = {
            Role.MATRIX: self.matrix,
            Role.TABLE: self.table,
            Role.HEAD: self.head,
            Role.VECTOR: self.vector,
        }
        rule = by_role[weight.role]
        for override in self.overrides:
            if override.covers(weight):
                rule = rule if override.rule is None else override.rule
                rule = dataclasses.replace(
                    rule,
                    rate=rule.rate * override.rate_times,
                    decay=rule.decay * override.decay_times,
                )
        return rule


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
    shape: Literal["linear", "cosine", "sqrt"] = "linear"
    zero: float | Steps = dataclasses.field(default=0.0, metadata=ADDED)
    ramp: Ramp | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        _check_span("zero", self.zero)
        _check_span("warmup", self.warmup)
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


@spec
class Average:
    """An average of the weights in float32, since a fraction of the run.

    With a ``decay`` it is an exponential moving average. Its step t uses
    min(decay, (1 + t) / (10 + t)), so that the average is right from the first step on instead of
    remembering the initialisation. Without, all steps weigh the same: a tail average. Before it
    begins, the weights to use are those of the last step.
    """

    decay: float | None = 0.9965
    since: float = dataclasses.field(default=0.0, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise SpecError(f"average.decay is below 1, got {self.decay}")
        if not 0 <= self.since < 1:
            raise SpecError(f"average.since is a fraction of the run below 1, got {self.since}")


@spec
class Mup:
    """What keeps the best rate of a narrow model the best one of wider ones (arXiv 2203.03466).

    The rate of a weight is multiplied by (fan-in / ``base_width``) to the power of its role, that
    of the table and of the head by a number of theirs too. The fan-in of table and head is their
    width. ``matrix_power`` is for matrices under Adam. Muon needs none where its ``scale`` is
    ``spectral`` or ``ratio``; under ``rms``, which grows with the larger side of a matrix, its
    rate goes with the power -1/2 of that. ``table_start`` and ``head_start`` are powers of the same
    ratio that deviations at the start are multiplied by.

    The defaults suit a head of its own. A tied table is also the head: it needs powers of -1.
    What changes the function itself, as the scale of logits and that of attention, the model says.
    """

    base_width: int
    table: float = 1.0
    head: float = 1.0
    matrix_power: float = -1.0
    table_power: float = 0.0
    head_power: float = -1.0
    table_start: float = 0.0
    head_start: float = -0.5

    def __post_init__(self) -> None:
        if self.base_width < 1:
            raise SpecError(f"base_width must be positive, got {self.base_width}")
        if self.table < 0 or self.head < 0:
            raise SpecError(
                f"table and head multiply rates, so neither is negative; got {self.table} and "
                f"{self.head}"
            )


@spec
class Scaling:
    """How weights start, and how their rates go with the width of the model.

    Matrices start orthogonal, or ``normal`` or ``uniform`` with the deviation 1/sqrt(fan-in); the
    ``gain`` multiplies either. Those that write to the stream start at zero, so that every layer
    starts as identity, or like the others if ``outputs`` are ``random``. The table is normal with
    the deviation ``table``, over sqrt(width) if it goes ``table_by`` width. Normal numbers are
    ``cut`` at so many deviations. Without ``mup``, rates are those of the optimizer's rules.
    """

    matrix: Literal["orthogonal", "normal", "uniform"] = "orthogonal"
    table: float = 0.005
    gain: float = dataclasses.field(default=1.0, metadata=ADDED)
    outputs: Literal["zero", "random"] = dataclasses.field(default="zero", metadata=ADDED)
    table_by: Literal["itself", "width"] = dataclasses.field(default="itself", metadata=ADDED)
    cut: float | None = dataclasses.field(default=None, metadata=ADDED)
    mup: Mup | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.gain < 0:
            raise SpecError(f"the gain of matrices is not negative, got {self.gain}")
        if self.cut is not None and self.cut <= 0:
            raise SpecError(f"cut must be positive or null, got {self.cut}")


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

    ``order`` is that of the text: blocks shuffled anew in every epoch, or the stream as it lies.
    ``unique`` trains on no target twice, and refuses a text that is too short for that.
    ``horizon`` is the number of steps that schedules run over, where the run stops before that.
    ``validate_first`` measures before the first step too. ``keep_best`` keeps, beside the last
    checkpoints, that of the best validation, not counting the first ``best_after`` of them.

    ``z_loss`` times the mean square of log Z, Z being the sum of exp(logit) of a token, is added to
    what is descended (PaLM, arXiv 2204.02311). Backward computes the first ``recompute`` visits
    once more instead of keeping what they leave, all of them if it is -1: the same result in less
    memory and more time. ``kurtosis`` logs how heavy the tails of every visit's input are.
    ``kernels`` chooses the back ends of operations, which round differently.
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
    order: Literal["shuffled", "sequential"] = dataclasses.field(default="shuffled", metadata=ADDED)
    unique: bool = dataclasses.field(default=False, metadata=ADDED)
    horizon: int | None = dataclasses.field(default=None, metadata=ADDED)
    validate_first: bool = dataclasses.field(default=False, metadata=ADDED)
    keep_best: bool = dataclasses.field(default=False, metadata=ADDED)
    best_after: int = dataclasses.field(default=0, metadata=ADDED)
    z_loss: float = dataclasses.field(default=0.0, metadata=ADDED)
    recompute: int = dataclasses.field(default=0, metadata=ADDED)
    kurtosis: bool = dataclasses.field(default=False, metadata=ADDED)
    kernels: Kernels = dataclasses.field(default=Kernels(), metadata=ADDED)

    def __post_init__(self) -> None:
        if self.length.count <= 0:
            raise SpecError(f"length must be positive, got {self.length.count}")
        for name in ("batch", "accumulation"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch % self.accumulation:
            raise SpecError(
                f"a batch of {self.batch} sequences does not divide into "
                f"{self.accumulation} micro-batches"
            )
        for name in ("validate_every", "validate_tokens", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.clip is not None and self.clip <= 0:
            raise SpecError(f"clip must be positive or null, got {self.clip}")
        if self.z_loss < 0:
            raise SpecError(f"z_loss is not negative, got {self.z_loss}")
        if self.recompute < -1:
            raise SpecError(
                f"recompute is a number of visits, or -1 for all of them; got {self.recompute}"
            )
        if self.best_after < 0:
            raise SpecError(f"best_after is a number of validations, got {self.best_after}")
        if self.horizon is not None and not isinstance(self.length, Steps):
            raise SpecError("a horizon in steps needs a length in steps; leave one of them out")
        if self.horizon is not None and self.horizon < self.length.count:
            raise SpecError(
                f"schedules over {self.horizon} steps end before the run of {self.length.count} "
                "does; set train.horizon to at least the length, or leave it out"
            )
