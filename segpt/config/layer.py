"""What a layer is: a mixer and a feed, the wiring between them and their options."""

import dataclasses
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, spec
from .parts import MixInput, OutputPart, QueryKeyPart, Rope, ValuePart
from .role import Entry, matrix, vector, within
from .window import check_window

Activation = Literal["relu2", "leaky_relu2", "silu", "swiglu", "gelu", "gelu_tanh", "geglu_tanh"]
_GATED = ("swiglu", "geglu_tanh")


def is_gated(act: Activation) -> bool:
    """Whether an activation is of two halves, one of which multiplies what is made of the other."""
    return act in _GATED


@spec
class Attention:
    """Causal grouped-query attention; ``scale`` multiplies its logits, null being 1/sqrt(head_dim).

    With a ``window`` a position sees so many positions at most, its own and those just before it
    (Beltagy et al. 2020, arXiv 2004.05150). A ``bias`` is added to queries, keys and values, or to
    all that its four matrices make.
    """

    heads: int
    kv_heads: int
    head_dim: int
    query_key: tuple[QueryKeyPart, ...] = ()
    value: tuple[ValuePart, ...] = ()
    output: tuple[OutputPart, ...] = ()
    window: int | None = dataclasses.field(default=None, metadata=ADDED)
    scale: float | None = dataclasses.field(default=None, metadata=ADDED)
    bias: Literal["none", "qkv", "all"] = dataclasses.field(default="none", metadata=ADDED)

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.scale is not None and self.scale <= 0:
            raise SpecError(f"the scale of attention is positive or null, got {self.scale}")
        if min(self.heads, self.kv_heads, self.head_dim) < 1 or self.heads % self.kv_heads:
            raise SpecError(f"{self.heads} heads do not divide among {self.kv_heads} kv_heads")
        for part in self.query_key:
            if isinstance(part, Rope) and part.dims > self.head_dim:
                raise SpecError(f"rope rotates {part.dims} of {self.head_dim} channels")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """Its matrices and their biases, then those of the parts in its slots."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        entries = [
            matrix("query", queries, width),
            matrix("key", keys, width),
            matrix("value", keys, width),
            matrix("out", width, queries),
        ]
        if self.bias != "none":
            sizes = {"query": queries, "key": keys, "value": keys}
            sizes |= {"out": width} if self.bias == "all" else {}
            entries += [vector(f"{name}_bias", size) for name, size in sizes.items()]
        for slot in ("query_key", "value", "output"):
            for j, part in enumerate(getattr(self, slot)):
                entries += within(f"{slot}_parts.{j}", part.weights(width, self))
        return tuple(entries)


@spec
class FastWeight:
    """Let a feed's second matrix learn while it reads (In-Place TTT, arXiv 2604.06169).

    After every ``chunk`` tokens, counted from where the pass or its cache begins, the matrix W
    becomes W + ``rate`` V^T Z. Z are the chunk's inputs to W. V = P conv(source) are what W should
    have answered: a learned convolution by channel over ``taps`` tokens of the same chunk, half of
    them ahead of the token, and a learned ``projection`` P unless there is none. The source is the
    normalised embeddings (``table``) or the input of the feed. ``clip`` bounds the Frobenius norm
    of each update. Every visit has its own change; convolution and projection are the layer's.

    A change grows with all that is read, so one that training has seen on rows of the context
    helps for a few times as many tokens and harms beyond them. A good rate is in proportion
    to 1 / |z|^2: with squared activations it is nearer to 0.001 than to the paper's 0.3.
    """

    chunk: int = 64
    rate: float = 0.3
    taps: int = 5
    source: Literal["table", "input"] = "table"
    projection: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise SpecError(f"a fast weight learns after at least one token, not {self.chunk}")
        if self.rate < 0:
            raise SpecError(f"the rate of a fast weight is not negative, got {self.rate}")
        if self.taps < 1 or self.taps % 2 == 0:
            raise SpecError(f"the taps lie about a token, so they are odd; got {self.taps}")
        if self.clip is not None and self.clip <= 0:
            raise SpecError(f"clip must be positive or null, got {self.clip}")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """The convolution, and the projection if there is one."""
        taps = vector("taps", self.taps, width)
        return (taps, matrix("projection", width, width)) if self.projection else (taps,)


@spec
class Dense:
    """A two-matrix feed-forward body; the second matrix may be fast.

    With a ``bias`` a learned number is added to each channel that either matrix makes.
    """

    hidden: int
    act: Activation = "relu2"
    fast: FastWeight | None = dataclasses.field(default=None, metadata=ADDED)
    bias: bool = dataclasses.field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise SpecError(f"hidden must be positive, got {self.hidden}")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """Both matrices, their biases, and what makes the second one fast."""
        rows = self.hidden * (2 if is_gated(self.act) else 1)
        bias = (vector("up_bias", rows), vector("down_bias", width)) if self.bias else ()
        fast = () if self.fast is None else within("fast", self.fast.weights(width))
        return (matrix("up", rows, width), matrix("down", width, self.hidden), *bias, *fast)


@spec
class Lanes:
    """Wiring with two residual lanes: the mixer reads the first one, the feed the second.

    Lanes start equal in the first such layer of a route. Each adds what both branches make, times
    a learned weight that starts at 1, to itself times a learned ``keep``; with ``order: serial``
    that happens twice, after the mixer and after the feed. Parts of a visit, such as skips, change
    the first lane only; those of a layer change what its branches read, with ``order: parallel``
    the mixer alone. Where a layer is followed by one without lanes, or by none, the stream goes on
    as their mean, or as m of the first and 1 - m of the second with a ``learned`` merge; m starts
    at 1/2.
    """

    order: Literal["parallel", "serial"] = "parallel"
    keep: float = 1.1
    merge: Literal["mean", "learned"] = "mean"

    def weights(self) -> tuple[Entry, ...]:
        """How much lanes keep and branches add, and how much of each is left."""
        entries = (vector("keep", 2), vector("route", 2, 2))
        return entries if self.merge == "mean" else (*entries, vector("share", 1))


@spec
class Layer:
    """Unique parameters: a mixer and a feed, each in a residual branch with a gain per channel.

    ``parallel`` wiring gives both branches the same input (GPT-J, PaLM). ``norms`` says which
    branches normalise their input, and ``norm_scale`` multiplies what is normalised
    (arXiv 2502.05795). The ``gain`` scales the output of a branch or, as in a norm with weights,
    its input. With a ``shift`` a learned number is added to each channel of the scaled input, as in
    a layer norm with a bias.
    """

    mixer: Attention | None
    feed: Dense | None
    wiring: Literal["serial", "parallel"] | Lanes = "serial"
    norm_scale: float = 1.0
    join: tuple[MixInput, ...] = ()
    gain: Literal["output", "input", "none"] = dataclasses.field(default="output", metadata=ADDED)
    norms: Literal["both", "feed"] = dataclasses.field(default="both", metadata=ADDED)
    shift: bool = dataclasses.field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.shift and self.gain != "input":
            raise SpecError("a shift stands beside a gain of the input; set gain to input")
        if self.lanes is not None and (self.mixer is None or self.feed is None):
            raise SpecError(
                "two lanes need a mixer and a feed to route between; give a layer that lacks one "
                "wiring: serial"
            )

    @property
    def lanes(self) -> Lanes | None:
        """The wiring, if it has two lanes."""
        return self.wiring if isinstance(self.wiring, Lanes) else None

    def weights(self, width: int) -> tuple[Entry, ...]:
        """Those of its join parts, its lanes and its branches, with their gains and shifts."""
        entries: list[Entry] = []
        for j, part in enumerate(self.join):
            entries += within(f"join.{j}", part.weights(width))
        if self.lanes is not None:
            entries += within("lanes", self.lanes.weights())
        gain = [] if self.gain == "none" else [vector("gain", width)]
        if self.shift:
            gain.append(vector("shift", width))
        for name, body in (("mixer", self.mixer), ("feed", self.feed)):
            if body is not None:
                entries += within(name, (*gain, *within("body", body.weights(width))))
        return tuple(entries)
