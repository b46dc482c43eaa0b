"""What a model is, as data. No torch here: the packer and the leaderboard read these too.

A model is a list of ``layers``, which own matrices, and a list of ``visits``, which is the order
in which they run. Looping is visiting a layer twice. Optional features are parts in slots; an
absent feature is an empty tuple, never a flag.
"""

import dataclasses
import functools
import itertools
import math
from collections import Counter
from typing import Literal, NamedTuple

from segpt.errors import SpecError

from .base import ADDED, spec
from .parts import (
    Algebraic,
    Asymmetric,
    Bigram,
    EmbedPart,
    HeadGate,
    JoinPart,
    LoopBlend,
    MixInput,
    OutputPart,
    QueryKeyPart,
    Rope,
    Sigmoid,
    Skip,
    Smear,
    Token,
    ValueEmbedding,
    ValuePart,
    ValueResidual,
)
from .role import Entry, Role, matrix, table, vector, within
from .route import MOST_VISITS

Activation = Literal["relu2", "leaky_relu2", "silu", "swiglu"]


def narrower(first: int | None, second: int | None) -> int | None:
    """The narrower of two windows; None is no limit."""
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise SpecError(f"a window holds at least the own position, got {window}")


@spec
class Attention:
    """Causal grouped-query attention; ``scale`` multiplies its logits, null being 1/sqrt(head_dim).

    With a ``window`` a position sees so many positions at most, its own and those just before it
    (Beltagy et al. 2020, arXiv 2004.05150).
    """

    heads: int
    kv_heads: int
    head_dim: int
    query_key: tuple[QueryKeyPart, ...] = ()
    value: tuple[ValuePart, ...] = ()
    output: tuple[OutputPart, ...] = ()
    window: int | None = dataclasses.field(default=None, metadata=ADDED)
    scale: float | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        _check_window(self.window)
        if self.scale is not None and self.scale <= 0:
            raise SpecError(f"the scale of attention is positive or null, got {self.scale}")
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
        found = (vector("keep", 2), vector("route", 2, 2))
        return found if self.merge == "mean" else (*found, vector("share", 1))


@spec
class Layer:
    """Unique parameters: a mixer and a feed, each in a residual branch with a gain per channel.

    ``parallel`` wiring gives both branches the same input (GPT-J, PaLM). ``norms`` says which
    branches normalise their input, and ``norm_scale`` multiplies what is normalised
    (arXiv 2502.05795). The ``gain`` scales the output of a branch or, as in a norm with weights,
    its input.
    """

    mixer: Attention | None
    feed: Dense | None
    wiring: Literal["serial", "parallel"] | Lanes = "serial"
    norm_scale: float = 1.0
    join: tuple[MixInput, ...] = ()
    gain: Literal["output", "input", "none"] = dataclasses.field(default="output", metadata=ADDED)
    norms: Literal["both", "feed"] = dataclasses.field(default="both", metadata=ADDED)

    def __post_init__(self) -> None:
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
        """Those of its join parts, of its lanes and of its branches, with their gains."""
        found: list[Entry] = []
        for j, part in enumerate(self.join):
            found += within(f"join.{j}", part.weights(width))
        if self.lanes is not None:
            found += within("lanes", self.lanes.weights())
        gain = () if self.gain == "none" else (vector("gain", width),)
        for name, body in (("mixer", self.mixer), ("feed", self.feed)):
            if body is not None:
                found += within(name, (*gain, *within("body", body.weights(width))))
        return tuple(found)


@spec
class Visit:
    """One step of the forward pass: which layer runs, and how the stream enters it.

    ``since`` is the fraction of training at which the visit joins the model. ``norm_scale``
    multiplies that of the layer, and a ``window`` narrows that of its attention.
    """

    layer: int
    join: tuple[JoinPart, ...] = ()
    since: float = 0.0
    norm_scale: float = dataclasses.field(default=1.0, metadata=ADDED)
    window: int | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        _check_window(self.window)


