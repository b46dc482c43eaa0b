"""How text is scored, as data: windows and the test-time training policy."""

import dataclasses
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, spec
from .kernels import Kernels
from .model import ModelSpec
from .ngram import Ngram
from .precision import Precision

Mode = Literal["strided", "rolling"]
Boundaries = Literal["stream", "document"]
AdaptedRole = Literal["table", "matrix", "head", "vector"]


def _check_descent(rate: float, momentum: float, clip: float) -> None:
    if rate < 0 or not 0 <= momentum < 1 or clip <= 0:
        raise SpecError("rate is not negative, momentum lies in [0, 1), clip is positive")


class PolicyFacts:
    """What others ask of a policy. Here are the answers of one that learns nothing.

    A lane is what is read from left to right with one state: a document, or the whole stream.
    """

    __slots__ = ()

    @property
    def update_interval(self) -> int | None:
        """Targets of a lane between updates of what it learns; null if there are none."""
        return None

    @property
    def documents_at_once(self) -> int | None:
        """Documents that are adapted side by side, each from nothing; null if one state goes on."""
        return None

    @property
    def per_document(self) -> bool:
        """Whether every document has a state of its own, which ends with it."""
        return self.documents_at_once is not None

    @property
    def resets(self) -> bool:
        """Whether nothing that was learnt passes from one lane to another."""
        return True

    @property
    def review_fractions(self) -> tuple[float, ...]:
        """Fractions of the targets after which what all documents share learns from them."""
        return ()

    @property
    def fast_weights(self) -> bool:
        """Whether the model has to have fast weights, which learn within a forward pass."""
        return False

    @property
    def fast_rate(self) -> float | None:
        """The rate of fast weights, if the model has any; null for that of training."""
        return 0.0

    @property
    def adapts(self) -> bool:
        """Whether predictions depend on what was scored in other ways than as their context."""
        return self.update_interval is not None or self.fast_weights

    @property
    def best_mode(self) -> Mode:
        """How to read where nothing else is asked for.

        Weights that change within a lane do not go with a cache from before, and fast weights
        begin anew with each window; the others were seen to do no worse in one rolling pass.
        """
        return "rolling"


@spec
class Frozen(PolicyFacts):
    """The policy that never adapts."""


@spec
class Sgd(PolicyFacts):
    """Score a chunk, then take next-token gradient steps on it; weights persist.

    ``chunk`` targets are scored before their ``epochs`` passes of SGD with momentum, in
    sequences of the context and batches of ``batch`` sequences. The gradient norm is clipped.
    The defaults suit models of a few million parameters, measured on training-domain text: a
    small chunk, so that a document teaches while it lasts, and no momentum, which would carry
    one document's direction into the next.
    ``anneal: cosine`` multiplies the rate by (1 + cos(pi c / (C - 1))) / 2 in chunk c of C.
    ``roles`` chooses which weights adapt.
    """

    chunk: int = 128
    rate: float = 0.3
    momentum: float = 0.0
    epochs: int = 1
    clip: float = 1.0
    batch: int = 8
    anneal: Literal["none", "cosine"] = "none"
    roles: tuple[AdaptedRole, ...] = ("table", "matrix", "head", "vector")

    @property
    def update_interval(self) -> int:
        return self.chunk

    @property
    def resets(self) -> bool:
        return False

    @property
    def best_mode(self) -> Mode:
        return "strided"

    def __post_init__(self) -> None:
        if min(self.chunk, self.epochs, self.batch) < 1:
            raise SpecError("chunk, epochs and batch must be at least 1")
        _check_descent(self.rate, self.momentum, self.clip)
        if not self.roles:
            raise SpecError("roles names at least one of table, matrix, head, vector")


@spec
class LowRank(PolicyFacts):
    """Low-rank adapters for each document, from nothing at its start (arXiv 2106.09685).

    A chunk of ``chunk`` targets is scored, then each document's adapters take ``steps`` steps of
    AdamW on its own loss. They add ``alpha / rank`` times a product of two thin matrices to the
    weights of ``roles`` (a tied head counts as ``head``). ``documents`` documents are adapted
    side by side, which changes nothing but the time. The defaults suit models of a few million
    parameters and documents of a thousand tokens, measured on training-domain text; chunks of 16
    gain more and take twice the time.
    """

    rank: int = 8
    alpha: float = 16.0
    chunk: int = 32
    rate: float = 0.003
    beta1: float = 0.0
    beta2: float = 0.99
    decay: float = 0.0
    steps: int = 1
    documents: int = 16
    roles: tuple[Literal["matrix", "head"], ...] = ("matrix", "head")

    @property
    def update_interval(self) -> int:
        return self.chunk

    @property
    def documents_at_once(self) -> int:
        return self.documents

    def __post_init__(self) -> None:
        if min(self.rank, self.chunk, self.steps, self.documents) < 1:
            raise SpecError("rank, chunk, steps and documents must be at least 1")
        if min(self.rate, self.decay, self.alpha) < 0:
            raise SpecError("rate, decay and alpha are not negative")
        if not 0 <= min(self.beta1, self.beta2) <= max(self.beta1, self.beta2) < 1:
            raise SpecError("beta1 and beta2 lie in [0, 1)")
        if not self.roles:
            raise SpecError("roles names at least one of matrix, head")


