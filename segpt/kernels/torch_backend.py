"""Back ends from torch itself: fused attention and batched matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import attend, orthogonalise


@attend.register("torch", when=lambda q, k, v: True)
def fused_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``scaled_dot_product_attention``, which picks flash, memory-efficient or math kernels."""
    groups = q.size(2) // k.size(2)
    if q.device.type == "cpu" and groups > 1:
        # The CPU flash kernel does not group; expanding keys is cheaper than its math fallback.
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        groups = 1
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.size(2) == k.size(2):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    elif q.size(2) == 1:
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=groups > 1)
    else:
        past = k.size(2) - q.size(2)
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril(past)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups > 1)
    return y.transpose(1, 2)


@orthogonalise.register("torch", when=lambda x, coefficients: True)
def fused_orthogonalise(x: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """The same iteration with the additions folded into ``baddbmm``."""
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, inner, x, beta=a)
    return x
