"""What fills the slots of a model: small parts, applied in order.

An absent feature is an empty slot, never a flag. A part says what weights it brings; its module,
of the same name, is in ``segpt.model.parts``, or in ``segpt.model.embed`` for the embedding.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

from segpt.errors import SpecError

from .base import ADDED, spec
from .role import Entry, matrix, table, vector

if TYPE_CHECKING:
    from .layer import Attention


class Weightless:
    """A part that learns nothing. Others say what weights they bring, for one layout of all."""

    __slots__ = ()

    def weights(self, width: int, mixer: "Attention | None" = None) -> tuple[Entry, ...]:
        """The weights of the part in a stream of ``width`` channels."""
        return ()


# Parts of the ``query_key`` slot: (q, k, stream) -> (q, k).
@spec
class Norm:
    """RMS-normalise each head of queries and keys.

    With a ``gain`` the normalised channels are multiplied by learned numbers, one per channel of a
    head: one set for all query heads and one for all key heads, as in Qwen3.
    """

    gain: bool = dataclasses.field(default=False, metadata=ADDED)

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """A gain per channel of a query head and of a key head, if there are any."""
        if not self.gain:
            return ()
        return vector("query_gain", mixer.head_dim), vector("key_gain", mixer.head_dim)


@spec
class Llama3Scaling:
    """Slow down the slow pairs of a rope, as Llama 3.1 does to read beyond its ``context``.

    A pair that turns more than ``high`` times in ``context`` positions keeps its rate. One that
    turns fewer than ``low`` times turns ``factor`` times slower. Between them the rate is a blend
    of both, by how many turns it is short of ``high``.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise SpecError(f"rope scaling slows down by a factor of 1 or more, got {self.factor}")
        if not 0 < self.low < self.high:
            raise SpecError(
                "rope scaling blends between two numbers of turns, low below high; got "
                f"{self.low} and {self.high}"
            )
        if self.context < 1:
            raise SpecError(f"the context of rope scaling is positive, got {self.context}")


@spec
class Rope(Weightless):
    """Rotate the first ``dims`` channels of each head (Su et al. 2021, arXiv 2104.09864).

    Channels i and i + dims/2 form a pair. ``turn`` is the sign convention: ``"left"`` maps
    (a, b) to (a cos - b sin, a sin + b cos) as in LLaMA, ``"right"`` to
    (a cos + b sin, b cos - a sin) as in the nanoGPT speed runs. A converter must carry it.

    ``pairs: neighbours`` makes pairs of channels 2i and 2i + 1 instead. Pair i turns by
    base^(-2i/dims) per position. With ``rates: half`` only the first half of the pairs turns, the
    i-th of n by base^(-i/(n - 1)), and the others stay as they are. ``scaling`` slows some down.
    """

    dims: int
    base: float = 10_000.0
    turn: Literal["left", "right"] = "right"
    rates: Literal["all", "half"] = dataclasses.field(default="all", metadata=ADDED)
    pairs: Literal["halves", "neighbours"] = dataclasses.field(default="halves", metadata=ADDED)
    scaling: Llama3Scaling | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.dims < 2 or self.dims % 2:
            raise SpecError(f"rope rotates pairs of channels, so dims is even; got {self.dims}")
        if self.rates == "half" and self.dims % 4:
            raise SpecError(
                f"rope that turns half of its pairs needs an even number of pairs, so dims is a "
                f"multiple of 4; got {self.dims}"
            )
        if self.base <= 0:
            raise SpecError(f"rope needs a positive base, got {self.base}")
        if self.scaling is not None and self.rates == "half":
            raise SpecError("rope scaling slows pairs that all turn; set rates to all")


@spec
class Gain:
    """Scale queries by a learned gain per head, or by one for all heads of the layer."""

    init: float = 1.0
    per: Literal["head", "layer"] = dataclasses.field(default="head", metadata=ADDED)

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """One gain per head, or one."""
        return (vector("gain", mixer.heads if self.per == "head" else 1, 1),)


