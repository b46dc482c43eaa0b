"""How a model is trained, as data: length, scaling with width, averaging, and what else counts."""

import dataclasses
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, spec
from .kernels import Kernels
from .optimizer import Optimizer
from .precision import Precision
from .schedule import Schedule, Seconds, Steps


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
    elsewhere; master weights are float32 always. ``compile: graphs`` compiles, and records what a
    micro-batch launches as CUDA graphs, which start as a whole. ``clip`` bounds the global gradient
    norm. ``loops`` varies how deep the model is; without it the route runs as written.

    ``order`` is that of the text: blocks shuffled anew in every epoch, or the stream as it lies.
    ``unique`` trains on no target twice, and refuses a text that is too short for that.
    ``horizon`` is the number of steps that schedules run over, where the run stops before that.
    ``validate_first`` measures before the first step too. ``keep_best`` keeps, beside the last
    checkpoints, that of the best validation, not counting the first ``best_after`` of them.

    ``z_loss`` times the mean square of log Z, Z being the sum of exp(logit) of a token, is added to
    what is descended (PaLM, arXiv 2204.02311). Backward computes the first ``recompute`` visits
    once more instead of keeping what they leave, all of them if it is -1: the same result in less
    memory and more time. ``kurtosis`` logs how heavy the tails of every visit's input are. With
    ``label_smoothing`` e, what is descended is (1 - e) -log p(target) plus e times the mean of
    -log p over the vocabulary (arXiv 1512.00567); what is logged and validated stays the first.
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
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off", "graphs"] = "auto"
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
    label_smoothing: float = dataclasses.field(default=0.0, metadata=ADDED)
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
        if not 0 <= self.label_smoothing < 1:
            raise SpecError(f"label_smoothing is from 0 to below 1, got {self.label_smoothing}")
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
