"""Root-mean-square normalisation in Triton: forward reads a row once, backward once more.

Backward computes the root mean square again, so that nothing is kept but ``x``. With r = 1 / rms(x)
and y = r x, the gradient by x is r (g - y mean(g y)).

A norm of a sum is as one kernel each way, too. It keeps the sum, which goes on beside the norm
anyhow; the gradient by what was added is that by the sum: of its own, plus that through the norm.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from segpt.kernels.launch import Argument, Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from .reference import AddNorm, AddNormCall, RmsNormCall

EPSILON = torch.finfo(torch.float32).eps  # as torch's own has it, where a call names none
_WIDEST = 1 << 14  # channels that the registers of one program hold


@triton.jit
def _inverse_rms(x, width, epsilon):
    return 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + epsilon)


@triton.jit
def forward_kernel(x, y, rows, width, epsilon, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of y (rows, width) from those of x; each program takes ROWS of them."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    place = row[:, None] * width + channel[None]
    inside = (row < rows)[:, None] & (channel < width)[None]
    value = tl.load(x + place, inside, other=0.0).to(tl.float32)
    scaled = value * _inverse_rms(value, width, epsilon)[:, None]
    tl.store(y + place, scaled.to(y.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    x, slope, result, rows, width, epsilon, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradient by x (rows, width) from x and ``slope``, the gradient by y."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    place = row[:, None] * width + channel[None]
    inside = (row < rows)[:, None] & (channel < width)[None]
    value = tl.load(x + place, inside, other=0.0).to(tl.float32)
    by_y = tl.load(slope + place, inside, other=0.0).to(tl.float32)
    inverse = _inverse_rms(value, width, epsilon)[:, None]
    y = value * inverse
    along = (tl.sum(by_y * y, 1) / width)[:, None]
    tl.store(result + place, (inverse * (by_y - y * along)).to(result.dtype.element_ty), inside)


@triton.jit
def add_forward_kernel(
    x,
    residual,
    scales,
    total,
    normed,
    rows,
    width,
    epsilon,
    scale,
    step,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of ``total`` and of its scaled norm (rows, width).

    The scale of row i is scales[i * step] if the launch is SCALED, else ``scale``.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    place = row[:, None] * width + channel[None]
    inside = (row < rows)[:, None] & (channel < width)[None]
    value = tl.load(x + place, inside, other=0.0).to(tl.float32)
    value += tl.load(residual + place, inside, other=0.0).to(tl.float32)
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + place, rounded, inside)
    value = rounded.to(tl.float32)  # what backward reads
    inverse = _inverse_rms(value, width, epsilon)
    if SCALED:
        inverse *= tl.load(scales + row * step, row < rows, other=0.0)
    else:
        inverse *= scale
    tl.store(normed + place, (value * inverse[:, None]).to(normed.dtype.element_ty), inside)


@triton.jit
def add_backward_kernel(
    total,
    slope,
    along_slope,
    scales,
    result,
    by_scale,
    rows,
    width,
    epsilon,
    scale,
    step,
    SCALED: tl.constexpr,
    ALONG: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient by the sum (rows, width), and by the scale of each row (rows,) if SCALED.

    ``slope`` is the gradient by the norm, ``along_slope`` that by the sum itself if ALONG.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    place = row[:, None] * width + channel[None]
    inside = (row < rows)[:, None] & (channel < width)[None]
    value = tl.load(total + place, inside, other=0.0).to(tl.float32)
    by_y = tl.load(slope + place, inside, other=0.0).to(tl.float32)
    inverse = _inverse_rms(value, width, epsilon)
    y = value * inverse[:, None]
    along = tl.sum(by_y * y, 1)
    if SCALED:
        tl.store(by_scale + row, along, row < rows)
        inverse *= tl.load(scales + row * step, row < rows, other=0.0)
    else:
        inverse *= scale
    by_x = inverse[:, None] * (by_y - y * (along / width)[:, None])
    if ALONG:
        by_x += tl.load(along_slope + place, inside, other=0.0).to(tl.float32)
    tl.store(result + place, by_x.to(result.dtype.element_ty), inside)


class TritonRmsNorm(Backend[RmsNormCall, Tensor]):
    """One kernel each way; statistics are in float32."""

    name, priority = "triton", 30

    def refusal(self, call: RmsNormCall) -> str | None:
        return _refusal(call.x)

    def run(self, call: RmsNormCall) -> Tensor:
        result: Tensor = _Normalised.apply(*call)
        return result


class TritonAddNorm(Backend[AddNormCall, AddNorm]):
    """The same of a sum."""

    name, priority = "triton", 30

    def refusal(self, call: AddNormCall) -> str | None:
        x, residual, scale, _ = call
        if x.shape != residual.shape:
            return "what is added has another shape"
        if isinstance(scale, Tensor) and scale.shape not in ((), x.shape[:-1]):
            return "the scale is neither a number nor one for each row"
        return _refusal(x) or _refusal(residual)

    def run(self, call: AddNormCall) -> AddNorm:
        return AddNorm(*_Added.apply(*call))


def _refusal(x: Tensor) -> str | None:
    """Why rows (..., width) cannot be read, or None."""
    if x.size(-1) > _WIDEST:
        return f"a row of {x.size(-1):,} numbers does not fit one program; {_WIDEST:,} do"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16, not {x.dtype}"
    if torch.compiler.is_compiling():
        return "what torch.compile makes goes together with what is beside it"
    return None


def forward(x: Tensor, y: Tensor, eps: float | None = None) -> Launch:
    """What makes ``y`` of ``x``, both (rows, width) and contiguous."""
    return _launch(forward_kernel, {"x": x, "y": y}, eps)


def backward(x: Tensor, slope: Tensor, result: Tensor, eps: float | None = None) -> Launch:
    """What makes the gradient by ``x`` of that by y; all are (rows, width) and contiguous."""
    return _launch(backward_kernel, {"x": x, "slope": slope, "result": result}, eps)


def add_forward(
    x: Tensor,
    residual: Tensor,
    scale: float | Tensor,
    total: Tensor,
    normed: Tensor,
    eps: float | None = None,
) -> Launch:
    """What makes ``total`` and ``normed``; tensors are (rows, width), but the scale () or (rows,).

    They are contiguous, and a scale that is a tensor is in float32.
    """
    tensors = {"x": x, "residual": residual, "total": total, "normed": normed}
    return _launch(add_forward_kernel, tensors, eps, scale)


def add_backward(
    total: Tensor,
    slopes: tuple[Tensor, Tensor | None],
    scale: float | Tensor,
    result: Tensor,
    by_scale: Tensor | None,
    eps: float | None = None,
) -> Launch:
    """What makes ``result``, the gradient by ``total``, both (rows, width).

    ``slopes`` are the gradients by the norm and by the sum itself. A scale that is a tensor, () or
    (rows,) in float32, has one (rows,) of its own, in ``by_scale``.
    """
    by_norm, by_total = slopes
    along = total if by_total is None else by_total
    tensors = {"total": total, "slope": by_norm, "along_slope": along, "result": result}
    tensors["by_scale"] = total if by_scale is None else by_scale
    constants: dict[str, Constant] = {"ALONG": by_total is not None}
    return _launch(add_backward_kernel, tensors, eps, scale, constants)


def _launch(
    kernel: Any,
    tensors: dict[str, Tensor],
    eps: float | None,
    scale: float | Tensor | None = None,
    constants: dict[str, Constant] | None = None,
) -> Launch:
    first = next(iter(tensors.values()))
    rows, width = first.shape
    tiles = _tiles(triton.next_power_of_2(width), adds=scale is not None)
    tile = tile_for(tiles, first)
    arguments: dict[str, Argument] = {**tensors, "rows": rows, "width": width}
    arguments["epsilon"] = EPSILON if eps is None else eps
    fixed: dict[str, Constant] = {**tile.sizes, **(constants or {})}
    if scale is not None:
        fixed["SCALED"] = isinstance(scale, Tensor)
        arguments["scales"] = scale if isinstance(scale, Tensor) else first
        arguments["scale"] = 1.0 if isinstance(scale, Tensor) else float(scale)
        arguments["step"] = int(isinstance(scale, Tensor) and scale.dim() > 0)
    programs = (triton.cdiv(rows, tile.sizes["ROWS"]),)
    return Launch(kernel, programs, arguments, fixed, warps=tile.warps, stages=tile.stages)


def _tiles(block: int, *, adds: bool) -> Tiles:
    """Candidates for rows of up to ``block`` numbers: so many rows as there are 4,096, or 2,048.

    Sums take registers for one more of each number, so that there are half as many.
    """
    warps = min(16, max(4, block // 512))
    most = 2048 if adds else 4096
    rows = max(1, most // block), max(1, most // 2 // block)
    return {ANY: [Tile({"ROWS": count, "BLOCK": block}, warps, 3) for count in rows]}


class _Normalised(torch.autograd.Function):
    """Forward and backward of rows, whatever dimensions they are in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float | None) -> Tensor:
        """Like ``x`` (..., width)."""
        rows = x.reshape(-1, x.size(-1)).contiguous()
        y = torch.empty_like(rows)
        forward(rows, y, eps).run()
        ctx.save_for_backward(rows)
        ctx.eps = eps
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        result = torch.empty_like(rows)
        backward(rows, slope.reshape(rows.shape).contiguous(), result, ctx.eps).run()
        return result.view(slope.shape), None


