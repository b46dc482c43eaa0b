"""Small modules that fill the slots of attention, of a layer and of a visit.

A slot is a list of parts applied in order; an absent feature is an empty list, never a flag.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segpt.config import caps as softcaps
from segpt.config import parts as spec
from segpt.kernels import rms_norm, rotary
from segpt.kernels.cross_entropy import caps
from segpt.kernels.query_key import GainStep, NormStep, RotationStep, Step

from .params import Matrix, Vector, is_hooked
from .state import ForwardState


# query_key: (q, k, state) -> (q, k)
class QueryKeyPart(nn.Module):
    """A part that says what it does, so that one kernel can do what several of them do."""

    def step(self, q: Tensor, state: ForwardState) -> Step:
        """What it does to queries ``q`` (batch, time, heads, channels), and to keys."""
        raise NotImplementedError


class Norm(QueryKeyPart):
    def __init__(self, s: spec.Norm, head_dim: int, eps: float | None) -> None:
        super().__init__()
        self.eps = eps
        self.query_gain = Vector(head_dim, init=1.0) if s.gain else None
        self.key_gain = Vector(head_dim, init=1.0) if s.gain else None

    def step(self, q: Tensor, state: ForwardState) -> NormStep:
        if self.query_gain is None or self.key_gain is None:
            return NormStep(self.eps)
        return NormStep(self.eps, self.query_gain(q), self.key_gain(q))

    def forward(self, q: Tensor, k: Tensor, state: ForwardState) -> tuple[Tensor, Tensor]:
        """Queries and keys (batch, time, heads, channels) to the same shapes."""
        q, k = rms_norm(q, self.eps), rms_norm(k, self.eps)
        if self.query_gain is None or self.key_gain is None:
            return q, k
        return q * self.query_gain(q), k * self.key_gain(k)


class Rope(QueryKeyPart):
    def __init__(self, s: spec.Rope) -> None:
        super().__init__()
        self.neighbours = s.pairs == "neighbours"
        self.sign = 1.0 if s.turn == "right" else -1.0
        self.key = f"{s.dims} {s.base} {s.rates} {s.turn} {s.scaling}"  # what angles depend on
        # float64 on the CPU, so that every device and library rotates by the same angles
        count = torch.arange(0, s.dims, 2, dtype=torch.float64, device="cpu") / s.dims
        if s.rates == "half":
            turning = torch.linspace(0, 1, s.dims // 4, dtype=torch.float64, device="cpu")
            rates = F.pad(s.base**-turning, (0, s.dims // 4))
        else:
            rates = s.base**-count
        if s.scaling is not None:
            rates = _scaled(rates, s.scaling)
        self.rates: Tensor
        self.register_buffer("rates", rates.float(), persistent=False)

    def step(self, q: Tensor, state: ForwardState) -> RotationStep:
        key = (self.key, q.dtype, q.device)
        if key not in state.inputs.rotations:
            state.inputs.rotations[key] = self.rotation(state.inputs.positions, q)
        return RotationStep(*state.inputs.rotations[key], self.neighbours)

    def forward(self, q: Tensor, k: Tensor, state: ForwardState) -> tuple[Tensor, Tensor]:
        """Queries and keys (batch, time, heads, channels) to the same shapes."""
        cos, sin, neighbours = self.step(q, state)
        return (
            rotary(q, cos, sin, neighbours=neighbours),
            rotary(k, cos, sin, neighbours=neighbours),
        )

    def rotation(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (time, 1, dims / 2) of the angles at ``positions`` (time,).

        Angles are computed in float64, or float32 would lose those of positions in the millions;
        there is no float64 on MPS.
        """
        device = torch.device("cpu") if like.device.type == "mps" else like.device
        rates, positions = self.rates.to(device).double(), positions.to(device)
        angle = positions[:, None, None] * rates
        return angle.cos().to(like), (self.sign * angle.sin()).to(like)


def _scaled(rates: Tensor, s: spec.Llama3Scaling) -> Tensor:
    """What each pair turns per position, (pairs,), of what it turns without scaling."""
    turns = s.context * rates / (2 * math.pi)  # of a pair within the context
    kept = ((turns - s.low) / (s.high - s.low)).clamp(0, 1)
    return kept * rates + (1 - kept) * rates / s.factor


class Gain(QueryKeyPart):
    def __init__(self, s: spec.Gain, heads: int) -> None:
        super().__init__()
        self.gain = Vector(heads if s.per == "head" else 1, 1, init=s.init)

    def step(self, q: Tensor, state: ForwardState) -> GainStep:
        return GainStep(self.gain(q))

    def forward(self, q: Tensor, k: Tensor, state: ForwardState) -> tuple[Tensor, Tensor]:
        """Queries and keys (batch, time, heads, channels) to the same shapes."""
        return q * self.gain(q), k


