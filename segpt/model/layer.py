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
        start = x
        if self.mixer is not None:
            x = stream.tail(x) + self.mixer(x, stream)
        if self.feed is not None:
            x = stream.tail(x) + self.feed(stream.tail(start if self.parallel else x), stream)
        stream.last = last
        return stream.tail(x)
