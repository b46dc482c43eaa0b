"""What a model is, as data. No torch here: the packer and the leaderboard read these too.

A model is a list of ``layers``, which own matrices, and a list of ``visits``, which is the order
in which they run. Looping is visiting a layer twice. Optional features are parts in slots; an
absent feature is an empty tuple, never a flag.
"""

import dataclasses
import functools
import itertools
from typing import Literal, NamedTuple

from segpt.errors import SpecError

from .base import ADDED, spec
from .parts import (
    ExcludeSelf,
    Gain,
    HeadGate,
    MixInput,
    Norm,
    Rope,
    Skip,
    Token,
    ValueResidual,
)
from .role import Entry, matrix, vector, within
from .route import MOST_VISITS

Activation = Literal["relu2", "leaky_relu2", "silu", "swiglu"]


@spec
class Attention:
    """Causal grouped-query attention.

    With a ``window`` a position sees so many positions at most, its own and those just before it
    (Beltagy et al. 2020, arXiv 2004.05150).
    """

    heads: int
    kv_heads: int
    head_dim: int
    query_key: tuple[Norm | Rope | Gain, ...] = ()
    value: tuple[ValueResidual, ...] = ()
    output: tuple[HeadGate | ExcludeSelf, ...] = ()
    window: int | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise SpecError(f"a window holds at least the own position, got {self.window}")
        if min(self.heads, self.kv_heads, self.head_dim) < 1 or self.heads % self.kv_heads:
            raise SpecError(f"{self.heads} heads do not divide among {self.kv_heads} kv_heads")
        for part in self.query_key:
            if isinstance(part, Rope) and part.dims > self.head_dim:
                raise SpecError(f"rope rotates {part.dims} of {self.head_dim} channels")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """Its matrices, then those of the parts in its slots."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found = [
            matrix("query", queries, width),
            matrix("key", keys, width),
            matrix("value", keys, width),
            matrix("out", width, queries),
        ]
        for slot in ("query_key", "value", "output"):
            for j, part in enumerate(getattr(self, slot)):
                found += within(f"{slot}_parts.{j}", part.weights(width, self))
        return tuple(found)


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
    """A two-matrix feed-forward body; the second matrix may be fast."""

    hidden: int
    act: Activation = "relu2"
    fast: FastWeight | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise SpecError(f"hidden must be positive, got {self.hidden}")

    def weights(self, width: int) -> tuple[Entry, ...]:
        """Both matrices, and what makes the second one fast."""
        rows = self.hidden * (2 if self.act == "swiglu" else 1)
        fast = () if self.fast is None else within("fast", self.fast.weights(width))
        return (matrix("up", rows, width), matrix("down", width, self.hidden), *fast)


@spec
class Layer:
    """Unique parameters: a mixer and a feed, each in a residual branch with a gain per channel.

    ``parallel`` wiring gives both branches the same input (GPT-J, PaLM). ``norm_scale``
    multiplies the normalised input of both (arXiv 2502.05795).
    """

    mixer: Attention | None
    feed: Dense | None
    wiring: Literal["serial", "parallel"] = "serial"
    norm_scale: float = 1.0
    join: tuple[MixInput, ...] = ()

    def weights(self, width: int) -> tuple[Entry, ...]:
        """Those of its join parts and of its branches, each with a gain."""
        found: list[Entry] = []
        for j, part in enumerate(self.join):
            found += within(f"join.{j}", part.weights(width))
        for name, body in (("mixer", self.mixer), ("feed", self.feed)):
            if body is not None:
                found += within(name, (vector("gain", width), *within("body", body.weights(width))))
        return tuple(found)


@spec
class Visit:
    """One step of the forward pass: which layer runs, and how the stream enters it.

    ``since`` is the fraction of training at which the visit joins the model.
    """

    layer: int
    join: tuple[MixInput | Skip, ...] = ()
    since: float = 0.0


@spec
class Head:
    """Logits; ``softcap`` c replaces each logit z by c * tanh(z / c)."""

    tied: bool = True
    softcap: float | None = 30.0

    def __post_init__(self) -> None:
        if self.softcap is not None and self.softcap <= 0:
            raise SpecError(f"softcap must be positive or null, got {self.softcap}")


class Loop(NamedTuple):
    """Where a route repeats itself: ``times`` passes of ``size`` visits, from visit ``start``."""

    start: int
    size: int
    times: int

    @property
    def end(self) -> int:
        """The visit after the last one of the loop."""
        return self.start + self.size * self.times


@spec
class ModelSpec:
    """The full form of a model: what a checkpoint and an artifact store."""

    vocab: int
    width: int
    context: int
    embed: tuple[Token, ...]
    layers: tuple[Layer, ...]
    visits: tuple[Visit, ...]
    head: Head = Head()

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "context"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be positive, got {getattr(self, name)}")
        for i, visit in enumerate(self.visits):
            if not 0 <= visit.layer < len(self.layers):
                raise SpecError(f"visits[{i}] names layer {visit.layer} of {len(self.layers)}")
            if not 0 <= visit.since <= 1:
                raise SpecError(f"visits[{i}].since is a fraction of training, got {visit.since}")
            for part in visit.join:
                if isinstance(part, Skip) and not 0 <= part.source < i:
                    raise SpecError(
                        f"visits[{i}] skips from visit {part.source}, which is not earlier"
                    )
        if missing := set(range(len(self.layers))) - {v.layer for v in self.visits}:
            raise SpecError(f"layer {min(missing)} is never visited")
        if not self.active(0.0):
            raise SpecError("no visit runs from the start; give one since 0")
        for layer in self.layers:
            fast = None if layer.feed is None else layer.feed.fast
            if fast is not None and fast.chunk >= self.context:
                raise SpecError(
                    f"a fast weight that learns after {fast.chunk} tokens never does within "
                    f"a context of {self.context}; give it a smaller chunk"
                )
        self._check_mixers([layer.mixer for layer in self.layers if layer.mixer is not None])

    def _check_mixers(self, mixers: list[Attention]) -> None:
        if len({(m.kv_heads, m.head_dim) for m in mixers if m.value}) > 1:
            raise SpecError("layers with a value residual must share kv_heads and head_dim")
        for part in (part for mixer in mixers for part in mixer.output):
            if isinstance(part, HeadGate) and part.inputs > self.width:
                raise SpecError(f"a head gate reads {part.inputs} of {self.width} channels")

    def active(self, progress: float) -> tuple[int, ...]:
        """The visits that run at this fraction of training."""
        return tuple(i for i, v in enumerate(self.visits) if v.since <= progress)

    @property
    def loop(self) -> Loop | None:
        """The longest stretch in which the same layers run again and again; None if none do.

        Of equally long ones it is that with the shortest pass, then the first.
        """
        return _loop(tuple(visit.layer for visit in self.visits))

    def passes(self, loops: int, progress: float = 1.0) -> tuple[tuple[int, ...], ...]:
        """The visits of each pass when the loop runs ``loops`` times.

        Passes that have joined at ``progress`` run in their order. Fewer leave out the last of
        them; more run the last one again, with its join parts.

        Raises:
            SpecError: if the route has no loop, or ``loops`` is out of range.
        """
        loop = self.loop
        if loop is None:
            raise SpecError(
                "the route of this model never repeats layers, so it has no loop to run more or "
                "less often; leave the number of loops out, or train with a route such as "
                "--set model.route='0 (1)*3 2'"
            )
        if not 1 <= loops * loop.size <= MOST_VISITS:
            raise SpecError(
                f"a loop of {loop.size} visits cannot run {loops} times; run it once "
                f"at least and make no more than {MOST_VISITS} visits"
            )
        active = self.active(progress)
        begins = range(loop.start, loop.end, loop.size)
        joined = [
            visits
            for begin in begins
            if (visits := tuple(i for i in active if begin <= i < begin + loop.size))
        ]
        again = joined[-1:] * (loops - len(joined))
        return (*joined[:loops], *again)

    def looped(self, loops: int, progress: float = 1.0) -> tuple[int, ...]:
        """The visits that run at ``progress``, in order, when the loop runs ``loops`` times.

        Raises:
            SpecError: if the route has no loop, or ``loops`` is out of range.
        """
        passes, loop = self.passes(loops, progress), self.loop
        assert loop is not None
        active = self.active(progress)
        before = (i for i in active if i < loop.start)
        return (*before, *itertools.chain(*passes), *(i for i in active if i >= loop.end))


@functools.lru_cache(maxsize=64)
def _loop(order: tuple[int, ...]) -> Loop | None:
    found: Loop | None = None
    for size in range(1, len(order) // 2 + 1):
        same = 0
        for i in range(size, len(order)):
            same = same + 1 if order[i] == order[i - size] else 0
            times = same // size + 1
            if times > 1 and (found is None or size * times > found.size * found.times):
                found = Loop(i - same - size + 1, size, times)
    return found


def settle(spec: ModelSpec, progress: float) -> tuple[ModelSpec, dict[int, int]]:
    """The model as it is at ``progress``, with the visits that have not joined yet removed.

    Returns:
        The smaller spec, and for each old index of a kept visit its new one.
    """
    kept = {old: new for new, old in enumerate(spec.active(progress))}
    visits = []
    for old in kept:
        visit = spec.visits[old]
        join = tuple(
            dataclasses.replace(part, source=kept[part.source]) if isinstance(part, Skip) else part
            for part in visit.join
            if not isinstance(part, Skip) or part.source in kept
        )
        visits.append(dataclasses.replace(visit, join=join, since=0.0))
    return dataclasses.replace(spec, visits=tuple(visits)), kept
