"""Attention in the shapes, types and masks that it meets."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .case import BF16, FP16, FP32, TYPES, Case, meta, short


class _Heads(NamedTuple):
    """Sizes of an attention: sequences, queries, keys, heads, heads of keys, channels."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    channels: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


def cases() -> Iterator[Case]:
    """Heads of 32 to 128 channels, grouped or not, cached or not, under every mask; then rings."""
    yield from _of_tensors()
    yield from _of_rings()


def _of_rings() -> Iterator[Case]:
    from segpt.kernels.attention import triton as attention
    from segpt.kernels.attention.cached import CachedCall, Ring

    for dtype in TYPES:
        for size in (_Heads(32, 64, 1087, 8, 4, 64), _Heads(8, 256, 2303, 12, 12, 128)):
            q = meta(dtype, size.batch, size.queries, size.heads, size.channels)
            keys = meta(dtype, size.batch, 4096, size.kv_heads, size.channels)
            starts = torch.empty(size.batch, size.queries, dtype=torch.int32, device="meta")
            for first in (None, starts):
                call = CachedCall(q, Ring(keys, keys, 77, size.keys), 1024)
                name = f"{size} {short(dtype)}{' documents' * (first is not None)}"
                usual = dtype == BF16 and first is None
                launch = attention.forward_cached(call, first, q)
                yield Case(f"attention of a ring {name}", launch, usual)


def _of_tensors() -> Iterator[Case]:
    from segpt.kernels.attention import triton as attention

    sizes = (
        _Heads(8, 2048, 2048, 8, 4, 64),
        _Heads(4, 1024, 1024, 12, 12, 128),
        _Heads(16, 1, 1024, 8, 2, 32),
        _Heads(2, 333, 777, 6, 3, 48),
    )
    for dtype in TYPES:
        for size in sizes:
            q = meta(dtype, size.batch, size.queries, size.heads, size.channels)
            k, v = (
                meta(dtype, size.batch, size.keys, size.kv_heads, size.channels) for _ in range(2)
            )
            log_z, along = (
                meta(torch.float32, size.batch, size.heads, size.queries) for _ in range(2)
            )
            starts = torch.empty(size.batch, size.queries, dtype=torch.int32, device="meta")
            tensors = {"q": q, "k": k, "v": v, "log_z": log_z, "slope": q, "along": along}
            for window in (None, 256):
                for first in (None, starts):
                    masks = " windowed" * (window is not None) + " documents" * (first is not None)
                    name = f"{size} {short(dtype)}{masks}"
                    mask = first, window, 0.125
                    of_all = window is not None and first is not None
                    usual = (dtype, size.channels) == (BF16, 64) or (
                        dtype, size.channels, of_all
                    ) in ((BF16, 128, False), (FP16, 48, True), (FP32, 32, True))  # fmt: skip
                    forward = attention.forward(q, k, v, *mask, (q, log_z))
                    yield Case(f"attention forward {name}", forward, usual)
                    by_queries = attention.query_slopes(tensors, q, *mask)
                    yield Case(f"attention by queries {name}", by_queries, usual)
                    by_keys = attention.key_slopes(tensors, (k, v), *mask)
                    yield Case(f"attention by keys {name}", by_keys, usual)