class _Added(torch.autograd.Function):
    """Forward and backward of the norm of a sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, scale: float | Tensor, eps: float | None
    ) -> tuple[Tensor, Tensor]:
        """The sum and its norm, in the shape of ``x``; see :class:`AddNormCall`."""
        width = x.size(-1)
        rows, added = (t.reshape(-1, width).contiguous() for t in (x, residual))
        total = rows.new_empty(rows.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
        normed = torch.empty_like(total)
        ctx.set_materialize_grads(False)
        ctx.types, ctx.scale, ctx.eps = (x.dtype, residual.dtype), scale, eps
        if isinstance(scale, Tensor):
            ctx.about, ctx.scale = (scale.shape, scale.dtype), None
            scale = _flat(scale)
        add_forward(rows, added, scale, total, normed, eps).run()
        ctx.save_for_backward(total, *([scale] if isinstance(scale, Tensor) else []))
        return total.view(x.shape), normed.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor | None, by_norm: Tensor | None) -> tuple[Any, ...]:
        if by_norm is None:
            sums = (None if by_total is None else by_total.to(dtype) for dtype in ctx.types)
            return (*sums, None, None)
        total, *scales = ctx.saved_tensors
        slope = by_norm.reshape(total.shape).contiguous()
        along = None if by_total is None else by_total.reshape(total.shape).contiguous()
        scale = scales[0] if scales else ctx.scale
        by_scale = torch.empty(len(total), device=total.device) if scales else None
        result = torch.empty_like(total)
        add_backward(total, (slope, along), scale, result, by_scale, ctx.eps).run()
        by_x, by_residual = (result.view(by_norm.shape).to(dtype) for dtype in ctx.types)
        if by_scale is not None:
            shape, dtype = ctx.about
            by_scale = (by_scale.view(shape) if shape else by_scale.sum()).to(dtype)
        return by_x, by_residual, by_scale, None


def _flat(scale: Tensor) -> Tensor:
    return (scale if scale.dim() == 0 else scale.flatten()).float().contiguous()
