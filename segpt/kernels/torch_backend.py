"""Back ends from torch itself: fused attention and batched matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attend, orthogonalise

_BLOCK = 32  # queries of one sequence that see their keys together, where no key is copied


@attend.register("torch", when=lambda q, k, v, window=None: True)
def fused_attend(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """``scaled_dot_product_attention``, which picks flash, memory-efficient or math kernels.

    With a window, time and memory grow with queries times window, not with queries times keys.
    """
    queries = q.size(1)
    if window is not None:
        k, v = k[:, -(queries + window - 1) :], v[:, -(queries + window - 1) :]
    past = k.size(1) - queries
    if window is None or k.size(1) <= window:
        if past == 0:
            return _fused(q, k, v, causal=True)
        if queries == 1:
            return _fused(q, k, v)
        return _fused(q, k, v, mask=_band(queries, k.size(1), k.size(1), q.device))
    if queries <= 2 * window:
        return _fused(q, k, v, mask=_band(queries, k.size(1), window, q.device))
    # The last queries go in blocks, each with the window of keys before it. What is left over
    # goes first, with those that too few keys come before.
    size = min(_BLOCK, window) if q.device.type == "cpu" and q.size(0) == 1 else window
    count = min(queries, k.size(1) + 1 - window) // size
    first = queries - count * size
    head = fused_attend(q[:, :first], k[:, : past + first], v[:, : past + first], window)
    blocks = q[:, first:].reshape(-1, size, *q.shape[2:])
    keys, values = (
        t[:, past + first + 1 - window :]
        .repeat_interleave(q.size(2) // t.size(2), 2)
        .unfold(1, size + window - 1, size)
        .movedim(-1, 2)
        .flatten(0, 1)
        for t in (k, v)
    )
    mask = _band(size, size + window - 1, window, q.device)
    tail = _fused(blocks, keys, values, mask=mask)
    return torch.cat([head, tail.reshape(q.size(0), -1, *q.shape[2:])], 1)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    groups = q.size(2) // k.size(2)
    if groups > 1 and (q.device.type == "cpu" or mask is not None):
        # These kernels do not group; expanding keys is cheaper than the math fallback.
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        groups = 1
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1
    )
    return y.transpose(1, 2)


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Which keys each query sees: (queries, keys), true on a band of ``window`` diagonals."""
    past = keys - queries
    whole = torch.ones(queries, keys, dtype=torch.bool, device=device)
    return whole.tril(past).triu(past + 1 - window)


@orthogonalise.register("torch", when=lambda x, coefficients: True)
def fused_orthogonalise(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """The same iteration with the additions folded into ``baddbmm``."""
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, inner, x, beta=a)
    return x