# value: (v, x, state) -> v
class ValueResidual(nn.Module):
    """v <- s (a v + b first) / sqrt(a^2 + b^2) or (1 - m) v + m first."""

    def __init__(self, s: spec.ValueResidual) -> None:
        super().__init__()
        self.first = s.first
        self.mix = Vector(1, init=s.init) if s.mode == "lerp" else Vector(2, init=(1.0, 0.0))
        self.scale = Vector(1, init=1.0) if s.scaled else None

    def forward(self, v: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        """Values (batch, time, kv_heads, channels), ``x`` (batch, time, width) beside them."""
        first = v if state.memory.values is None else state.memory.values
        mixed = self.blend(v, first, state.visit.blend)
        if state.memory.values is None:
            state.memory.values = v if self.first == "raw" else mixed
        return mixed

    def blend(self, v: Tensor, first: Tensor, more: Tensor | None) -> Tensor:
        """``v`` and ``first`` (batch, time, kv_heads, channels) to one of that shape."""
        mix = self.mix(v)
        if mix.numel() == 1:
            return torch.lerp(v, first, mix if more is None else mix + more)
        own, earlier = mix.unbind()
        earlier = earlier if more is None else earlier + more
        norm = torch.rsqrt(own.square() + earlier.square() + 1e-8)
        mixed = (own * v + earlier * first) * norm
        return mixed if self.scale is None else self.scale(v) * mixed


class ValueNorm(nn.Module):
    def __init__(self, eps: float | None = None) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, v: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        """Values (batch, time, kv_heads, channels), ``x`` (batch, time, width) beside them."""
        return rms_norm(v, self.eps)


class ValueEmbedding(nn.Module):
    def __init__(self, s: spec.ValueEmbedding, kv_heads: int) -> None:
        super().__init__()
        self.table = s.table
        init = (s.keep, s.blend)
        self.mix = Vector(2, kv_heads, 1, init=init) if s.per_head else Vector(2, init=init)

    def forward(self, v: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        """Values (batch, time, kv_heads, channels), ``x`` (batch, time, width) beside them."""
        rows = state.inputs.value_tables[self.table](state.inputs.tokens[:, -v.size(1) :])
        keep, blend = self.mix(v).unbind()
        return keep * v + blend * rows.view(v.shape).to(v.dtype)


# output: (y, v, x, state) -> y
class HeadGate(nn.Module):
    def __init__(self, s: spec.HeadGate, heads: int, head_dim: int, width: int) -> None:
        super().__init__()
        self.inputs, self.scale, self.sharpness = s.inputs, s.scale, s.sharpness
        inputs = width if s.inputs is None else s.inputs
        std = inputs**-0.5 if s.std is None else s.std
        rows = heads * (head_dim if s.per == "element" else 1)
        self.channels = head_dim if s.per == "element" else 1
        self.gate = Matrix(inputs, rows, zero=std == 0, std=std or None)

    def forward(self, y: Tensor, v: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        """Heads' outputs ``y`` (batch, time, heads, channels) to the same shape."""
        gate = self.gate(x if self.inputs is None else x[..., : self.inputs])
        opened = self.scale * torch.sigmoid(gate if self.sharpness == 1 else self.sharpness * gate)
        return y * opened.view(*y.shape[:-1], self.channels)


class ExcludeSelf(nn.Module):
    def __init__(self, s: spec.ExcludeSelf, heads: int) -> None:
        super().__init__()
        self.alpha = Vector(heads, 1) if s.gated else None

    def forward(self, y: Tensor, v: Tensor, x: Tensor, state: ForwardState) -> Tensor:
        """Heads' outputs ``y`` (batch, time, heads, channels) to the same shape."""
        batch, time, heads, _ = v.shape
        grouped = y.view(batch, time, heads, -1, y.size(3))
        unit = F.normalize(v, dim=-1)[:, :, :, None]
        own = (grouped * unit).sum(-1, keepdim=True) * unit
        if self.alpha is not None:
            own = own * torch.tanh(self.alpha(y)).view(heads, -1, 1)
        return (grouped - own).flatten(2, 3)


# join: (x, state) -> x
class MixInput(nn.Module):
    def __init__(self, s: spec.MixInput, width: int) -> None:
        super().__init__()
        self.mix = Vector(2, *spec.shape_per(s.per, width), init=(1.0, 0.0))

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        keep, blend = self.mix(x).unbind()
        return (
            keep * x + blend * state.memory.x0[:, -x.size(1) :]
        )  # x may be the last positions only


class Skip(nn.Module):
    def __init__(self, s: spec.Skip, width: int) -> None:
        super().__init__()
        self.source = s.source
        shape = spec.shape_per(s.per, width)
        self.scale = Vector(*shape, init=1.0)
        self.gate = Vector(*shape) if s.form == "lerp" else None

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        source = state.memory.visits.get(self.source)
        if source is None:  # a loop that has not joined the model yet
            return x
        skip = self.scale(x) * source
        return x + skip if self.gate is None else torch.lerp(skip, x, torch.sigmoid(self.gate(x)))


class LoopEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = Vector(width)

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        return x + self.shift(x)


class LoopBlend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = Vector(1)

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        state.visit.blend = self.shift(x)
        return x


class LoopGain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = Vector(width, init=1.0)

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        state.visit.gain = self.gain(x)
        return x


# soft caps of the head: logits -> logits
class Sigmoid(nn.Module):
    def __init__(self, s: softcaps.Sigmoid) -> None:
        super().__init__()
        self.cap = caps.SigmoidCap(s.cap, s.divisor)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (..., vocab) to the same shape."""
        return caps.capped(logits, self.cap)


class Algebraic(nn.Module):
    def __init__(self, s: softcaps.Algebraic) -> None:
        super().__init__()
        self.cap = caps.AlgebraicCap(s.cap)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (..., vocab) to the same shape."""
        return caps.capped(logits, self.cap)


class Asymmetric(nn.Module):
    def __init__(self, s: softcaps.Asymmetric) -> None:
        super().__init__()
        self.caps = Vector(2, init=s.init)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (..., vocab) to the same shape."""
        return caps.capped(logits, caps.AsymmetricCap(self.caps(logits)))


def cap_numbers(cap: nn.Module) -> caps.Cap | None:
    """A soft cap as numbers; None where it is another function, or a hook waits for its call."""
    if is_hooked(cap):
        return None
    if type(cap) is Sigmoid or type(cap) is Algebraic:
        return cap.cap
    if type(cap) is Asymmetric and not is_hooked(cap.caps):
        return caps.AsymmetricCap(cap.caps.weight)
    return None
