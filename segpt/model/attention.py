"""Attention: a straight line through its slots."""

import torch
from torch import Tensor, nn

from segpt.config import layer as spec
from segpt.kernels.attention import CACHED_ATTENTION, attention, cached_attention
from segpt.kernels.query_key import QUERY_KEY, QueryKeyCall

from .params import Matrix, Vector, biased, is_hooked
from .parts import QueryKeyPart
from .state import ForwardState


class Attention(nn.Module):
    """Project; query_key parts; value parts; attend; output parts; project."""

    def __init__(
        self,
        s: spec.Attention,
        width: int,
        query_key: list[nn.Module],
        value: list[nn.Module],
        output: list[nn.Module],
    ) -> None:
        super().__init__()
        self.head_dim, self.window, self.scale = s.head_dim, s.window, s.scale
        self.query = Matrix(width, s.heads * s.head_dim)
        self.key = Matrix(width, s.kv_heads * s.head_dim)
        self.value = Matrix(width, s.kv_heads * s.head_dim)
        self.out = Matrix(s.heads * s.head_dim, width, zero=True, output=True)
        self.query_bias = self.key_bias = self.value_bias = self.out_bias = None
        if s.bias != "none":
            self.query_bias = Vector(s.heads * s.head_dim)
            self.key_bias = Vector(s.kv_heads * s.head_dim)
            self.value_bias = Vector(s.kv_heads * s.head_dim)
        if s.bias == "all":
            self.out_bias = Vector(width)
        self.query_key_parts = nn.ModuleList(query_key)
        self.value_parts = nn.ModuleList(value)
        self.output_parts = nn.ModuleList(output)

    def forward(self, x: Tensor, state: ForwardState) -> Tensor:
        """(batch, time, width) to (batch or windows, time or last ones, width)."""
        maps = (
            (self.query, self.query_bias),
            (self.key, self.key_bias),
            (self.value, self.value_bias),
        )
        q, k, v = (  # (batch, time, heads or kv_heads, channels)
            _heads(biased(matrix(x), bias), self.head_dim) for matrix, bias in maps
        )
        q, k = self._prepared(q, k, state)
        for part in self.value_parts:
            v = part(v, x, state)
        window, documents = state.narrowest(self.window), state.inputs.documents
        cache, ring = state.visit.cache, None
        if cache is None:
            keys, values = state.inputs.rows(k), state.inputs.rows(v)
        elif window is not None and _rolls(k):
            ring = cache.roll(k, v, window)
        else:
            keys, values = cache.extend(k, v, window)
        if cache is not None and documents is not None:
            documents = cache.number(documents, window)
        q, v, x = state.read(q), state.read(v), state.read(x)
        if ring is None:
            y = attention(q, keys, values, window, documents, self.scale)
        else:
            y = cached_attention(q, ring, window, documents, self.scale)
        for part in self.output_parts:
            y = part(y, v, x, state)
        return biased(self.out(y.flatten(-2)), self.out_bias)

    def _prepared(self, q: Tensor, k: Tensor, state: ForwardState) -> tuple[Tensor, Tensor]:
        """Queries and keys (batch, time, heads or kv_heads, channels) as their parts make them.

        One kernel does what all parts do, where there is one that takes them and no hook waits for
        a part to be called.
        """
        parts = self.query_key_parts
        if parts and QUERY_KEY.may_choose(q.device.type):
            known = [part for part in parts if isinstance(part, QueryKeyPart)]
            if len(known) == len(parts) and not any(map(is_hooked, parts)):
                call = QueryKeyCall(q, k, tuple(part.step(q, state) for part in known))
                fused = QUERY_KEY.choose(call)
                if fused is not None:
                    return fused.run(call)
        for part in parts:
            q, k = part(q, k, state)
        return q, k


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """(batch, time, channels) to (batch, time, heads, head_dim)."""
    return x.view(*x.shape[:-1], -1, head_dim)


def _rolls(k: Tensor) -> bool:
    """Whether attention can read keys (batch, time, kv_heads, channels) where they lie in slots."""
    return not torch.is_grad_enabled() and CACHED_ATTENTION.may_choose(k.device.type)