# Parts of the ``value`` slot: (v, x, stream) -> v.
@spec
class ValueResidual:
    """Blend in the values of the first visit with this part (Zhou et al., arXiv 2410.17897).

    ``normalised`` makes (a v + b first) / sqrt(a^2 + b^2), which starts as v; if it is ``scaled``,
    one more learned number, 1 at the start, multiplies that. ``lerp`` makes
    (1 - m) v + m first, where m starts at ``init``. The numbers are learned per layer. ``first``
    is what the first visit hands on: its values as they are, or what it has made of them.
    """

    mode: Literal["normalised", "lerp"] = dataclasses.field(default="normalised", metadata=ADDED)
    scaled: bool = dataclasses.field(default=False, metadata=ADDED)
    init: float = dataclasses.field(default=0.5, metadata=ADDED)
    first: Literal["raw", "mixed"] = dataclasses.field(default="raw", metadata=ADDED)

    def __post_init__(self) -> None:
        if self.scaled and self.mode == "lerp":
            raise SpecError("a value residual that is a lerp has no scale; leave scaled out")

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """How much of each, and the scale if there is one."""
        mix = vector("mix", 2 if self.mode == "normalised" else 1)
        return (mix, vector("scale", 1)) if self.scaled else (mix,)


@spec
class ValueNorm(Weightless):
    """RMS-normalise each head of the values."""


@spec
class ValueEmbedding:
    """Blend in what a table of values holds for the token: ``a * v + b * table[token]``.

    ``table`` is one of the model's ``value_tables``, which layers may share (Zhou et al.,
    arXiv 2410.17897, and the nanoGPT speed runs). ``keep`` and ``blend`` are what a and b start
    at, for all heads or ``per_head``.
    """

    table: int
    keep: float = 1.0
    blend: float = 0.0
    per_head: bool = False

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """How much of each."""
        return (vector("mix", 2, mixer.kv_heads, 1) if self.per_head else vector("mix", 2),)


