"""Attention by ``scaled_dot_product_attention``: flash, memory-efficient or math kernels.

With a window, queries go in blocks, so that time and memory grow with queries times window::

          keys  ->  first window          blocks of `size` queries
    queries    +---------------------+
       |  head |#####                |    before: every key up to here is seen by some query
       v       |  ######             |    of the head
         tail  |    [######]         |    a block sees size + window - 1 keys, and the band
               |        [######]     |    within them is one mask for all blocks
               +---------------------+
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from segpt.kernels.registry import Backend

from .reference import AttentionCall

_BLOCK = 32  # queries of one sequence that see their keys together, where no key is copied


class TorchAttention(Backend[AttentionCall, Tensor]):
    """Fused attention of torch itself; it takes every call."""

    name, priority = "torch", 10

    def refusal(self, call: AttentionCall) -> str | None:
        return None

    def run(self, call: AttentionCall) -> Tensor:
        q, k, v, window, documents, scale = call
        queries = q.size(1)
        if window is not None:
            reach = slice(-(queries + window - 1), None)
            k, v = k[:, reach], v[:, reach]
            documents = None if documents is None else documents[:, reach]
        if documents is not None and _same_document(documents):
            documents = None
        call = AttentionCall(q, k, v, window, documents, scale)
        keys = k.size(1)
        if window is None or keys <= window:
            if documents is None and keys == queries:
                return _fused(call, causal=True)
            if documents is None and queries == 1:
                return _fused(call)
            return _fused(call, mask=_band(queries, keys, keys, q.device, documents))
        if queries <= 2 * window:
            return _fused(call, mask=_band(queries, keys, window, q.device, documents))
        return self._in_blocks(call, window)

    def _in_blocks(self, call: AttentionCall, window: int) -> Tensor:
        """The last queries in blocks, each with the window of keys before it.

        What is left over goes first, with those that too few keys come before.
        """
        q, k, v, _, documents, scale = call
        queries, past = q.size(1), k.size(1) - q.size(1)
        size = min(_BLOCK, window) if q.device.type == "cpu" and q.size(0) == 1 else window
        count = min(queries, k.size(1) + 1 - window) // size
        first = queries - count * size  # queries of the head
        seen_by_head, seen_by_tail = slice(past + first), slice(past + first + 1 - window, None)
        head = self.run(
            AttentionCall(
                q[:, :first],
                k[:, seen_by_head],
                v[:, seen_by_head],
                window,
                None if documents is None else documents[:, seen_by_head],
                scale,
            )
        )
        blocks = q[:, first:].reshape(-1, size, *q.shape[2:])
        # (batch, keys, heads, channels) to (batch * blocks, size + window - 1, heads, channels)
        block_keys, block_values = (
            t[:, seen_by_tail]
            .repeat_interleave(q.size(2) // t.size(2), 2)
            .unfold(1, size + window - 1, size)
            .movedim(-1, 2)
            .flatten(0, 1)
            for t in (k, v)
        )
        if documents is not None:
            documents = documents[:, seen_by_tail]
            documents = documents.unfold(1, size + window - 1, size).flatten(0, 1)
        mask = _band(size, size + window - 1, window, q.device, documents)
        tail = _fused(AttentionCall(blocks, block_keys, block_values, scale=scale), mask=mask)
        return torch.cat([head, tail.reshape(q.size(0), -1, *q.shape[2:])], 1)


def _fused(call: AttentionCall, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """One call of torch's kernel; of ``call`` it reads q, k, v and the scale."""
    q, k, v, scale = call.q, call.k, call.v, call.scale
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


def _same_document(documents: Tensor) -> bool:
    """Whether every row holds one document; not asked where the answer would have to be waited for.

    On a CPU a mask that hides nothing changes no bit, so that what comes later changes none either.
    """
    if documents.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool((documents[:, :1] == documents[:, -1:]).all())
