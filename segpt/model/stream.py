"""What travels beside the residual stream during one forward pass."""

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Past:
    """What one run of a visit has already seen.

    ``key`` and ``value`` are (batch, time, kv_heads, channels), of the positions that later ones
    can still see. ``change`` (batch, out, in) is what a fast weight has learned; ``hidden``
    (batch, time, in) and ``source`` (batch, time, out) are of the chunk it has yet to learn from.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    change: Tensor | None = None
    hidden: Tensor | None = None
    source: Tensor | None = None

    def extend(
        self, key: Tensor, value: Tensor, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append the new keys and values; return all of them, keep what ``window`` shows later."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], 1), torch.cat([self.value, value], 1)
        self.key, self.value = (_latest(t, window) for t in (key, value))
        return key, value

    def first_rows(self, count: int) -> None:
        """Forget all but the first ``count`` rows of the batch."""
        for field_ in dataclasses.fields(self):
            kept = getattr(self, field_.name)
            if isinstance(kept, Tensor):
                setattr(self, field_.name, kept[:count])


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

    def rows(self, x: Tensor) -> Tensor:
        """One row per window, (windows, time, ...), of ``x`` (1, tokens, ...)."""
        return x[0, self.where]


@dataclass
class Stream:
    """Everything a part may read beside x, so that a new part never changes a signature.

    ``tokens`` and ``positions`` are (batch, time) and (time,); ``x0`` is the normalised
    embedding; ``values`` those of the first value residual visited; ``visits`` maps a visit to its
    output; ``past`` is the memory of the visit that is running, or None for a full pass;
    ``last`` is how many positions at the end anyone will read of its output, or None for all;
    ``window`` is how many positions attention sees at most, or None for all; ``overlap`` the
    windows that attention has yet to tell apart, before which a token runs once for all of them.
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

    def narrowest(self, window: int | None) -> int | None:
        """The smaller of this pass's window and another one, where None is no limit."""
        if window is None or self.window is None:
            return self.window if window is None else window
        return min(window, self.window)

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
        self.visits = {place: self.rows(x) for place, x in self.visits.items()}
        self.positions = self.positions[: self.tokens.size(1)]
        self.overlap = None


# One per place in the order that runs, not per layer nor per visit: loops run both again.
Cache = dict[int, Past]


def first_rows(cache: Cache, count: int) -> None:
    """Forget all but the first ``count`` rows of a batch, whose other documents have ended."""
    for past in cache.values():
        past.first_rows(count)
