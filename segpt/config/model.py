"""What a model is, as data. No torch here: the packer and the leaderboard read these too.

A model is a list of ``layers``, which own matrices, and a list of ``visits``, which is the order
in which they run. Looping is visiting a layer twice. Optional features are parts in slots; an
absent feature is an empty tuple, never a flag.
"""

import dataclasses
import itertools
from collections import Counter
from typing import Literal

from segpt.errors import SpecError

from .base import ADDED, spec
from .head import Head
from .layer import Attention, Layer
from .parts import (
    Bigram,
    EmbedPart,
    HeadGate,
    LoopBlend,
    Position,
    Skip,
    Smear,
    Token,
    ValueEmbedding,
    ValueResidual,
)
from .role import Entry, table, within
from .route import MOST_VISITS, Loop, Visit, longest_loop
from .window import Growth, narrower


@spec
class ModelSpec:
    """The full form of a model: what a checkpoint and an artifact store.

    ``start`` is the id of the token that opens a document and belongs to it: 256 for bytes, 1 for
    BPE of our own. With ``documents`` attention sees no further back than that token; what a fast
    weight has learned goes on. ``value_tables`` is how many tables of values
    the value embeddings of layers share.

    The ``norm`` of the stream divides by the root mean square (``rms``), or takes off the mean
    first (``layer``, arXiv 1607.06450); heads of queries, keys and values are always divided by
    theirs. ``norm_eps`` is added to the mean square; null is the smallest step of float32 at 1,
    2^-23 or about 1.19e-7.
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
    norm: Literal["rms", "layer"] = dataclasses.field(default="rms", metadata=ADDED)
    norm_eps: float | None = dataclasses.field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "context"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be positive, got {getattr(self, name)}")
        if self.norm_eps is not None and not 0 < self.norm_eps < 1:
            raise SpecError(f"norm_eps is a small number above zero or null, got {self.norm_eps}")
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
            if isinstance(part, Position) and part.count < self.context:
                raise SpecError(
                    f"embed[{j}] has {part.count} positions for a context of {self.context}; give "
                    "it as many or lower the context"
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
        for number, used_widths in widths.items():
            if not used_widths:
                raise SpecError(f"no layer uses value table {number}; lower value_tables")
            if len(used_widths) > 1:
                raise SpecError(
                    f"layers that share value table {number} must have values of one width, "
                    f"got {sorted(used_widths)}"
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
        entries = [table("table", self.vocab, self.width)]
        for j, part in enumerate(self.embed):
            entries += within(f"embed.{j}", part.weights(self.width))
        return tuple(entries)

    def value_table_weights(self) -> tuple[tuple[Entry, int], ...]:
        """Each table of values, and how many lookups of it one forward pass mixes in."""
        uses = Counter(visit.layer for visit in self.visits)
        tables = []
        for number in range(self.value_tables):
            lookups = [(uses[i], size) for i, used, size in self._value_lookups() if used == number]
            rows = table(f"value_tables.{number}", self.vocab, lookups[0][1])
            tables.append((rows, sum(count for count, _ in lookups)))
        return tuple(tables)

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
        sizes = []
        for visit in self.visits:
            mixer = self.layers[visit.layer].mixer
            window = narrower(visit.window, None if mixer is None else mixer.window)
            sizes.append(window if self.growth is None else self.growth.at(window, progress))
        return tuple(sizes)

    @property
    def positions(self) -> int | None:
        """How many positions have a learned row; None if there are no such rows."""
        counts = [part.count for part in self.embed if isinstance(part, Position)]
        return min(counts, default=None)

    @property
    def loop(self) -> Loop | None:
        """The longest stretch in which the same layers run again and again; None if none do.

        Of equally long ones it is that with the shortest pass, then the first.
        """
        return longest_loop(tuple(visit.layer for visit in self.visits))

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


def joined_visits(spec: ModelSpec, progress: float) -> tuple[ModelSpec, dict[int, int]]:
    """The model as it is at ``progress``, with the visits alone that have joined by then.

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
