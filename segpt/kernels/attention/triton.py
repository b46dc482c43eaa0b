"""Flash attention in Triton: the launches of its kernels, and the back end made of them."""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from segpt.kernels.launch import Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ALL_REGISTERS, ANY, Tile, Tiles, tile_for

from .cached import CachedCall
from .reference import AttentionCall
from .triton_kernels import forward_kernel, key_slope_kernel, query_slope_kernel

_WIDEST = 128  # channels of a head
_MOST_PROGRAMS = 65_535  # along the second axis of a grid
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class TritonAttention(Backend[AttentionCall, Tensor]):
    """Every mask of the reference, forward and backward."""

    name, priority = "triton", 5  # below torch's own, until it has been measured against that

    def refusal(self, call: AttentionCall) -> str | None:
        return _refusal(call.q)

    def run(self, call: AttentionCall) -> Tensor:
        q, k, v = (t.contiguous() for t in (call.q, call.k, call.v))
        first = None if call.documents is None else first_keys(call.documents, q.size(1))
        scale = q.size(3) ** -0.5 if call.scale is None else call.scale
        result: Tensor = _Attended.apply(q, k, v, first, call.window, scale)
        return result


class TritonCachedAttention(Backend[CachedCall, Tensor]):
    """Keys stay in their slots; forward only."""

    name, priority = "triton", 5

    def refusal(self, call: CachedCall) -> str | None:
        tensors = call.q, call.ring.keys, call.ring.values
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return "it makes no gradients"
        return _refusal(call.q)

    def run(self, call: CachedCall) -> Tensor:
        ring = call.ring._replace(
            keys=call.ring.keys.contiguous(), values=call.ring.values.contiguous()
        )
        call = call._replace(q=call.q.contiguous(), ring=ring)
        first = None if call.documents is None else first_keys(call.documents, call.q.size(1))
        result = torch.empty_like(call.q)
        forward_cached(call, first, result).run()
        return result


def _refusal(q: Tensor) -> str | None:
    if q.size(3) > _WIDEST:
        return f"heads have up to {_WIDEST} channels, and these {q.size(3)}"
    if q.dtype not in _TYPES:
        return f"it takes float32, float16 and bfloat16, not {q.dtype}"
    if (programs := q.size(0) * q.size(2)) > _MOST_PROGRAMS:
        return f"sequences times heads are up to {_MOST_PROGRAMS:,}, and these {programs:,}"
    return None


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
    tile = _tile_of(forward_kernel, q)
    programs = triton.cdiv(q.size(1), tile.sizes["QUERIES"]), q.size(0) * q.size(2)
    tensors = {"q": q, "k": k, "v": v, "first": q if first is None else first, **made}
    made_of = _launch(forward_kernel, programs, tensors, first, window, scale, tile)
    slots = {"slots": k.size(1), "begin": 0}
    return made_of._replace(
        arguments={**made_of.arguments, **slots}, constants={**made_of.constants, "RING": False}
    )


def forward_cached(call: CachedCall, first: Tensor | None, result: Tensor) -> Launch:
    """What makes the result, in the shape of the queries; ``first`` is of :func:`first_keys`."""
    q, ring = call.q, call.ring
    scale = q.size(3) ** -0.5 if call.scale is None else call.scale
    of_all = forward(q, ring.keys, ring.values, first, call.window, scale, (result, result))
    numbers = {"keys": ring.length, "slots": ring.keys.size(1), "begin": ring.begin}
    return of_all._replace(
        arguments={**of_all.arguments, **numbers}, constants={**of_all.constants, "RING": True}
    )


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
    tile = _tile_of(query_slope_kernel, q)
    programs = triton.cdiv(q.size(1), tile.sizes["QUERIES"]), q.size(0) * q.size(2)
    tensors = {**tensors, "first": q if first is None else first, "by_q": by_q}
    return _launch(query_slope_kernel, programs, tensors, first, window, scale, tile)


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
    tile = _tile_of(key_slope_kernel, tensors["q"])
    programs = triton.cdiv(k.size(1), tile.sizes["KEYS"]), k.size(0) * k.size(2)
    made = dict(zip(("by_k", "by_v"), results, strict=True))
    tensors = {**tensors, "first": tensors["q"] if first is None else first, **made}
    return _launch(key_slope_kernel, programs, tensors, first, window, scale, tile)


