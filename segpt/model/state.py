"""What travels beside the residual stream in a forward pass: four small things.

What the pass was given, what the running visit sets, what earlier visits left behind, and what
comes out beside the stream. A part reads what it needs, so that a new one changes no signature.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segpt.config.window import narrower

from .cache import LayerCache
from .overlap import Overlap

Rotations = dict[tuple[str, torch.dtype, torch.device], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PassInputs:
    """What a forward pass is given; nothing changes it, but windows may part.

    Attributes:
        tokens: (batch, time) token ids.
        positions: (time,) where they are in their text.
        overlap: the windows that share these tokens, or None if each row is a text.
        start: the token that opens a document, or None if none does.
        documents: (batch, time), by window, numbers the documents that attention keeps apart; None
            if it crosses from one to the next.
        value_tables: map tokens to values.
        rotations: cosines and sines of the angles of these positions, by what makes them: a pass
            computes each once, however many layers and loops rotate by it.
    """

    tokens: Tensor
    positions: Tensor
    overlap: Overlap | None = None
    start: int | None = None
    documents: Tensor | None = None
    value_tables: Sequence[nn.Module] = ()
    rotations: Rotations = field(default_factory=dict, compare=False, repr=False)

    @property
    def opens(self) -> Tensor:
        """Which tokens open a document, (batch, time)."""
        return self.tokens == (-1 if self.start is None else self.start)

    def rows(self, x: Tensor) -> Tensor:
        """``x`` (batch, time, ...) by window, if windows share its tokens."""
        return x if self.overlap is None else self.overlap.rows(x)

    def by_window(self) -> "PassInputs":
        """The same where each window is a row of its own."""
        if self.overlap is None:
            return self
        return dataclasses.replace(
            self,
            tokens=self.rows(self.tokens),
            positions=self.positions[self.overlap.where[0]],  # only differences matter
            overlap=None,
            rotations={},
        )


@dataclass
class VisitState:
    """What the running visit to a layer sets for its parts.

    Attributes:
        cache: what this visit saw in earlier calls, or None in a full pass.
        last: how many positions at the end anyone will read of its output, or None for all.
        window: how many positions attention sees at most, or None for all.
        norm_scale: multiplies what its branches read.
        gain: (width,) multiplies what they add, if it is not None.
        blend: how much more of the first values it blends in.
        lanes_end_here: whether the second residual lane ends with this visit.
    """

    cache: LayerCache | None = None
    last: int | None = None
    window: int | None = None
    norm_scale: float = 1.0
    gain: Tensor | None = None
    blend: Tensor | None = None
    lanes_end_here: bool = False


@dataclass
class Memory:
    """What visits left for later ones.

    Attributes:
        x0: (batch, time, width), what tokens start as.
        values: those of the first value residual that was visited.
        visits: the output of each visit so far, by its number.
        lane: the second residual lane while there is one.
    """

    x0: Tensor
    values: Tensor | None = None
    visits: dict[int, Tensor] = field(default_factory=dict)
    lane: Tensor | None = None

    def copy(self) -> "Memory":
        """As it is now, for a visit that runs again when this one has changed."""
        return dataclasses.replace(self, visits=dict(self.visits))

    def by_window(self, inputs: PassInputs) -> None:
        """Make each window a row of its own."""
        self.x0 = inputs.rows(self.x0)
        self.values = None if self.values is None else inputs.rows(self.values)
        self.lane = None if self.lane is None else inputs.rows(self.lane)
        self.visits = {place: inputs.rows(x) for place, x in self.visits.items()}


class Outputs(NamedTuple):
    """What comes out of a pass beside the stream.

    Attributes:
        losses: scalars to descend beside the loss of the tokens, by name.
        statistics: of each visit in order, by name, such as ``kurtosis`` (visits,).
    """

    losses: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]


class Hidden(NamedTuple):
    """The final normalised stream ``x`` (batch, time, width), and what came out beside it."""

    x: Tensor
    outputs: Outputs


@dataclass
class ForwardState:
    """Everything a part may read beside x."""

    inputs: PassInputs
    memory: Memory
    visit: VisitState

    def previous_token(self, x: Tensor, first: int) -> Tensor:
        """``x`` (batch, time, ...) of the token before; ``first`` where nothing was read before.

        Across calls the cache of the visit remembers the last one. Where windows share tokens, one
        whose neighbour in the batch is not the token before it has none.
        """
        cache, overlap = self.visit.cache, self.inputs.overlap
        previous = None if cache is None else cache.previous
        if previous is None:
            previous = torch.full_like(x[:, :1], first)
        if cache is not None:
            cache.previous = x[:, -1:].clone()
        before = torch.cat([previous, x[:, :-1]], 1)
        if overlap is None:
            return before
        follows = overlap.follows.view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(follows, before, first)

    def copy(self) -> "ForwardState":
        """As it is now, for a visit that runs again when this one has changed."""
        return ForwardState(self.inputs, self.memory.copy(), dataclasses.replace(self.visit))

    def narrowest(self, window: int | None) -> int | None:
        """The smaller of this visit's window and another one, where None is no limit."""
        return narrower(self.visit.window, window)

    def tail(self, x: Tensor) -> Tensor:
        """The positions of ``x`` (batch, time, ...) that will be read; doing so twice is fine."""
        last = self.visit.last
        if last is None or self.inputs.overlap is not None:  # each is read by some window
            return x
        return x[:, -last:]

    def read(self, x: Tensor) -> Tensor:
        """``x`` (batch, time, ...) by window, (windows, time, ...), and of it what will be read."""
        x, last = self.inputs.rows(x), self.visit.last
        return x if last is None else x[:, -last:]

    def part_windows(self) -> None:
        """From here on each window runs on its own."""
        if self.inputs.overlap is not None:
            self.memory.by_window(self.inputs)
            self.inputs = self.inputs.by_window()
