"""How weights are updated, as data: a rule for each role, and what differs for some weights."""

import dataclasses
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, UNTAGGED, kind, spec
from .layout import Role, Weight
from .schedule import Steps, check_span

# What the product of an update with the stream grows with, as a model becomes wider.
GrowsWith = Literal["fan-in", "larger side"] | None


def _check_rates(rate: float, decay: float, *fractions: float) -> None:
    if rate < 0 or decay < 0:
        raise SpecError(f"rate and decay are not negative; got {rate} and {decay}")
    if not all(0 <= f < 1 for f in fractions):
        raise SpecError(f"momentum and betas lie in [0, 1); got {fractions}")


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

    @property
    def grows_with(self) -> GrowsWith:
        """What makes an update larger in a wider model: its step has singular values near 1."""
        return "larger side" if self.scale == "rms" else None

    @property
    def matrices_only(self) -> bool:
        """Whether the rule has no meaning for tables, heads and vectors."""
        return True

    def __post_init__(self) -> None:
        _check_rates(self.rate, self.decay, self.momentum, self.momentum_start)
        check_span("momentum_warmup", self.momentum_warmup)
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

    @property
    def grows_with(self) -> GrowsWith:
        """What makes an update larger in a wider model: every element moves as far."""
        return "fan-in"

    @property
    def matrices_only(self) -> bool:
        """Whether the rule has no meaning for tables, heads and vectors."""
        return False

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
        if self.rule is not None and self.rule.matrices_only and self.role != "matrix":
            name = type(self.rule).__name__
            raise SpecError(
                f"{name} is for matrices: an override with that rule needs role: matrix"
            )
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

    Tables, heads and vectors are Adam's where no kind is written. Each of the ``overrides``
    changes in turn what it covers.
    """

    matrix: Rule = Muon()
    table: Rule = dataclasses.field(default=Adam(), metadata=UNTAGGED)
    head: Rule = dataclasses.field(default=Adam(), metadata=UNTAGGED)
    vector: Rule = dataclasses.field(default=Adam(), metadata=UNTAGGED)
    overrides: tuple[Override, ...] = dataclasses.field(default=(), metadata=ADDED)

    def __post_init__(self) -> None:
        for role, rule in (("table", self.table), ("head", self.head), ("vector", self.vector)):
            if rule.matrices_only:
                raise SpecError(
                    f"{type(rule).__name__} is for matrices, and {role} is none; give it another "
                    f"rule, as in {role}: {{kind: {kind(Adam)}}}"
                )

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