def _launch(
    kernel: Any,
    programs: tuple[int, int],
    tensors: dict[str, Tensor],
    first: Tensor | None,
    window: int | None,
    scale: float,
    tile: Tile,
) -> Launch:
    q, k = tensors["q"], tensors["k"]
    numbers: dict[str, float] = {"queries": q.size(1), "keys": k.size(1), "heads": q.size(2)}
    numbers |= {"kv_heads": k.size(2), "channels": q.size(3)}
    numbers |= {"window": window or 0, "scale": float(scale)}
    exact = q.dtype == torch.float32
    fixed: dict[str, Constant] = {"WINDOWED": window is not None, "DOCUMENTS": first is not None}
    fixed |= {**tile.sizes, "PRECISION": "ieee" if exact else "tf32"}
    return Launch(
        kernel,
        programs,
        {**tensors, **numbers},
        fixed,
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def _tile(queries: int, keys: int, warps: int, stages: int, registers: int | None = None) -> Tile:
    return Tile({"QUERIES": queries, "KEYS": keys}, warps, stages, registers)


# For 16-bit numbers: tiles that spill under no mask, with heads of up to 128 channels, and fit 99
# KiB of shared memory, or 227 on 90, where tensor cores multiply larger tiles at once.
_FORWARD: Tiles = {
    ANY: [_tile(128, 32, 8, 2), _tile(128, 32, 8, 3), _tile(64, 32, 8, 2)],
    90: [_tile(128, 64, 8, 2), _tile(128, 32, 8, 2), _tile(64, 64, 4, 3)],
    120: [_tile(128, 32, 8, 2), _tile(64, 32, 8, 2, ALL_REGISTERS)],
}
_QUERY_SLOPES: Tiles = {
    ANY: [_tile(64, 64, 8, 2), _tile(128, 32, 8, 2), _tile(64, 32, 4, 2)],
    90: [_tile(64, 64, 8, 2), _tile(128, 64, 8, 2), _tile(64, 64, 4, 2)],
}
_KEY_SLOPES: Tiles = {
    ANY: [_tile(32, 64, 8, 1), _tile(32, 64, 8, 2)],
    90: [_tile(32, 64, 8, 1), _tile(32, 64, 8, 2), _tile(32, 128, 8, 1)],
    100: [_tile(32, 64, 8, 1), _tile(32, 128, 8, 1)],
}
_TILES = {
    forward_kernel: _FORWARD,
    query_slope_kernel: _QUERY_SLOPES,
    key_slope_kernel: _KEY_SLOPES,
}
# For float32, with up to 64 channels and with more: exact products leave no registers for what
# loads ahead, and take all that there are.
_EXACT: Tiles = {
    ANY: [_tile(32, 32, 8, 1, ALL_REGISTERS), _tile(16, 32, 4, 1, ALL_REGISTERS)],
}
_EXACT_WIDE: Tiles = {ANY: [_tile(16, 16, 4, 1, ALL_REGISTERS)]}


def _tile_of(kernel: Any, q: Tensor) -> Tile:
    """Queries, keys and channels of a tile."""
    channels = max(16, triton.next_power_of_2(q.size(3)))
    exact = _EXACT if channels <= 64 else _EXACT_WIDE
    tile = tile_for(exact if q.dtype == torch.float32 else _TILES[kernel], q)
    return tile._replace(sizes={**tile.sizes, "CHANNELS": channels})


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
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, result, log_z = ctx.saved_tensors
        slope = slope.contiguous()
        along = (slope.float() * result.float()).sum(-1).transpose(1, 2).contiguous()
        tensors = {"q": q, "k": k, "v": v, "log_z": log_z, "slope": slope, "along": along}
        by_q, by_k, by_v = (torch.empty_like(t) for t in (q, k, v))
        query_slopes(tensors, by_q, *ctx.mask).run()
        key_slopes(tensors, (by_k, by_v), *ctx.mask).run()
        return by_q, by_k, by_v, None, None, None
