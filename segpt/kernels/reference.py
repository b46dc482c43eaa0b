"""The meaning of every operation, in plain torch. Back ends are tested against these."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import Op


@Op
def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x W^T: (..., in) by (out, in) to (..., out)."""
    return F.linear(x, weight)


@Op
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    documents: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal grouped-query attention, queries aligned with the last keys.

    Args:
        q: (batch, queries, heads, channels).
        k: (batch, keys, kv_heads, channels); heads is a multiple of kv_heads.
        v: like ``k``.
        window: how many positions a query sees, its own and those just before it; None is all.
        documents: (batch, keys) which document each key is of, never falling; a query sees keys
            of its own document only. None is one document for all.
        scale: what multiplies the logits; None is 1 / sqrt(channels).

    Returns:
        (batch, queries, heads, channels): softmax(scale q k^T) v in float32.
    """
    scale = q.size(3) ** -0.5 if scale is None else scale
    groups = q.size(2) // k.size(2)
    k, v = (t.repeat_interleave(groups, 2).float() for t in (k, v))
    logits = torch.einsum("bqhc,bkhc->bhqk", q.float(), k) * scale
    hidden = k.size(1) - q.size(1)  # keys that every query sees
    seen = torch.ones(q.size(1), k.size(1), dtype=torch.bool, device=q.device).tril(hidden)
    if window is not None:
        seen = seen.triu(hidden + 1 - window)
    if documents is not None:
        seen = seen & (documents[:, None, hidden:, None] == documents[:, None, None])
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhc->bqhc", weights, v).to(q.dtype)


@Op
def orthogonalise(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Newton-Schulz: drive the singular values of each matrix towards 1.

    Each step maps X to a X + (b A + c A^2) X with A = X X^T.

    Args:
        x: (matrices, rows, columns) with rows <= columns and spectral norms at most 1.
        coefficients: one (a, b, c) per step.
    """
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
