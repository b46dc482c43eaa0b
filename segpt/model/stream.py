"""What travels beside the residual stream during one forward pass."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segpt.config.model import narrower


@dataclass
class Past:
    """What one run of a visit has already seen.

    ``key`` and ``value`` are (batch, time, kv_heads, channels), of the positions that later ones
    can still see. ``change`` (batch, out, in) is what a fast weight has learned; ``hidden``
    (batch, time, in) and ``source`` (batch, time, out) are of the chunk it has yet to learn from.
    ``documents`` (batch, time) numbers those of the keys. ``previous`` (batch, 1, ...) is what a
    part that looks one token back read last.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    change: Tensor | None = None
    hidden: Tensor | None = None
    source: Tensor | None = None
    documents: Tensor | None = None
    previous: Tensor | None = None

    def extend(
        self, key: Tensor, value: Tensor, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append the new keys and values; return all of them, keep what ``window`` shows later."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
        self.key, self.value = (_latest(t, window) for t in (key, value))
        return key, value

    def number(self, documents: Tensor, window: int | None = None) -> Tensor:
        """The documents of all keys, given those of the new ones, counted from the first."""
        if self.documents is not None and self.documents.size(1):
            documents = torch.cat([self.documents, documents + self.documents[:, -1:]], 1)
        self.documents = _latest(documents, window)
        return documents

    def pick(self, rows: slice | Tensor) -> None:
        """Hold these rows of the batch from here on, any number of times each."""
        for field_ in dataclasses.fields(self):
            kept = getattr(self, field_.name)
            if isinstance(kept, Tensor):
                setattr(self, field_.name, kept[rows])


def _latest(x: Tensor, window: int | None) -> Tensor:
    if window is None or x.size(1) < window:
        return x
    # A copy, so that the memory of what is dropped can be freed.
    return x[:, x.size(1) - window + 1 :].clone()


class Overlap(NamedTuple):
    """Windows that share tokens: ``where`` (windows, time) says which ones each of them holds.

    ``positions`` (tokens,) are those of the tokens in their text.
    """

    where: Tensor
    positions: Tensor

    @classmethod
    def of(cls, places: Tensor, own: int) -> "Overlap":
        """The tokens at ``places`` (windows, time) once, but ``own`` ones that open each window.

        Those of a window follow each other, and nothing they follow stands before them.
        """
        tokens, index = torch.unique(places, return_inverse=True)
        own = min(own, places.size(1))
        # The latest window first: so no run of own tokens goes on where the last one ended.
        order = places[:, 0].argsort(descending=True, stable=True)
        index = index + own * len(places)
        index[order, :own] = torch.arange(own * len(places), device=places.device).view(
            len(places), own
        )
        return cls(index, torch.cat([places[order, :own].flatten(), tokens]))

    @property
    def follows(self) -> Tensor:
        """Whether a token comes right after the one before it here, (tokens,)."""
        steps = self.positions.diff(prepend=self.positions[:1])
        return steps == 1

    def rows(self, x: Tensor) -> Tensor:
        """One row per window, (windows, time, ...), of ``x`` (1, tokens, ...)."""
        return x[0, self.where]


@dataclass
class Stream:
    """Everything a part may read beside x, so that a new part never changes a signature.

    ``tokens`` and ``positions`` are (batch, time) and (time,); ``x0`` is what tokens
    start as; ``values`` those of the first value residual visited; ``visits`` maps a visit to its
    output; ``past`` is the memory of the visit that is running, or None for a full pass;
    ``last`` is how many positions at the end anyone will read of its output, or None for all;
    ``window`` is how many positions attention sees at most, or None for all; ``overlap`` the
    windows that attention has yet to tell apart, before which a token runs once for all of them;
    ``norm_scale`` and ``gain`` (width,) scale what the branches of the running visit read and add;
    ``blend`` is how much more of ``values`` it blends in;
    ``lane`` is the second residual lane while there is one, and ``merges`` whether it ends with
    the visit that is running;
    ``start`` is the token that opens a document, and ``documents`` (batch, time), by window,
    numbers those that attention keeps apart, or is None if it crosses from one to the next;
    ``value_tables`` map tokens to values.
    """

    tokens: Tensor
    positions: Tensor
    x0: Tensor
    values: Tensor | None = None
    visits: dict[int, Tensor] = field(default_factory=dict)
    past: Past | None = None
    last: int | None = None
    window: int | None = None
    overlap: Overlap | None = None
    start: int | None = None
    documents: Tensor | None = None
    value_tables: Sequence[nn.Module] = ()
    norm_scale: float = 1.0
    gain: Tensor | None = None
    blend: Tensor | None = None
    lane: Tensor | None = None
    merges: bool = False

    @property
    def opens(self) -> Tensor:
        """Which tokens open a document, (batch, time)."""
        return self.tokens == (-1 if self.start is None else self.start)

    def before(self, x: Tensor, first: int) -> Tensor:
        """``x`` (batch, time, ...) of the token before; ``first`` where nothing was read before."""
        past = self.past
        previous = None if past is None else past.previous
        if previous is None:
            previous = torch.full_like(x[:, :1], first)
        if past is not None:
            past.previous = x[:, -1:].clone()
        found = torch.cat([previous, x[:, :-1]], 1)
        if self.overlap is None:
            return found
        follows = self.overlap.follows.view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(follows, found, first)

    def copy(self) -> "Stream":
        """The state as it is, for a visit that will run again when this one has changed."""
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        held: dict[str, Any] = {
            n: s.copy() for n, s in state.items() if isinstance(s, dict | list | set)
        }
        return dataclasses.replace(self, **held)

    def narrowest(self, window: int | None) -> int | None:
        """The smaller of this pass's window and another one, where None is no limit."""
        return narrower(self.window, window)

    def tail(self, x: Tensor) -> Tensor:
        """The positions of ``x`` (batch, time, ...) that will be read; doing so twice is fine."""
        if self.last is None or self.overlap is not None:  # each is read by some window
            return x
        return x[:, -self.last :]

    def rows(self, x: Tensor) -> Tensor:
        """``x`` by window, if windows share its tokens."""
        return x if self.overlap is None else self.overlap.rows(x)

    def read(self, x: Tensor) -> Tensor:
        """``x`` by window, and of it what will be read."""
        x = self.rows(x)
        return x if self.last is None else x[:, -self.last :]

    def part(self) -> None:
        """From here on each window runs on its own."""
        if self.overlap is None:
            return
        self.tokens, self.x0 = self.rows(self.tokens), self.rows(self.x0)
        self.values = None if self.values is None else self.rows(self.values)
        self.lane = None if self.lane is None else self.rows(self.lane)
        self.visits = {place: self.rows(x) for place, x in self.visits.items()}
        self.positions = self.positions[self.overlap.where[0]]  # only differences matter
        self.overlap = None


# One per place in the order that runs, not per layer nor per visit: loops run both again. What part
# j of the embedding remembers is at -1 - j.
Cache = dict[int, Past]


def first_rows(cache: Cache, count: int) -> None:
    """Forget all but the first ``count`` rows of a batch, whose other documents have ended."""
    for past in cache.values():
        past.pick(slice(count))


def pick_rows(cache: Cache, rows: Tensor) -> None:
    """Hold ``rows`` (rows,) of a batch from here on, any number of times each."""
    for past in cache.values():
        past.pick(rows)
