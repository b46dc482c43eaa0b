"""What fills the slots of a model: small parts, applied in order.

An absent feature is an empty slot, never a flag. A part says what weights it brings; its module,
of the same name, is in ``segpt.model.parts``.
"""

from typing import TYPE_CHECKING, Literal

from segpt.errors import SpecError

from .base import spec
from .role import Entry, matrix, vector

if TYPE_CHECKING:
    from .model import Attention


class Weightless:
    """A part that learns nothing. Others say what weights they bring, for one layout of all."""

    __slots__ = ()

    def weights(self, width: int, mixer: "Attention | None" = None) -> tuple[Entry, ...]:
        """The weights of the part in a stream of ``width`` channels."""
        return ()


# Parts of the ``query_key`` slot: (q, k, stream) -> (q, k).
@spec
class Norm(Weightless):
    """RMS-normalise each head of queries and keys."""


@spec
class Rope(Weightless):
    """Rotate the first ``dims`` channels of each head (Su et al. 2021, arXiv 2104.09864).

    Channels i and i + dims/2 form a pair. ``turn`` is the sign convention: ``"left"`` maps
    (a, b) to (a cos - b sin, a sin + b cos) as in LLaMA, ``"right"`` to
    (a cos + b sin, b cos - a sin) as in the nanoGPT speed runs. A converter must carry it.
    """

    dims: int
    base: float = 10_000.0
    turn: Literal["left", "right"] = "right"

    def __post_init__(self) -> None:
        if self.dims < 2 or self.dims % 2:
            raise SpecError(f"rope rotates pairs of channels, so dims is even; got {self.dims}")
        if self.base <= 0:
            raise SpecError(f"rope needs a positive base, got {self.base}")


@spec
class Gain:
    """Scale queries by a learned gain per head."""

    init: float = 1.0

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """One gain per head."""
        return (vector("gain", mixer.heads, 1),)


# Parts of the ``value`` slot: (v, x, stream) -> v.
@spec
class ValueResidual:
    """Blend in the values of the first visit with this part (Zhou et al., arXiv 2410.17897)."""

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """How much of each."""
        return (vector("mix", 2),)


# Parts of the ``output`` slot: (y, v, x, stream) -> y.
@spec
class HeadGate:
    """Gate each head by twice the sigmoid of a map of the first ``inputs`` channels."""

    inputs: int = 12

    def __post_init__(self) -> None:
        if self.inputs < 1:
            raise SpecError(f"a head gate reads at least one channel, got {self.inputs}")

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """From channels to heads."""
        return (matrix("gate", mixer.heads, self.inputs),)


@spec
class ExcludeSelf(Weightless):
    """Remove from each head the component along the value of its own position."""


# Parts of the ``join`` slot: (x, stream) -> x. A layer's parts are shared by its visits.
@spec
class MixInput:
    """Blend the embedding back in: ``a * x + b * x0``, per channel."""

    def weights(self, width: int) -> tuple[Entry, ...]:
        """How much of each."""
        return (vector("mix", 2, width),)


@spec
class Skip:
    """Receive the output of an earlier visit: ``lerp(w * skip, x, sigmoid(g))``, per channel."""

    source: int

    def weights(self, width: int) -> tuple[Entry, ...]:
        """What scales the skip, and the gate between both."""
        return vector("scale", width), vector("gate", width)


# Parts of the ``embed`` slot: (x, stream) -> x.
@spec
class Token(Weightless):
    """Look up the token's row of the table."""
