"""Back ends from torch itself: fused attention and batched matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attend, orthogonalise

_BLOCK = 32  # queries of one sequence that see their keys together, where no key is copied


@attend.register("torch", when=lambda q, k, v, window=None, documents=None, scale=None: True)
def fused_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    documents: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """``scaled_dot_product_attention``, which picks flash, memory-efficient or math kernels.

    With a window, time and memory grow with queries times window, not with queries times keys.
    Documents cost a mask only where some row holds more than one.
    """
    queries = q.size(1)
    if window is not None:
        reach = slice(-(queries + window - 1), None)
        k, v = k[:, reach], v[:, reach]
        documents = None if documents is None else documents[:, reach]
    if documents is not None and _alike(documents):
        documents = None
    past = k.size(1) - queries
    if window is None or k.size(1) <= window:
        if documents is None and past == 0:
            return _fused(q, k, v, scale, causal=True)
        if documents is None and queries == 1:
            return _fused(q, k, v, scale)
        mask = _band(queries, k.size(1), k.size(1), q.device, documents)
        return _fused(q, k, v, scale, mask=mask)
    if queries <= 2 * window:
        mask = _band(queries, k.size(1), window, q.device, documents)
        return _fused(q, k, v, scale, mask=mask)
    # The last queries go in blocks, each with the window of keys before it. What is left over
    # goes first, with those that too few keys come before.
    size = min(_BLOCK, window) if q.device.type == "cpu" and q.size(0) == 1 else window
    count = min(queries, k.size(1) + 1 - window) // size
    first = queries - count * size
    before = None if documents is None else documents[:, : past + first]
    k_before, v_before = (t[:, : past + first] for t in (k, v))
    head = fused_attend(q[:, :first], k_before, v_before, window, before, scale)
    blocks = q[:, first:].reshape(-1, size, *q.shape[2:])
    keys, values = (
        t[:, past + first + 1 - window :]
        .repeat_interleave(q.size(2) // t.size(2), 2)
        .unfold(1, size + window - 1, size)
        .movedim(-1, 2)
        .flatten(0, 1)
        for t in (k, v)
    )
    if documents is not None:
        documents = documents[:, past + first + 1 - window :]
        documents = documents.unfold(1, size + window - 1, size).flatten(0, 1)
    mask = _band(size, size + window - 1, window, q.device, documents)
    tail = _fused(blocks, keys, values, scale, mask=mask)
    return torch.cat([head, tail.reshape(q.size(0), -1, *q.shape[2:])], 1)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    groups = q.size(2) // k.size(2)
    if groups > 1 and (q.device.type == "cpu" or mask is not None):
        # These kernels do not group; expanding keys is cheaper than the math fallback.
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        groups = 1
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=groups > 1
    )
    return y.transpose(1, 2)


def _band(
    queries: int, keys: int, window: int, device: torch.device, documents: Tensor | None = None
) -> Tensor:
    """Which keys each query sees: (queries, keys), true on a band of ``window`` diagonals.

    With ``documents`` (batch, keys) it is (batch, 1, queries, keys), and true within one only.
    """
    past = keys - queries
    whole = torch.ones(queries, keys, dtype=torch.bool, device=device)
    band = whole.tril(past).triu(past + 1 - window)
    if documents is None:
        return band
    return band & (documents[:, None, past:, None] == documents[:, None, None])


def _alike(documents: Tensor) -> bool:
    """Whether every row holds one document; not asked where the answer would have to be waited for.

    On a CPU a mask that hides nothing changes no bit, so that what comes later changes none either.
    """
    if documents.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool((documents[:, :1] == documents[:, -1:]).all())


@orthogonalise.register("torch", when=lambda x, coefficients: True)
def fused_orthogonalise(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """The same iteration with the additions folded into ``baddbmm``."""
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, inner, x, beta=a)
    return x
