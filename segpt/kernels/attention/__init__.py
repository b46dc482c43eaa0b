"""Causal grouped-query attention with windows, documents and any scale."""

from torch import Tensor

from segpt.kernels.registry import Later, Op

from .cached import CachedCall, Ring
from .cached import reference as cached_reference
from .reference import AttentionCall, reference
from .torch import TorchAttention

TRITON = "segpt.kernels.attention.triton:TritonAttention"
ATTENTION = Op("attention", reference, TorchAttention(), Later("triton", 5, ("cuda",), TRITON))

CACHED_ATTENTION = Op[CachedCall, Tensor](
    "cached_attention",
    cached_reference,
    Later("triton", 5, ("cuda",), "segpt.kernels.attention.triton:TritonCachedAttention"),
)

__all__ = ["ATTENTION", "CACHED_ATTENTION", "Ring", "attention", "cached_attention"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    documents: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend from ``q`` to ``k`` and ``v``; :class:`AttentionCall` says more.

    Queries are (batch, queries, heads, channels), as is the result; keys and values are
    (batch, keys, kv_heads, channels).
    """
    return ATTENTION(AttentionCall(q, k, v, window, documents, scale))


def cached_attention(
    q: Tensor,
    ring: Ring,
    window: int | None = None,
    documents: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend from ``q`` to the keys of a ring, without gradients; see :class:`CachedCall`.

    Queries are (batch, queries, heads, channels), as is the result.
    """
    return CACHED_ATTENTION(CachedCall(q, ring, window, documents, scale))
