"""Flash attention in Triton: the launches of its kernels, and the back end made of them."""

from typing import Any

import torch
import triton
from torch import Tensor

from segpt.kernels.launch import Constant, Launch
from segpt.kernels.registry import Backend

from .reference import AttentionCall
from .triton_kernels import forward_kernel, key_slope_kernel, query_slope_kernel

_WIDEST = 128  # channels of a head
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class TritonAttention(Backend[AttentionCall, Tensor]):
    """Every mask of the reference, forward and backward."""

    name, priority = "triton", 5  # below torch's own, until it has been measured against that

    def refusal(self, call: AttentionCall) -> str | None:
        if call.q.size(3) > _WIDEST:
            return f"heads have up to {_WIDEST} channels, and these {call.q.size(3)}"
        if call.q.dtype not in _TYPES:
            return f"it takes float32, float16 and bfloat16, not {call.q.dtype}"
        return None

    def run(self, call: AttentionCall) -> Tensor:
        q, k, v = (t.contiguous() for t in (call.q, call.k, call.v))
        first = None if call.documents is None else first_keys(call.documents, q.size(1))
        scale = q.size(3) ** -0.5 if call.scale is None else call.scale
        result: Tensor = _Attended.apply(q, k, v, first, call.window, scale)
        return result


def first_keys(documents: Tensor, queries: int) -> Tensor:
    """Where the document of each query begins, (batch, queries) in int32, of (batch, keys)."""
    batch, keys = documents.shape
    place = torch.arange(keys, device=documents.device).expand(batch, keys)
    begins = documents.new_ones(batch, keys, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first = place.masked_fill(~begins, 0).cummax(1).values
    return first[:, keys - queries :].to(torch.int32).contiguous()


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None,
    window: int | None,
    scale: float,
    results: tuple[Tensor, Tensor],
) -> Launch:
    """What makes the result, like ``q``, and log Z, (batch, heads, queries) in float32."""
    made = dict(zip(("result", "log_z"), results, strict=True))
    tiles = _tiles(forward_kernel, q)
    programs = triton.cdiv(q.size(1), tiles["QUERIES"]), q.size(0) * q.size(2)
    tensors = {"q": q, "k": k, "v": v, "first": q if first is None else first, **made}
    return _launch(forward_kernel, programs, tensors, first, window, scale, tiles)


def query_slopes(
    tensors: dict[str, Tensor],
    by_q: Tensor,
    first: Tensor | None,
    window: int | None,
    scale: float,
) -> Launch:
    """What makes ``by_q``, like q; ``tensors`` are q, k, v, log_z, slope and along.

    ``slope`` is like q, log_z and along are (batch, heads, queries), and first is as
    :func:`first_keys` has it.
    """
    q = tensors["q"]
    tiles = _tiles(query_slope_kernel, q)
    programs = triton.cdiv(q.size(1), tiles["QUERIES"]), q.size(0) * q.size(2)
    tensors = {**tensors, "first": q if first is None else first, "by_q": by_q}
    return _launch(query_slope_kernel, programs, tensors, first, window, scale, tiles)


def key_slopes(
    tensors: dict[str, Tensor],
    results: tuple[Tensor, Tensor],
    first: Tensor | None,
    window: int | None,
    scale: float,
) -> Launch:
    """What makes the gradients by k and v, in the shapes of those.

    The tensors are the same as for :func:`query_slopes`.
    """
    k = tensors["k"]
    tiles = _tiles(key_slope_kernel, tensors["q"])
    programs = triton.cdiv(k.size(1), tiles["KEYS"]), k.size(0) * k.size(2)
    made = dict(zip(("by_k", "by_v"), results, strict=True))
    tensors = {**tensors, "first": tensors["q"] if first is None else first, **made}
    return _launch(key_slope_kernel, programs, tensors, first, window, scale, tiles)


def _launch(
    kernel: Any,
    programs: tuple[int, int],
    tensors: dict[str, Tensor],
    first: Tensor | None,
    window: int | None,
    scale: float,
    tiles: dict[str, int],
) -> Launch:
    q, k = tensors["q"], tensors["k"]
    numbers: dict[str, float] = {"queries": q.size(1), "keys": k.size(1), "heads": q.size(2)}
    numbers |= {"kv_heads": k.size(2), "channels": q.size(3)}
    numbers |= {"window": window or 0, "scale": float(scale)}
    exact = q.dtype == torch.float32
    fixed: dict[str, Constant] = {"WINDOWED": window is not None, "DOCUMENTS": first is not None}
    fixed |= tiles | {"PRECISION": "ieee" if exact else "tf32"}
    # What loads ahead takes registers, of which exact products and two sums have none to spare.
    ahead = not exact and kernel is not key_slope_kernel
    return Launch(
        kernel,
        programs,
        {**tensors, **numbers},
        fixed,
        warps=8,
        stages=2 if ahead else 1,
    )


# Queries and keys of a tile for 16-bit numbers: of those tried, the largest that spill on none of
# the architectures for which they are compiled (bench/kernel_builds.py).
_TILES = {forward_kernel: (128, 32), query_slope_kernel: (64, 64), key_slope_kernel: (32, 64)}


def _tiles(kernel: Any, q: Tensor) -> dict[str, int]:
    """Queries, keys and channels of a tile."""
    channels = max(16, triton.next_power_of_2(q.size(3)))
    queries, keys = (32, 32) if q.dtype == torch.float32 else _TILES[kernel]
    return {"QUERIES": queries, "KEYS": keys, "CHANNELS": channels}


class _Attended(torch.autograd.Function):
    """Forward keeps what it was made of, the result and log Z."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        first: Tensor | None,
        window: int | None,
        scale: float,
    ) -> Tensor:
        """The result, in the shape of ``q``; see :class:`AttentionCall`."""
        result = torch.empty_like(q)
        log_z = torch.empty(q.size(0), q.size(2), q.size(1), device=q.device)
        forward(q, k, v, first, window, scale, (result, log_z)).run()
        ctx.save_for_backward(q, k, v, result, log_z)
        ctx.mask = first, window, scale
        return result

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, result, log_z = ctx.saved_tensors
        slope = slope.contiguous()
        along = (slope.float() * result.float()).sum(-1).transpose(1, 2).contiguous()
        tensors = {"q": q, "k": k, "v": v, "log_z": log_z, "slope": slope, "along": along}
        by_q, by_k, by_v = (torch.empty_like(t) for t in (q, k, v))
        query_slopes(tensors, by_q, *ctx.mask).run()
        key_slopes(tensors, (by_k, by_v), *ctx.mask).run()
        return by_q, by_k, by_v, None, None, None