# Parts of the ``output`` slot: (y, v, x, stream) -> y.
@spec
class HeadGate:
    """Gate each head by ``scale`` * sigmoid(``sharpness`` * W n) (arXiv 2505.06708).

    n are the first ``inputs`` channels of what attention reads, or all of them if that is null. W
    gives one gate per head, or one per ``element`` of it. It starts at random with the deviation
    ``std``, null being 1/sqrt(inputs); at 0, with a scale of 2, every gate starts at 1.
    """

    inputs: int | None = 12
    per: Literal["head", "element"] = dataclasses.field(default="head", metadata=ADDED)
    scale: float = dataclasses.field(default=2.0, metadata=ADDED)
    sharpness: float = dataclasses.field(default=1.0, metadata=ADDED)
    std: float | None = dataclasses.field(default=0.0, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.inputs is not None and self.inputs < 1:
            raise SpecError(f"a head gate reads at least one channel, got {self.inputs}")
        if min(self.scale, self.sharpness) <= 0:
            raise SpecError(
                f"scale and sharpness of a head gate are positive, got {self.scale} and "
                f"{self.sharpness}"
            )
        if self.std is not None and self.std < 0:
            raise SpecError(f"the std of a head gate is not negative, got {self.std}")

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """From channels to heads, or to all of their elements."""
        rows = mixer.heads * (mixer.head_dim if self.per == "element" else 1)
        return (matrix("gate", rows, width if self.inputs is None else self.inputs),)


@spec
class ExcludeSelf:
    """Remove from each head the component along the value of its own position.

    If ``gated``, it is removed times the tanh of a learned number per head, which starts at 0.
    """

    gated: bool = dataclasses.field(default=False, metadata=ADDED)

    def weights(self, width: int, mixer: "Attention") -> tuple[Entry, ...]:
        """One number per head, if it is gated."""
        return (vector("alpha", mixer.heads, 1),) if self.gated else ()


# Parts of the ``join`` slot: (x, stream) -> x. A layer's parts are shared by its visits.
@spec
class MixInput:
    """Blend the embedding back in: ``a * x + b * x0``, per channel or as a whole."""

    per: Literal["channel", "scalar"] = dataclasses.field(default="channel", metadata=ADDED)

    def weights(self, width: int) -> tuple[Entry, ...]:
        """How much of each."""
        return (vector("mix", 2, *shape_per(self.per, width)),)


@spec
class Skip:
    """Receive the output of an earlier visit, per channel or as a whole.

    ``lerp`` makes ``lerp(w * skip, x, sigmoid(g))`` and ``add`` makes ``x + w * skip``.
    """

    source: int
    form: Literal["lerp", "add"] = dataclasses.field(default="lerp", metadata=ADDED)
    per: Literal["channel", "scalar"] = dataclasses.field(default="channel", metadata=ADDED)

    def weights(self, width: int) -> tuple[Entry, ...]:
        """What scales the skip, and the gate between both if there is one."""
        shape = shape_per(self.per, width)
        scale = vector("scale", *shape)
        return (scale, vector("gate", *shape)) if self.form == "lerp" else (scale,)


@spec
class LoopEmbedding:
    """Add a learned vector, so that a layer can tell its visits apart (arXiv 1807.03819)."""

    def weights(self, width: int) -> tuple[Entry, ...]:
        """What is added."""
        return (vector("shift", width),)


@spec
class LoopGain:
    """Scale what the branches of this visit add to the stream, per channel."""

    def weights(self, width: int) -> tuple[Entry, ...]:
        """One gain per channel."""
        return (vector("gain", width),)


@spec
class LoopBlend:
    """Blend in more or less of the first values at this visit: see :class:`ValueResidual`.

    What is learned is added to the layer's own b or m.
    """

    def weights(self, width: int) -> tuple[Entry, ...]:
        """How much more."""
        return (vector("shift", 1),)


def shape_per(what: Literal["channel", "scalar"], width: int) -> tuple[int, ...]:
    """The shape of what is learned per channel, or once for all of them."""
    return (width,) if what == "channel" else (1,)


# Parts of the ``embed`` slot: (x, stream) -> x.
@spec
class Token(Weightless):
    """Look up the token's row of the table, and normalise it unless ``norm`` is off.

    What comes out is multiplied by ``scale``.
    """

    norm: bool = dataclasses.field(default=True, metadata=ADDED)
    scale: float = dataclasses.field(default=1.0, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise SpecError(f"the scale of tokens is positive, got {self.scale}")


@spec
class Position:
    """Add a learned row for the position of the token in what is read; there are ``count`` rows.

    Text that is longer than that is refused, as nothing was learned for its later positions.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise SpecError(f"positions have a row at least, got {self.count}")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """A row per position."""
        return (table("rows", self.count, width),)


@spec
class Smear:
    """Let the token before into a token, unless this one opens a document.

    With a gate by ``token``, x_t becomes ``x_t + a * sigmoid(w . x_t[:inputs]) * x_{t-1}``, with
    a and w zero at the start. With one by ``channel`` it is ``(1 - g) * x_t + g * x_{t-1}``, with
    g zero at the start.
    """

    gate: Literal["token", "channel"] = "token"
    inputs: int = 12

    def __post_init__(self) -> None:
        if self.inputs < 1:
            raise SpecError(f"the gate of a smear reads at least one channel, got {self.inputs}")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """The gate, and the scale of one by token."""
        if self.gate == "channel":
            return (vector("gate", width),)
        return vector("gate", self.inputs), vector("scale", 1)


@spec
class Bigram:
    """Add what a table holds for a token and the one before it, by a hash of both.

    A token that opens a document, or that nothing was read before, has a bucket of its own. The
    rows have ``width`` channels and a projection to the stream, which starts at zero; rows as
    wide as the stream have none and start at zero themselves.
    """

    buckets: int
    width: int
    scale: float = 0.05

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.width < 1:
            raise SpecError(
                "a bigram needs two buckets and one channel at least, got "
                f"{self.buckets} and {self.width}"
            )

    def weights(self, width: int) -> tuple[Entry, ...]:
        """The rows, their projection if there is one, and their scale."""
        scale = vector("scale", 1)
        rows = table("rows", self.buckets, self.width)
        if self.width == width:
            return rows, scale
        return rows, matrix("projection", width, self.width), scale


@spec
class Normalise(Weightless):
    """Normalise the stream."""


# What each slot takes. Those of ``join`` are a layer's if its visits share them, else a visit's.
QueryKeyPart = Norm | Rope | Gain
ValuePart = ValueResidual | ValueNorm | ValueEmbedding
OutputPart = HeadGate | ExcludeSelf
JoinPart = MixInput | Skip | LoopEmbedding | LoopGain | LoopBlend
EmbedPart = Token | Position | Smear | Bigram | Normalise