@spec
class Growth:
    """Windows that widen over training, as in the nanoGPT speed runs.

    At a fraction p of training the widest is ``full`` * f(p), rounded up to a ``multiple``. f(p) is
    p (``linear``) or 4p^3 - 6p^2 + 3p (``cubic``). Windows as wide as it is at the end are cut to
    that, and so is attention without a window; narrower ones keep their share of it, rounded down.
    None is narrower than one multiple, unless it is so by itself. After training all are as the
    layers and visits say.
    """

    full: int
    shape: Literal["linear", "cubic"] = "linear"
    multiple: int = 128

    def __post_init__(self) -> None:
        if min(self.full, self.multiple) < 1:
            raise SpecError(
                f"windows grow to a positive size in positive multiples, got {self.full} and "
                f"{self.multiple}"
            )

    def at(self, window: int | None, progress: float) -> int | None:
        """How wide a window is at this fraction of training; None is no limit."""
        if progress >= 1:
            return window
        widest, end = self._widest(progress), self._widest(1.0)
        if window is None:
            return widest
        if window >= end:
            return min(window, widest)
        share = window * widest // end // self.multiple * self.multiple
        return min(window, max(self.multiple, share))

    @property
    def widths(self) -> int:
        """How many sizes the widest window has over training, the last one included."""
        return 1 + self._widest(1.0) // self.multiple

    def _widest(self, progress: float) -> int:
        if self.shape == "cubic":
            progress = ((4 * progress - 6) * progress + 3) * progress
        return self.multiple * max(1, math.ceil(self.full * progress / self.multiple))


