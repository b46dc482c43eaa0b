"""What tokens start as: the parts of the ``embed`` slot, (x, state) -> x."""

import torch
from torch import Tensor, nn

from segpt.config import parts as spec

from .norm import Normaliser
from .params import Matrix, Table, Vector
from .state import ForwardState

_CURRENT, _PREVIOUS = 36313, 27191  # primes that spread pairs of ids over buckets


class Token(nn.Module):
    """Takes the rows of the table, which the model shares with a tied head."""

    def __init__(self, s: spec.Token, norm: Normaliser) -> None:
        super().__init__()
        self.norm, self.scale = norm if s.norm else None, s.scale

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        if self.norm is not None:
            x = self.norm(x)
        return x if self.scale == 1 else self.scale * x


class Position(nn.Module):
    """Adds the row of each position, counted from where the text or its cache begins."""

    def __init__(self, s: spec.Position, width: int) -> None:
        super().__init__()
        self.rows = Table(s.count, width)

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        # One lookup for each text and not one for all, so that each has a gradient of its own.
        positions = state.inputs.positions.expand_as(state.inputs.tokens)
        return x + self.rows(positions).to(x.dtype)


class Backward(nn.Module):
    """A part that looks at the token before, which its cache remembers."""


class Smear(Backward):
    def __init__(self, s: spec.Smear, width: int) -> None:
        super().__init__()
        token = s.gate == "token"
        self.inputs = s.inputs
        self.gate = Vector(s.inputs if token else width)
        self.scale = Vector(1) if token else None

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        before, same = state.previous_token(x, 0), ~state.inputs.opens[..., None]
        if self.scale is None:
            return x + same * self.gate(x) * (before - x)
        gate = torch.sigmoid((x[..., : self.inputs] * self.gate(x)).sum(-1, keepdim=True))
        return x + same * self.scale(x) * gate * before


class Bigram(Backward):
    def __init__(self, s: spec.Bigram, width: int) -> None:
        super().__init__()
        direct = s.width == width
        self.buckets = s.buckets
        self.rows = Table(s.buckets, s.width, zero=direct)
        self.projection = None if direct else Matrix(s.width, width, zero=True)
        self.scale = Vector(1, init=s.scale)

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        rows = self.rows(self.bucket(state))
        if self.projection is not None:
            rows = self.projection(rows)
        return x + self.scale(x) * rows.to(x.dtype)

    def bucket(self, state: ForwardState) -> Tensor:
        """Which row each token and the one before it share, (batch, time); the last if none is."""
        before = state.previous_token(state.inputs.tokens, -1)
        mixed = (_CURRENT * state.inputs.tokens) ^ (_PREVIOUS * before)
        alone = state.inputs.opens | (before < 0)
        return torch.where(alone, self.buckets - 1, mixed % (self.buckets - 1))


class Normalise(nn.Module):
    def __init__(self, norm: Normaliser) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """The stream (batch, time, width) to the same shape."""
        return self.norm(x)
