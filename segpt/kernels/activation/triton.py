"""act(x W^T) in Triton: the activation is taken where the product is made, and only it is written.

Forward keeps x and W. Backward makes each tile of the pre-activation once more, multiplies the
derivative by what comes from above, and writes that; two products of the library do the rest::

    x, W --forward_kernel-----------> act(x W^T)                 (rows, hidden)
    x, W, slope --slope_kernel------> slope of x W^T             (rows, hidden or 2 hidden)
                                      slope W   -> gradient of x
                                      slope^T x -> gradient of W

With ``swiglu`` a program makes the tile of both halves, so that x is loaded once for both.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from segpt.config.layer import Activation
from segpt.kernels.launch import Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from .reference import FeedCall

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_ACTIVATIONS: tuple[Activation, ...] = ("relu2", "leaky_relu2", "silu", "swiglu")
_FEW = 32  # rows that a low tile takes, as where text is generated


@triton.jit
def _place_of_tile(rows, hidden, ROWS: tl.constexpr, HIDDEN: tl.constexpr, GROUP: tl.constexpr):
    """The rows and the channels of a program's tile, (ROWS,) and (HIDDEN,).

    Programs that run at once take GROUP tiles below each other before they go on to the next
    channels, so that what they load is in the cache.
    """
    program = tl.program_id(0)
    in_group = GROUP * tl.cdiv(hidden, HIDDEN)
    first = program // in_group * GROUP
    height = tl.minimum(tl.cdiv(rows, ROWS) - first, GROUP)
    down, across = first + program % in_group % height, program % in_group // height
    return down * ROWS + tl.arange(0, ROWS), across * HIDDEN + tl.arange(0, HIDDEN)


@triton.jit
def _pre_activations(
    x,
    weight,
    row,
    channel,
    rows,
    hidden,
    width,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile (ROWS, HIDDEN) of x W^T in float32, and one of its second half if there is one."""
    first = tl.zeros((ROWS, HIDDEN), tl.float32)
    second = tl.zeros((ROWS, HIDDEN), tl.float32)
    from_x = x + row.to(tl.int64)[:, None] * width
    from_first = weight + channel.to(tl.int64)[:, None] * width
    from_second = from_first + hidden.to(tl.int64) * width
    for start in range(0, width, WIDTH):
        k = start + tl.arange(0, WIDTH)
        left = tl.load(from_x + k[None], (row < rows)[:, None] & (k < width)[None], other=0.0)
        inside = (channel < hidden)[:, None] & (k < width)[None]
        right = tl.load(from_first + k[None], inside, other=0.0)
        first = tl.dot(left, tl.trans(right), first, input_precision=PRECISION)
        if GATED:
            right = tl.load(from_second + k[None], inside, other=0.0)
            second = tl.dot(left, tl.trans(right), second, input_precision=PRECISION)
    return first, second


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def forward_kernel(
    x,
    weight,
    y,
    rows,
    hidden,
    width,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of ``y`` (rows, hidden), act(x W^T); what is not a number stays so."""
    row, channel = _place_of_tile(rows, hidden, ROWS, HIDDEN, GROUP)
    z, up = _pre_activations(
        x, weight, row, channel, rows, hidden, width,
        ACT == "swiglu", ROWS, HIDDEN, WIDTH, PRECISION,
    )  # fmt: skip
    if ACT == "relu2":
        z = tl.where(z < 0.0, 0.0, z)
        z = z * z
    elif ACT == "leaky_relu2":
        z = tl.where(z < 0.0, 0.5 * z, z)
        z = z * z
    else:
        z = z * _sigmoid(z)
    if ACT == "swiglu":
        z = z * up
    inside = (row < rows)[:, None] & (channel < hidden)[None]
    place = row.to(tl.int64)[:, None] * hidden + channel[None]
    tl.store(y + place, z.to(y.dtype.element_ty), inside)


@triton.jit
def slope_kernel(
    x,
    weight,
    slope,
    result,
    rows,
    hidden,
    width,
    ACT: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of ``result``, the gradient by x W^T, from ``slope``, that by its activation.

    ``slope`` is (rows, hidden), and ``result`` too, or (rows, 2 hidden) for ``swiglu``.
    """
    row, channel = _place_of_tile(rows, hidden, ROWS, HIDDEN, GROUP)
    z, up = _pre_activations(
        x, weight, row, channel, rows, hidden, width,
        ACT == "swiglu", ROWS, HIDDEN, WIDTH, PRECISION,
    )  # fmt: skip
    inside = (row < rows)[:, None] & (channel < hidden)[None]
    far = row.to(tl.int64)[:, None]
    by_y = tl.load(slope + far * hidden + channel[None], inside, other=0.0).to(tl.float32)
    if ACT == "relu2":
        by_z = by_y * 2.0 * tl.where(z < 0.0, 0.0, z)
    elif ACT == "leaky_relu2":
        by_z = by_y * tl.where(z < 0.0, 0.5 * z, 2.0 * z)  # 2 (z / 2) / 2 below zero
    else:
        gate = _sigmoid(z)
        by_z = by_y * gate * (1.0 + z * (1.0 - gate))
    if ACT == "swiglu":
        place = far * (2 * hidden) + channel[None]
        tl.store(result + place, (by_z * up).to(result.dtype.element_ty), inside)
        by_up = by_y * z * gate
        tl.store(result + place + hidden, by_up.to(result.dtype.element_ty), inside)
    else:
        tl.store(result + far * hidden + channel[None], by_z.to(result.dtype.element_ty), inside)


class TritonGatedFeed(Backend[FeedCall, Tensor]):
    """One kernel each way; products accumulate in float32, and the activation is of those."""

    name, priority = "triton", 30

    def refusal(self, call: FeedCall) -> str | None:
        x, weight = call.x, call.weight
        if call.act not in _ACTIVATIONS:
            return f"it takes {', '.join(_ACTIVATIONS)}, not {call.act}"
        if x.dtype not in _TYPES:
            return f"it takes float32, float16 and bfloat16, not {x.dtype}"
        if weight.dtype != x.dtype:
            return f"it takes a weight of the type of the stream, not {weight.dtype}"
        if len(weight) <= (2 if call.act == "swiglu" else 1):
            return "one hidden channel is a number that Triton compiles in"
        device = x.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != x.dtype:
            return "autocast chooses another type"
        if torch.compiler.is_compiling():
            return "it is not traced by torch.compile"
        return None

    def run(self, call: FeedCall) -> Tensor:
        result: Tensor = _Feed.apply(*call)
        return result


def forward(x: Tensor, weight: Tensor, y: Tensor, act: Activation) -> Launch:
    """What makes ``y`` (rows, hidden) of ``x`` (rows, width) and ``weight``, all contiguous.

    The weight is (hidden, width), or (2 hidden, width) for ``swiglu``.
    """
    return _launch(forward_kernel, {"x": x, "weight": weight, "y": y}, y.size(1), act)


def slopes(x: Tensor, weight: Tensor, slope: Tensor, result: Tensor, act: Activation) -> Launch:
    """What makes ``result`` (rows, hidden or 2 hidden), the gradient by x W^T.

    ``x`` (rows, width) and ``weight`` are as forward has them, ``slope`` (rows, hidden) is the
    gradient by its result; all are contiguous.
    """
    tensors = {"x": x, "weight": weight, "slope": slope, "result": result}
    return _launch(slope_kernel, tensors, slope.size(1), act)


def _launch(kernel: Any, tensors: dict[str, Tensor], hidden: int, act: Activation) -> Launch:
    x = tensors["x"]
    rows, width = x.shape
    tile = tile_for(_tiles(kernel, x, hidden, act), x)
    down, across = triton.cdiv(rows, tile.sizes["ROWS"]), triton.cdiv(hidden, tile.sizes["HIDDEN"])
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    return Launch(
        kernel,
        (down * across,),
        {**tensors, "rows": rows, "hidden": hidden, "width": width},
        {"ACT": act, **tile.sizes, "PRECISION": precision},
        warps=tile.warps,
        stages=tile.stages,
    )


def _tile(rows: int, hidden: int, width: int, warps: int, stages: int) -> Tile:
    sizes = {"ROWS": rows, "HIDDEN": hidden, "WIDTH": width, "GROUP": 8}
    return Tile(sizes, warps, stages)


# Candidates without a gate, and with one, which makes two tiles of HIDDEN channels. Of those tried
# none is larger that spills on none of the GPUs it is for (bench/kernel_builds.py).
_COMMON = [_tile(128, 128, 64, 8, 3), _tile(128, 128, 32, 8, 3), _tile(128, 64, 64, 4, 3)]
_COMMON_GATED = [_tile(128, 64, 64, 8, 3), _tile(128, 64, 32, 8, 3), _tile(64, 64, 64, 8, 3)]
_WIDE = [_tile(128, 256, 64, 8, 3), _tile(128, 256, 64, 8, 4), _tile(128, 128, 64, 8, 4)]
_WIDE_GATED = [_tile(128, 128, 64, 8, 3), _tile(128, 128, 64, 8, 4), _tile(128, 64, 64, 8, 4)]
_SLOPES = [_tile(128, 128, 64, 8, 3), _tile(128, 128, 64, 8, 4)]
_SLOPES_GATED = [_tile(128, 64, 64, 8, 3), _tile(128, 64, 64, 8, 4)]
_TILES: dict[Any, tuple[Tiles, Tiles]] = {
    forward_kernel: (
        {ANY: _COMMON, 90: _WIDE, 100: _WIDE},
        {ANY: _COMMON_GATED, 90: _WIDE_GATED, 100: _WIDE_GATED},
    ),
    slope_kernel: (
        {ANY: _COMMON, 90: _SLOPES, 100: _SLOPES},
        {ANY: _COMMON_GATED, 90: _SLOPES_GATED, 100: _SLOPES_GATED},
    ),
}
_FEW_ROWS: Tiles = {ANY: [_tile(16, 64, 64, 4, 3), _tile(16, 32, 64, 4, 3)]}
# Where rows do not begin at multiples of 16 numbers, each address is calculated alone, which takes
# registers.
_ODD: tuple[Tiles, Tiles] = (
    {ANY: [_tile(64, 64, 32, 8, 2), _tile(64, 32, 64, 8, 2)]},
    {ANY: [_tile(32, 64, 32, 4, 2), _tile(64, 32, 64, 8, 2)]},
)
# Float32 is multiplied without tensor cores, as these would round its factors.
_EXACT: tuple[Tiles, Tiles] = (
    {ANY: [_tile(64, 64, 16, 4, 1), _tile(32, 32, 16, 4, 1)], 120: [_tile(64, 64, 16, 4, 1)]},
    {ANY: [_tile(64, 32, 16, 4, 1), _tile(32, 32, 16, 4, 1)], 120: [_tile(32, 32, 16, 4, 1)]},
)


def _tiles(kernel: Any, x: Tensor, hidden: int, act: Activation) -> Tiles:
    """The candidates for ``x`` (rows, width)."""
    is_gated, is_aligned = act == "swiglu", x.size(1) % 16 == 0 and hidden % 16 == 0
    if x.dtype == torch.float32:
        return _EXACT[is_gated]
    if not is_aligned:
        return _ODD[is_gated]
    return _FEW_ROWS if len(x) <= _FEW else _TILES[kernel][is_gated]


class _Feed(torch.autograd.Function):
    """Forward keeps x and the weight, and nothing as large as what it makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, act: Activation) -> Tensor:
        """``x`` (..., width) to (..., hidden), see :class:`FeedCall`."""
        rows, weight = x.reshape(-1, x.size(-1)).contiguous(), weight.contiguous()
        y = rows.new_empty(len(rows), len(weight) // (2 if act == "swiglu" else 1))
        if y.numel():
            forward(rows, weight, y, act).run()
        ctx.save_for_backward(rows, weight)
        ctx.act = act
        return y.view(*x.shape[:-1], y.size(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        slope = slope.contiguous()
        by_product = rows.new_empty(len(rows), len(weight))
        if by_product.numel():
            by_rows = slope.view(-1, slope.size(-1))
            slopes(rows, weight, by_rows, by_product, ctx.act).run()
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = torch.mm(by_product, weight).view(*slope.shape[:-1], rows.size(1))
        if ctx.needs_input_grad[1]:
            by_weight = torch.mm(by_product.T, rows)
        return by_x, by_weight, None
