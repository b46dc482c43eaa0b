"""A layer: residual branches, wired one after the other or side by side."""

import torch
from torch import Tensor, nn

from segpt.config import model as spec
from segpt.kernels import rms_norm

from .leaves import Vector
from .stream import Stream

Pair = tuple[Tensor, Tensor]


class Branch(nn.Module):
    """One residual branch: normalise, run the body, with a gain per channel on either side."""

    def __init__(self, s: spec.Layer, body: nn.Module, width: int, *, norm: bool) -> None:
        super().__init__()
        self.gain = None if s.gain == "none" else Vector(width, init=1.0)
        self.before, self.norm, self.norm_scale = s.gain == "input", norm, s.norm_scale
        self.body = body

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        h = rms_norm(x) * (self.norm_scale * stream.norm_scale) if self.norm else x
        if self.gain is None:
            y = self.body(h, stream)
        elif self.before:
            y = self.body(self.gain(h) * h, stream)
        else:
            y = self.gain(x) * self.body(h, stream)
        return y if stream.gain is None else stream.gain * y


class Lanes(nn.Module):
    """How two residual lanes go on, and what they leave; see :class:`segpt.config.model.Lanes`.

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
        """The lanes after both branches."""
        keep, route = self.keep(mixed), self.route(mixed)
        first, second = (
            keep[i] * lane + route[i, 0] * mixed + route[i, 1] * fed for i, lane in enumerate(lanes)
        )
        return first, second

    def add_one(self, lanes: Pair, branch: int, y: Tensor) -> Pair:
        """The lanes after one branch of serial order, the mixer being branch 0."""
        keep, route = self.keep(y)[branch], self.route(y)[:, branch]
        return keep * lanes[0] + route[0] * y, keep * lanes[1] + route[1] * y

    def merge(self, lanes: Pair) -> Tensor:
        """The stream as it goes on without lanes."""
        first, second = lanes
        if self.share is None:
            return (first + second) / 2
        return torch.lerp(second, first, self.share(first))


class Layer(nn.Module):
    """Join parts, then mixer and feed branches; an absent branch is None."""

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

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        last = stream.last
        if self.feed is not None and self.feed.body.fast is not None:
            stream.last = None  # it learns from every position
        x = self._branches(x, stream) if self.lanes is None else self._lanes(x, stream)
        stream.last = last
        return stream.tail(x)

    def _branches(self, x: Tensor, stream: Stream) -> Tensor:
        x = self._joined(x, stream)
        fed = None
        if self.feed is not None and (self.parallel or self.mixer is None):
            fed = self.feed(stream.tail(x), stream)
        if self.mixer is None:
            x = stream.tail(x)
        else:
            mixed = self.mixer(x, stream)
            x = stream.read(x) + mixed
            fed = None if fed is None else stream.read(fed)
            stream.part()
        if fed is not None:
            x = x + fed
        elif self.feed is not None:
            x = x + self.feed(x, stream)
        return x

    def _joined(self, x: Tensor, stream: Stream) -> Tensor:
        for part in self.join:
            x = part(x, stream)
        return x

    def _lanes(self, x: Tensor, stream: Stream) -> Tensor:
        """The first lane after the layer, or the stream if lanes end here."""
        assert self.lanes is not None
        assert self.mixer is not None
        assert self.feed is not None
        assert stream.lane is not None
        fed = None if self.lanes.serial else self.feed(stream.tail(stream.lane), stream)
        mixed = self.mixer(self._joined(x, stream), stream)
        both = stream.read(x), stream.read(stream.lane)
        fed = None if fed is None else stream.read(fed)
        stream.part()
        if fed is not None:
            both = self.lanes.add(both, mixed, fed)
        else:
            both = self.lanes.add_one(both, 0, mixed)
            both = self.lanes.add_one(both, 1, self.feed(self._joined(both[1], stream), stream))
        if not stream.merges:
            x, stream.lane = both
            return x
        stream.lane = None
        return self.lanes.merge(both)
