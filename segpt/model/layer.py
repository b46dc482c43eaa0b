"""A layer: residual branches, wired one after the other or side by side."""

import torch
from torch import Tensor, nn

from segpt.config import layer as spec

from .norm import Normaliser
from .params import Vector, biased
from .state import ForwardState

Pair = tuple[Tensor, Tensor]


class Branch(nn.Module):
    """One residual branch: normalise, run the body, with a gain per channel on either side.

    ``norm`` is None where the body reads the stream as it is.
    """

    def __init__(self, s: spec.Layer, body: nn.Module, width: int, norm: Normaliser | None) -> None:
        super().__init__()
        self.gain = None if s.gain == "none" else Vector(width, init=1.0)
        self.shift = Vector(width) if s.shift else None
        self.before, self.norm, self.norm_scale = s.gain == "input", norm, s.norm_scale
        self.body = body

    @property
    def reads_all(self) -> bool:
        """Whether the body needs every position, also those whose output nobody reads."""
        return bool(self.body.reads_all)

    def add(self, x: Tensor, y: Tensor, state: ForwardState) -> Pair:
        """``x`` + ``y`` (batch, time, width), and what the body reads of that sum."""
        if self.norm is not None:
            return self.norm.add(x, y, self.norm_scale * state.visit.norm_scale)
        total = x + y
        return total, total

    def forward(self, x: Tensor, state: ForwardState, normed: Tensor | None = None) -> Tensor:
        """(batch, time, width) to (batch or windows, time or last ones, width).

        ``normed`` is what the body reads of x, in its shape, if that is known already.
        """
        h = x
        if normed is not None:
            h = normed
        elif self.norm is not None:
            h = self.norm(x) * (self.norm_scale * state.visit.norm_scale)
        if self.gain is None:
            y = self.body(h, state)
        elif self.before:
            y = self.body(biased(self.gain(h) * h, self.shift), state)
        else:
            y = self.gain(x) * self.body(h, state)
        return y if state.visit.gain is None else state.visit.gain * y


class Lanes(nn.Module):
    """How two residual lanes go on, and what they leave; see :class:`segpt.config.layer.Lanes`.

    ``keep`` is by lane or, in serial order, by branch; ``route[i, j]`` is what lane i takes of
    branch j.
    """

    def __init__(self, s: spec.Lanes) -> None:
        super().__init__()
        self.serial = s.order == "serial"
        # Either way a lane keeps as much over the whole layer.
        self.keep = Vector(2, init=s.keep**0.5 if self.serial else s.keep)
        self.route = Vector(2, 2, init=1.0)
        self.share = Vector(1, init=0.5) if s.merge == "learned" else None

    def add(self, lanes: Pair, mixed: Tensor, fed: Tensor) -> Pair:
        """The lanes after both branches, each (batch, time, width) as what the branches gave."""
        keep, route = self.keep(mixed), self.route(mixed)
        first, second = (
            keep[i] * lane + route[i, 0] * mixed + route[i, 1] * fed for i, lane in enumerate(lanes)
        )
        return first, second

    def add_one(self, lanes: Pair, branch: int, y: Tensor) -> Pair:
        """The lanes (batch, time, width) after a branch of serial order; branch 0 is the mixer."""
        keep, route = self.keep(y)[branch], self.route(y)[:, branch]
        return keep * lanes[0] + route[0] * y, keep * lanes[1] + route[1] * y

    def merge(self, lanes: Pair) -> Tensor:
        """The stream (batch, time, width) as it goes on without lanes."""
        first, second = lanes
        if self.share is None:
            return (first + second) / 2
        return torch.lerp(second, first, self.share(first))


class Layer(nn.Module):
    """Join parts, then mixer and feed branches; an absent branch is None.

    Not every position is needed everywhere: a pass may want its last ones only, and windows may
    share tokens. The mixer needs all positions for its keys and values, and attends by window. So
    what is added to its result is cut to what is read, and after that each window is on its own::

        serial      x --+-------------- read --+--> part_windows --+---------+-->
                        |                      |                   |         |
                        +-- mixer (reads) -----+                   +-- feed -+

        parallel    x --+-------------- read --+--> part_windows ----------+-->
                        |                      |                           |
                        +-- mixer (reads) -----+                           |
                        +-- tail -- feed ---------------- read ------------+

    ``tail`` drops positions that nobody reads before the feed spends time on them; where windows
    share tokens it keeps all, as each is read by some window, and ``read`` cuts afterwards.
    """

    def __init__(
        self,
        join: list[nn.Module],
        mixer: Branch | None,
        feed: Branch | None,
        *,
        parallel: bool,
        lanes: Lanes | None = None,
    ) -> None:
        super().__init__()
        self.join = nn.ModuleList(join)
        self.lanes = lanes
        self.mixer, self.feed, self.parallel = mixer, feed, parallel

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """(batch, time, width) to (batch or windows, time or last ones, width)."""
        last = state.visit.last
        if self.feed is not None and self.feed.reads_all:
            state.visit.last = None  # it is cut below instead, when all of it has been read
        x = self._branches(x, state) if self.lanes is None else self._lanes(x, state)
        state.visit.last = last
        return state.tail(x)

    def _branches(self, x: Tensor, state: ForwardState) -> Tensor:
        """One stream: (batch, time, width) to (batch or windows, time or last, width)."""
        x = self._joined(x, state)
        if self.mixer is None:
            return self._fed(x, state)
        fed = self.feed(state.tail(x), state) if self.feed is not None and self.parallel else None
        mixed = self.mixer(x, state)
        x = state.read(x)
        if self.feed is not None and not self.parallel:
            x, normed = self.feed.add(x, mixed, state)
            state.part_windows()
            return x + self.feed(x, state, normed)
        x = x + mixed
        fed = None if fed is None else state.read(fed)
        state.part_windows()
        return x if fed is None else x + fed

    def _fed(self, x: Tensor, state: ForwardState) -> Tensor:
        """The same (batch, time, width) where there is no mixer."""
        x = state.tail(x)
        return x if self.feed is None else x + self.feed(x, state)

    def _joined(self, x: Tensor, state: ForwardState) -> Tensor:
        for part in self.join:
            x = part(x, state)
        return x

    def _lanes(self, x: Tensor, state: ForwardState) -> Tensor:
        """The first lane after the layer, or the stream if lanes end here; shapes as above."""
        assert self.lanes is not None
        assert self.mixer is not None
        assert self.feed is not None
        assert state.memory.lane is not None
        fed = None if self.lanes.serial else self.feed(state.tail(state.memory.lane), state)
        mixed = self.mixer(self._joined(x, state), state)
        both = state.read(x), state.read(state.memory.lane)
        fed = None if fed is None else state.read(fed)
        state.part_windows()
        if fed is not None:
            both = self.lanes.add(both, mixed, fed)
        else:
            both = self.lanes.add_one(both, 0, mixed)
            both = self.lanes.add_one(both, 1, self.feed(self._joined(both[1], state), state))
        if not state.visit.lanes_end_here:
            x, state.memory.lane = both
            return x
        state.memory.lane = None
        return self.lanes.merge(both)
