"""Small modules that fill the slots of attention, of a layer and of a visit.

A slot is a list of parts applied in order; an absent feature is an empty list, never a flag.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.spec import parts as spec

from .leaves import Matrix, Vector
from .stream import Stream


def rms(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension, in float32, without a gain."""
    return F.rms_norm(x.float(), (x.size(-1),)).to(x.dtype)


# query_key: (q, k, stream) -> (q, k)
class Norm(nn.Module):
    def forward(self, q: Tensor, k: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        return rms(q), rms(k)


class Rope(nn.Module):
    def __init__(self, s: spec.Rope) -> None:
        super().__init__()
        self.dims = s.dims
        self.sign = 1.0 if s.turn == "right" else -1.0
        # float64 on the CPU, so that every device and library rotates by the same angles
        rates = s.base ** -(torch.arange(0, s.dims, 2, dtype=torch.float64, device="cpu") / s.dims)
        self.rates: Tensor
        self.register_buffer("rates", rates.float(), persistent=False)

    def forward(self, q: Tensor, k: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        # In float64, or float32 would lose the angles of positions in the millions; there is no
        # float64 on MPS.
        device = torch.device("cpu") if q.device.type == "mps" else q.device
        rates, positions = self.rates.to(device).double(), stream.positions.to(device)
        angle = positions[:, None, None] * rates
        cos, sin = angle.cos().to(q), (self.sign * angle.sin()).to(q)
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = self.dims // 2
        a, b, rest = torch.split(x, [half, half, x.size(-1) - self.dims], -1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], -1)


class Gain(nn.Module):
    def __init__(self, s: spec.Gain, heads: int) -> None:
        super().__init__()
        self.gain = Vector(heads, 1, init=s.init)

    def forward(self, q: Tensor, k: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
        return q * self.gain(q), k


# value: (v, x, stream) -> v
class ValueResidual(nn.Module):
    """v <- (a v + b v1) / sqrt(a^2 + b^2), with a = 1 and b = 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Vector(2, init=(1.0, 0.0))

    def forward(self, v: Tensor, x: Tensor, stream: Stream) -> Tensor:
        if stream.values is None:
            stream.values = v
        here, first = self.mix(v).unbind()
        norm = torch.rsqrt(here.square() + first.square() + 1e-8)
        return (here * v + first * stream.values) * norm


# output: (y, v, x, stream) -> y
class HeadGate(nn.Module):
    def __init__(self, s: spec.HeadGate, heads: int) -> None:
        super().__init__()
        self.inputs, self.gate = s.inputs, Matrix(s.inputs, heads, zero=True)

    def forward(self, y: Tensor, v: Tensor, x: Tensor, stream: Stream) -> Tensor:
        return y * (2 * torch.sigmoid(self.gate(x[..., : self.inputs])))[..., None]


class ExcludeSelf(nn.Module):
    def forward(self, y: Tensor, v: Tensor, x: Tensor, stream: Stream) -> Tensor:
        batch, time, heads, _ = v.shape
        grouped = y.view(batch, time, heads, -1, y.size(3))
        unit = F.normalize(v, dim=-1)[:, :, :, None]
        return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).flatten(2, 3)


# join: (x, stream) -> x
class MixInput(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = Vector(2, width, init=(1.0, 0.0))

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        keep, blend = self.mix(x).unbind()
        return keep * x + blend * stream.x0


class Skip(nn.Module):
    def __init__(self, s: spec.Skip, width: int) -> None:
        super().__init__()
        self.source = s.source
        self.scale, self.gate = Vector(width, init=1.0), Vector(width)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        source = stream.visits.get(self.source)
        if source is None:  # a loop that has not joined the model yet
            return x
        return torch.lerp(self.scale(x) * source, x, torch.sigmoid(self.gate(x)))
