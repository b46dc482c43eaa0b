"""A layer: residual branches, wired one after the other or side by side."""

from torch import Tensor, nn

from .leaves import Vector
from .parts import rms
from .stream import Stream


class Branch(nn.Module):
    """One residual branch: normalise, run the body, scale per channel."""

    def __init__(self, body: nn.Module, width: int, norm_scale: float) -> None:
        super().__init__()
        self.gain = Vector(width, init=1.0)
        self.body, self.norm_scale = body, norm_scale

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return self.gain(x) * self.body(rms(x) * self.norm_scale, stream)


class Layer(nn.Module):
    """Join parts, then mixer and feed branches; an absent branch is None."""

    def __init__(
        self, join: list[nn.Module], mixer: Branch | None, feed: Branch | None, *, parallel: bool
    ) -> None:
        super().__init__()
        self.join = nn.ModuleList(join)
        self.mixer, self.feed, self.parallel = mixer, feed, parallel

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        last = stream.last
        if self.feed is not None and self.feed.body.fast is not None:
            stream.last = None  # it learns from every position
        for part in self.join:
            x = part(x, stream)
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
        stream.last = last
        return stream.tail(x)
