"""Root-mean-square normalisation in Triton: forward reads a row once, backward once more.

Backward computes the root mean square again, so that nothing is kept but ``x``. With r = 1 / rms(x)
and y = r x, the gradient by x is r (g - y mean(g y)).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segpt.kernels.launch import Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from .reference import RmsNormCall

EPSILON = torch.finfo(torch.float32).eps  # as torch's own has it
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


class TritonRmsNorm(Backend[RmsNormCall, Tensor]):
    """One kernel each way; statistics are in float32."""

    name, priority = "triton", 30

    def refusal(self, call: RmsNormCall) -> str | None:
        width = call.x.size(-1)
        if width > _WIDEST:
            return f"a row of {width:,} numbers does not fit one program; {_WIDEST:,} do"
        if call.x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it takes float32, float16 and bfloat16, not {call.x.dtype}"
        if torch.compiler.is_compiling():
            return "what torch.compile makes goes together with what is beside it"
        return None

    def run(self, call: RmsNormCall) -> Tensor:
        result: Tensor = _Normalised.apply(call.x)
        return result


def forward(x: Tensor, y: Tensor) -> Launch:
    """What makes ``y`` of ``x``, both (rows, width) and contiguous."""
    return _launch(forward_kernel, {"x": x, "y": y})


def backward(x: Tensor, slope: Tensor, result: Tensor) -> Launch:
    """What makes the gradient by ``x`` of that by y; all are (rows, width) and contiguous."""
    return _launch(backward_kernel, {"x": x, "slope": slope, "result": result})


def _launch(kernel: Any, tensors: dict[str, Tensor]) -> Launch:
    rows, width = tensors["x"].shape
    tile = tile_for(_tiles(triton.next_power_of_2(width)), tensors["x"])
    return Launch(
        kernel,
        (triton.cdiv(rows, tile.sizes["ROWS"]),),
        {**tensors, "rows": rows, "width": width, "epsilon": EPSILON},
        tile.sizes,
        warps=tile.warps,
        stages=tile.stages,
    )


def _tiles(block: int) -> Tiles:
    """Candidates for rows of up to ``block`` numbers: so many rows as there are 4,096, or 2,048."""
    warps = min(16, max(4, block // 512))
    rows = max(1, 4096 // block), max(1, 2048 // block)
    return {ANY: [Tile({"ROWS": count, "BLOCK": block}, warps, 3) for count in rows]}


class _Normalised(torch.autograd.Function):
    """Forward and backward of rows, whatever dimensions they are in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Like ``x`` (..., width)."""
        rows = x.reshape(-1, x.size(-1)).contiguous()
        y = torch.empty_like(rows)
        forward(rows, y).run()
        ctx.save_for_backward(rows)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        result = torch.empty_like(rows)
        backward(rows, slope.reshape(rows.shape).contiguous(), result).run()
        return result.view(slope.shape)
