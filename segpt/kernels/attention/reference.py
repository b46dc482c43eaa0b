"""Causal grouped-query attention, defined in plain torch."""

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionCall(NamedTuple):
    """Queries, which are aligned with the last keys.

    Attributes:
        q: (batch, queries, heads, channels).
        k: (batch, keys, kv_heads, channels); heads is a multiple of kv_heads.
        v: like ``k``.
        window: how many positions a query sees, its own and those just before it; None is all.
        documents: (batch, keys) which document each key is of, never falling; a query sees keys
            of its own document only. None is one document for all.
        scale: what multiplies the logits; None is 1 / sqrt(channels).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    window: int | None = None
    documents: Tensor | None = None
    scale: float | None = None


def reference(call: AttentionCall) -> Tensor:
    """Compute softmax(scale q k^T) v in float32: (batch, queries, heads, channels)."""
    q, k, v, window, documents, scale = call
    scale = q.size(3) ** -0.5 if scale is None else scale
    groups = q.size(2) // k.size(2)
    k, v = (t.repeat_interleave(groups, 2).float() for t in (k, v))
    logits = torch.einsum("bqhc,bkhc->bhqk", q.float(), k) * scale
    past = k.size(1) - q.size(1)  # keys that every query sees
    visible = torch.ones(q.size(1), k.size(1), dtype=torch.bool, device=q.device).tril(past)
    if window is not None:
        visible = visible.triu(past + 1 - window)
    if documents is not None:
        visible = visible & (documents[:, None, past:, None] == documents[:, None, None])
    weights = logits.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhc->bqhc", weights, v).to(q.dtype)