@spec
class Phased(PolicyFacts):
    """Adapters for each document, and base weights that learn from all documents at intervals.

    The intervals end with the document that completes each of ``fractions`` of the targets. Then
    the base weights take one pass of SGD over every document so far, ``chunk`` targets to a step,
    at ``rate`` annealed by a cosine within the pass, with a fresh momentum.
    """

    adapters: LowRank = LowRank()
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75)
    chunk: int = 1024
    rate: float = 0.1
    momentum: float = 0.0
    clip: float = 1.0

    @property
    def update_interval(self) -> int:
        return self.adapters.chunk

    @property
    def documents_at_once(self) -> int:
        return self.adapters.documents

    @property
    def resets(self) -> bool:
        return False

    @property
    def review_fractions(self) -> tuple[float, ...]:
        return self.fractions

    def __post_init__(self) -> None:
        if list(self.fractions) != sorted(set(self.fractions)) or not all(
            0 < f < 1 for f in self.fractions
        ):
            raise SpecError("fractions rise from above 0 to below 1")
        if self.chunk < 1:
            raise SpecError("chunk must be at least 1")
        _check_descent(self.rate, self.momentum, self.clip)


@spec
class InPlace(PolicyFacts):
    """Fast weights that were trained with the model (arXiv 2604.06169) follow what was scored.

    ``rate`` replaces the one they were trained with.
    """

    rate: float | None = None

    @property
    def fast_weights(self) -> bool:
        return True

    @property
    def fast_rate(self) -> float | None:
        return self.rate

    @property
    def best_mode(self) -> Mode:
        return "strided"

    def __post_init__(self) -> None:
        if self.rate is not None and self.rate < 0:
            raise SpecError("rate is not negative")


Policy = Frozen | Sgd | LowRank | Phased | InPlace


@spec
class ScoreSpec:
    """How a stream of tokens is read, and what the predictor may learn on the way.

    ``strided`` reads windows of ``context`` tokens (null: see :meth:`reach`) from scratch, which
    advance by ``stride`` targets: each has at least context - stride tokens of context, except
    in the first window. ``rolling`` reads every token once, and attention looks back over
    ``context`` tokens. Under ``document`` boundaries no document is read after another one,
    whatever a policy learns.

    ``batch`` windows or documents are read at once; it is part of the recipe, so that scores
    repeat exactly. ``loops`` is how often the looped layers run (null: as trained). ``ngram``
    mixes counts of what followed in the text so far into the distributions of any policy.
    ``kernels`` chooses the back ends of operations, which round differently. ``precision`` is what
    the model multiplies in; ``auto`` is float32, so that a score does not depend on the device.
    """

    mode: Mode = "strided"
    boundaries: Boundaries = "stream"
    context: int | None = None
    stride: int = 64
    batch: int = 16
    loops: int | None = None
    policy: Policy = Frozen()
    ngram: Ngram | None = None
    kernels: Kernels = dataclasses.field(default=Kernels(), metadata=ADDED)
    precision: Precision = dataclasses.field(default="auto", metadata=ADDED)

    def reach(self, trained: int) -> int:
        """The tokens of a window, or those that attention looks back over.

        ``trained`` is the context of the model. Where the spec names none, a window holds as
        many, and attention looks back over seven eighths: every layer adds a window to what a
        token depends on, and the best of several was this one on the training text of each of
        three models, of 1.3M to 2.1M weights.
        """
        if self.context is not None:
            return self.context
        return trained if self.mode == "strided" else max(1, trained * 7 // 8)

    def check_positions(self, model: ModelSpec) -> None:
        """See that a model with learned positions has one for each that is read.

        Raises:
            SpecError: if it has not.
        """
        count = model.positions
        if count is None:
            return
        if self.mode == "rolling":
            raise SpecError(
                f"a rolling pass goes on beyond the {count} positions that the model has learned; "
                "read overlapping windows: --mode strided"
            )
        if self.reach(model.context) > count:
            raise SpecError(
                f"windows of {self.reach(model.context)} tokens go beyond the {count} positions "
                f"that the model has learned; write --context {count} or less"
            )

    def __post_init__(self) -> None:
        if self.stride < 1 or self.batch < 1:
            raise SpecError("stride and batch must be at least 1")
        if self.context is not None and self.context < 1:
            raise SpecError("context must be at least 1")
        if self.mode == "strided" and self.context is not None and self.stride > self.context:
            raise SpecError(f"stride {self.stride} is longer than the context {self.context}")
        if self.loops is not None and self.loops < 1:
            raise SpecError("loops must be at least 1")
