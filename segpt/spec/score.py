"""How text is scored, as data: windows and the test-time training policy."""

from typing import Literal

from segpt.errors import SpecError

from .base import spec


@spec
class Frozen:
    """The policy that never adapts."""


@spec
class Sgd:
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
    roles: tuple[Literal["table", "matrix", "head", "vector"], ...] = (
        "table",
        "matrix",
        "head",
        "vector",
    )

    def __post_init__(self) -> None:
        if min(self.chunk, self.epochs, self.batch) < 1:
            raise SpecError("chunk, epochs and batch must be at least 1")
        if self.rate < 0 or not 0 <= self.momentum < 1 or self.clip <= 0:
            raise SpecError("rate is not negative, momentum lies in [0, 1), clip is positive")
        if not self.roles:
            raise SpecError("roles names at least one of table, matrix, head, vector")


Policy = Frozen | Sgd


@spec
class ScoreSpec:
    """Windows of ``context`` tokens (the model's own if null) that advance by ``stride`` targets.

    Every target has at least context - stride tokens of context, except in the first window.
    ``batch`` windows run at once; it is part of the recipe, so that scores repeat exactly.
    """

    context: int | None = None
    stride: int = 64
    batch: int = 16
    policy: Policy = Frozen()

    def __post_init__(self) -> None:
        if self.stride < 1 or self.batch < 1:
            raise SpecError("stride and batch must be at least 1")
        if self.context is not None and not self.stride <= self.context:
            raise SpecError(f"stride {self.stride} is longer than the context {self.context}")
