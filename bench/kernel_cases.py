"""The launches that are compiled and checked: each kernel in the shapes and types that it meets."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from segpt.kernels.launch import Launch

BF16, FP16, FP32 = TYPES = (torch.bfloat16, torch.float16, torch.float32)


class Case(NamedTuple):
    """A launch with a name, unique among all; the ``usual`` ones stand for the others in tests."""

    name: str
    launch: Launch
    usual: bool


def cases() -> list[Case]:
    """All of them."""
    return [*_rms_norm(), *_newton_schulz(), *_token_loss(), *_attention()]


def _rms_norm() -> Iterator[Case]:
    """Heads, streams from small to wide, and one whose rows have no round length."""
    from segpt.kernels.rms_norm import triton as rms_norm

    for dtype in TYPES:
        for rows, width in (
            (1 << 18, 64),
            (1 << 15, 512),
            (1 << 15, 768),
            (4096, 8192),
            (999, 100),
        ):
            x, y, slope = (_tensor(dtype, rows, width) for _ in range(3))
            name = f"{rows}x{width} {_short(dtype)}"
            usual = (dtype, width) in ((BF16, 512), (BF16, 100), (FP32, 64))
            yield Case(f"rms_norm forward {name}", rms_norm.forward(x, y), usual)
            yield Case(f"rms_norm backward {name}", rms_norm.backward(x, slope, y), usual)


def _newton_schulz() -> Iterator[Case]:
    """Square and wide matrices; one whose sizes no tile divides."""
    from segpt.kernels.newton_schulz import triton as newton_schulz

    for dtype in TYPES:
        for matrices, size, inner in ((12, 512, 512), (4, 768, 3072), (8, 64, 256), (3, 200, 333)):
            x, gram = _tensor(dtype, matrices, size, inner), _tensor(dtype, matrices, size, size)
            name = f"{matrices}x{size}x{inner} {_short(dtype)}"
            usual = (dtype, size) in ((BF16, 768), (FP16, 200))
            product = newton_schulz.symmetric_product
            yield Case(f"newton_schulz gram {name}", product(x, gram), usual)
            inner_product = product(gram, gram, 2.0315, gram, -4.775)
            yield Case(f"newton_schulz inner {name}", inner_product, usual)


def _token_loss() -> Iterator[Case]:
    """With and without a cap; a vocabulary and a width that no tile divides."""
    from segpt.kernels.cross_entropy import LinearHead
    from segpt.kernels.cross_entropy import triton as token_loss

    for dtype in TYPES:
        for rows, vocab, width in ((1 << 16, 8192, 512), (4096, 50_257, 768), (999, 257, 100)):
            hidden, weight = _tensor(dtype, rows, width), _tensor(dtype, vocab, width)
            targets = torch.empty(rows, dtype=torch.int64, device="meta")
            log_z, picked, share = (_tensor(torch.float32, rows) for _ in range(3))
            slope = _tensor(dtype, rows, vocab)
            for softcap in (None, 30.0):
                head = LinearHead(weight, 1.0, softcap)
                name = f"{rows}x{vocab}x{width} {_short(dtype)}{' capped' * (softcap is not None)}"
                usual = (dtype, vocab, softcap) in (
                    (BF16, 8192, 30.0), (FP16, 50_257, None), (FP32, 257, None)
                )  # fmt: skip
                normalise = token_loss.normalise(hidden, weight, head, targets, (log_z, picked))
                yield Case(f"token_loss log Z {name}", normalise, usual)
                slopes = token_loss.slopes(hidden, weight, head, targets, log_z, share, 1e-4, slope)
                yield Case(f"token_loss slope {name}", slopes, usual)


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


def _attention() -> Iterator[Case]:
    """Heads of 32 to 128 channels, grouped or not, cached or not, under every mask."""
    from segpt.kernels.attention import triton as attention

    sizes = (
        _Heads(8, 2048, 2048, 8, 4, 64),
        _Heads(4, 1024, 1024, 12, 12, 128),
        _Heads(16, 1, 1024, 8, 2, 32),
        _Heads(2, 333, 777, 6, 3, 48),
    )
    for dtype in TYPES:
        for size in sizes:
            q = _tensor(dtype, size.batch, size.queries, size.heads, size.channels)
            k, v = (
                _tensor(dtype, size.batch, size.keys, size.kv_heads, size.channels)
                for _ in range(2)
            )
            log_z, along = (
                _tensor(torch.float32, size.batch, size.heads, size.queries) for _ in range(2)
            )
            starts = torch.empty(size.batch, size.queries, dtype=torch.int32, device="meta")
            tensors = {"q": q, "k": k, "v": v, "log_z": log_z, "slope": q, "along": along}
            for window in (None, 256):
                for first in (None, starts):
                    masks = " windowed" * (window is not None) + " documents" * (first is not None)
                    name = f"{size} {_short(dtype)}{masks}"
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


def _tensor(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