@spec
class Head:
    """Logits z = ``scale`` * W x of the final normalised stream x.

    W is the table if the head is ``tied``. If it is not, W has a row per token and as many more as
    make a ``multiple``, which are never read, and with ``zero`` it starts at zero. A ``gain`` is
    learned for each channel of x. A ``softcap`` that is a number c replaces z by c * tanh(z / c).
    """

    tied: bool = True
    softcap: float | Sigmoid | Algebraic | Asymmetric | None = 30.0
    scale: float = dataclasses.field(default=1.0, metadata=ADDED)
    gain: bool = dataclasses.field(default=False, metadata=ADDED)
    multiple: int = dataclasses.field(default=1, metadata=ADDED)
    zero: bool = dataclasses.field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        if isinstance(self.softcap, int | float) and self.softcap <= 0:
            raise SpecError(f"softcap must be positive or null, got {self.softcap}")
        if self.scale <= 0:
            raise SpecError(f"the scale of logits is positive, got {self.scale}")
        if self.multiple < 1:
            raise SpecError(f"the rows of a head are a multiple of 1 or more, got {self.multiple}")
        if self.tied and (self.zero or self.multiple > 1):
            raise SpecError("a tied head has no matrix of its own; set head.tied to false")

    def rows(self, vocab: int) -> int:
        """How many rows the matrix of an untied head has."""
        return -(-vocab // self.multiple) * self.multiple

    def weights(self, vocab: int, width: int) -> tuple[Entry, ...]:
        """The gain, the matrix and what the cap learns, as far as there are any."""
        found = [vector("gain", width)] if self.gain else []
        if not self.tied:
            found.append(Entry("matrix", Role.HEAD, (self.rows(vocab), width)))
        if isinstance(self.softcap, Sigmoid | Algebraic | Asymmetric):
            found += within("cap", self.softcap.weights(width))
        return tuple(found)


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
    """The full form of a model: what a checkpoint and an artifact store.

    ``start`` is the id of the token that opens a document and belongs to it: 256 for bytes, 1 for
    BPE of our own. With ``documents`` attention sees no further back than that token; what a fast
    weight has learned goes on. ``value_tables`` is how many tables of values
    the value embeddings of layers share.
    """

    vocab: int
    width: int
    context: int
    embed: tuple[EmbedPart, ...]
    layers: tuple[Layer, ...]
    visits: tuple[Visit, ...]
    head: Head = Head()
    start: int | None = dataclasses.field(default=None, metadata=ADDED)
    documents: bool = dataclasses.field(default=False, metadata=ADDED)
    value_tables: int = dataclasses.field(default=0, metadata=ADDED)
    growth: Growth | None = dataclasses.field(default=None, metadata=ADDED)

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
                if isinstance(part, LoopBlend) and not self._blends(visit.layer):
                    raise SpecError(
                        f"visits[{i}] has a loop_blend, but no value residual to change in layer "
                        f"{visit.layer}"
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
        self._check_embed()
        self._check_value_tables()
        self._check_lanes()

    def _check_embed(self) -> None:
        tokens = [j for j, part in enumerate(self.embed) if isinstance(part, Token)]
        if tokens != [0]:
            raise SpecError("embed begins with token, and has it once")
        for j, part in enumerate(self.embed):
            if isinstance(part, Smear | Bigram) and self.start is None:
                raise SpecError(
                    f"embed[{j}] looks at the token before, but not into another document; set "
                    "start to the id that opens a document"
                )
            if isinstance(part, Smear) and part.inputs > self.width:
                raise SpecError(
                    f"the gate of embed[{j}] reads {part.inputs} of {self.width} channels"
                )
        if self.start is not None and not 0 <= self.start < self.vocab:
            raise SpecError(f"start is a token id below {self.vocab}, got {self.start}")
        if self.documents and self.start is None:
            raise SpecError(
                "documents cannot be told apart; set start to the id that opens a document"
            )

    def _check_value_tables(self) -> None:
        if self.value_tables < 0:
            raise SpecError(f"value_tables is not negative, got {self.value_tables}")
        widths: dict[int, set[int]] = {i: set() for i in range(self.value_tables)}
        for i, number, columns in self._value_lookups():
            if number not in widths:
                raise SpecError(
                    f"layers[{i}] embeds values from table {number} of {self.value_tables}; "
                    "set value_tables"
                )
            widths[number].add(columns)
        for number, found in widths.items():
            if not found:
                raise SpecError(f"no layer uses value table {number}; lower value_tables")
            if len(found) > 1:
                raise SpecError(
                    f"layers that share value table {number} must have values of one width, "
                    f"got {sorted(found)}"
                )

    def _value_lookups(self) -> list[tuple[int, int, int]]:
        """Layer, table and channels of each value embedding."""
        return [
            (i, part.table, layer.mixer.kv_heads * layer.mixer.head_dim)
            for i, layer in enumerate(self.layers)
            if layer.mixer is not None
            for part in layer.mixer.value
            if isinstance(part, ValueEmbedding)
        ]

    def embed_weights(self) -> tuple[Entry, ...]:
        """What tokens start as: the table, then the weights of the parts that follow it."""
        found = [table("table", self.vocab, self.width)]
        for j, part in enumerate(self.embed):
            found += within(f"embed.{j}", part.weights(self.width))
        return tuple(found)

    def value_table_weights(self) -> tuple[tuple[Entry, int], ...]:
        """Each table of values, and how many lookups of it one forward pass mixes in."""
        uses = Counter(visit.layer for visit in self.visits)
        found = []
        for number in range(self.value_tables):
            here = [(uses[i], size) for i, used, size in self._value_lookups() if used == number]
            rows = table(f"value_tables.{number}", self.vocab, here[0][1])
            found.append((rows, sum(count for count, _ in here)))
        return tuple(found)

    def _check_lanes(self) -> None:
        wirings = [self.layers[visit.layer].lanes for visit in self.visits]
        last = {
            visit.layer
            for visit, after in zip(self.visits, [*wirings[1:], None], strict=True)
            if after is None
        }
        for i, layer in enumerate(self.layers):
            if layer.lanes is not None and layer.lanes.merge == "learned" and i not in last:
                raise SpecError(
                    f"layers[{i}].wiring: lanes go on after every visit of this layer, so it has "
                    "nothing to merge; give merge: learned to the layer in which they end"
                )

    def _check_mixers(self, mixers: list[Attention]) -> None:
        residual = [m for m in mixers if any(isinstance(p, ValueResidual) for p in m.value)]
        if len({(m.kv_heads, m.head_dim) for m in residual}) > 1:
            raise SpecError("layers with a value residual must share kv_heads and head_dim")
        for part in (part for mixer in mixers for part in mixer.output):
            if isinstance(part, HeadGate) and (part.inputs or 0) > self.width:
                raise SpecError(f"a head gate reads {part.inputs} of {self.width} channels")

    def _blends(self, layer: int) -> bool:
        mixer = self.layers[layer].mixer
        return mixer is not None and any(isinstance(p, ValueResidual) for p in mixer.value)

    def active(self, progress: float) -> tuple[int, ...]:
        """The visits that run at this fraction of training."""
        return tuple(i for i, v in enumerate(self.visits) if v.since <= progress)

    def windows(self, progress: float = 1.0) -> tuple[int | None, ...]:
        """How many positions the attention of each visit sees at most; None is all of them."""
        found = []
        for visit in self.visits:
            mixer = self.layers[visit.layer].mixer
            window = narrower(visit.window, None if mixer is None else mixer.window)
            found.append(window if self.growth is None else self.growth.at(window, progress))
        return tuple(found)

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

    Windows that grow stay as wide as they are by then.

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
        window = visit.window if spec.growth is None else spec.windows(progress)[old]
        visits.append(dataclasses.replace(visit, join=join, since=0.0, window=window))
    return dataclasses.replace(spec, visits=tuple(visits), growth=None), kept
