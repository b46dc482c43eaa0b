"""Newton-Schulz in Triton: of symmetric products half of the tiles is computed.

A = X X^T and b A + c A^2 are symmetric, so a program that has made tile (i, j) writes its mirror
image as tile (j, i), and programs above the diagonal end at once. So are products of symmetric
matrices that commute, as those of :mod:`.gram` do. Products with X are not symmetric, and the
library's own are as fast as any.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from segpt.kernels.launch import Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for

from .gram import segments
from .reference import Coefficients, NewtonSchulzCall

# The Gram form is in float16, which has no room below 6e-5 without loss of bits: X and A, of which
# no number is above 1.5, are multiplied by these.
_X_SCALE, _A_SCALE = 2.0**8, 2.0**10


@triton.jit
def symmetric_product_kernel(
    x,
    other,
    added,
    result,
    size,
    inner,
    product_factor,
    added_factor,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile (i, j) and (j, i) of f x other^T + g added, of which all is symmetric.

    ``x`` and ``other`` are (matrices, size, inner); ``added`` and ``result`` are (matrices, size,
    size).
    """
    i, j, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if j <= i:
        x += matrix * size * inner
        other += matrix * size * inner
        row, column = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in range(0, inner, INNER):
            k = start + tl.arange(0, INNER)
            left = tl.load(
                x + row[:, None] * inner + k[None],
                (row < size)[:, None] & (k < inner)[None],
                other=0.0,
            )
            right = tl.load(
                other + column[:, None] * inner + k[None],
                (column < size)[:, None] & (k < inner)[None],
                other=0.0,
            )
            total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
        total = total * product_factor
        inside = (row < size)[:, None] & (column < size)[None]
        first = matrix * size * size
        place = first + row[:, None] * size + column[None]
        if ADDS:
            total += tl.load(added + place, inside, other=0.0).to(tl.float32) * added_factor
        tile = total.to(result.dtype.element_ty)
        mirrored = first + column[:, None] * size + row[None]
        if j < i:
            tl.store(result + place, tile, inside)
            tl.store(result + mirrored, tl.trans(tile), tl.trans(inside))
        else:
            # Rounding may make the two halves of a product of two matrices differ; what multiplies
            # by a transpose would let the difference grow.
            below = inside & (row[:, None] >= column[None])
            tl.store(result + place, tile, below)
            tl.store(result + mirrored, tl.trans(tile), tl.trans(below))


class TritonNewtonSchulz(Backend[NewtonSchulzCall, Tensor]):
    """Products accumulate in float32, whatever type the matrices have."""

    name, priority = "triton", 30

    def refusal(self, call: NewtonSchulzCall) -> str | None:
        if call.x.requires_grad:
            return "it has no gradients"
        if call.x.dtype not in (torch.float16, torch.bfloat16):
            return f"tensor cores take float16 and bfloat16, and would round {call.x.dtype}"
        return None

    def run(self, call: NewtonSchulzCall) -> Tensor:
        x, steps = call.x.contiguous(), call.coefficients
        # Bfloat16 alone leaves room for the errors of the Gram form, which float16 has not.
        if x.dtype == torch.bfloat16:
            lengths = segments(tuple(x.shape), steps)
            if max(lengths, default=1) > 1:
                return by_gram(x, steps, lengths, torch.float16)
        gram, inner = (x.new_empty(*x.shape[:2], x.size(1)) for _ in range(2))
        for step in steps:
            symmetric_product(x, gram).run()
            x = _plain_step(x, gram, inner, step, 1.0)
        return x


def by_gram(
    x: Tensor, coefficients: Coefficients, lengths: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Iterate (matrices, rows, columns) in segments of these lengths, in the shape of ``x``.

    All is multiplied in ``dtype``; a segment of one step is a plain step.
    """
    size = *x.shape[:2], x.size(1)
    scaled = torch.mul(x, _X_SCALE, out=torch.empty(x.shape, dtype=dtype, device=x.device))
    gram, inner, product = (scaled.new_empty(size) for _ in range(3))
    first = 0
    for length in lengths:
        steps, first = coefficients[first : first + length], first + length
        symmetric_product(scaled, gram, _A_SCALE / _X_SCALE**2).run()
        if length == 1:
            scaled = _plain_step(scaled, gram, inner, steps[0], _A_SCALE)
        else:
            scaled = torch.bmm(_segment(gram, inner, product, steps), scaled)
    return torch.mul(scaled, 1.0 / _X_SCALE, out=torch.empty_like(x))


def _plain_step(
    x: Tensor, gram: Tensor, inner: Tensor, step: tuple[float, float, float], scale: float
) -> Tensor:
    """P X in the shape of ``x``, of ``gram`` (matrices, rows, rows), which is X X^T times scale."""
    a, b, c = step
    symmetric_product(gram, inner, c / scale**2, gram, b / scale).run()
    return torch.baddbmm(x, inner, x, beta=a)


def _segment(gram: Tensor, inner: Tensor, product: Tensor, steps: Coefficients) -> Tensor:
    """Q (matrices, rows, rows), what a segment multiplies X by.

    ``gram`` is A times its scale, and becomes what A becomes; ``inner`` and ``product``, of its
    shape, hold P - a I and P A. The product Q is made whole: half of it, mirrored, doubles the
    error of the result.
    """
    q: Tensor | None = None
    for number, (a, b, c) in enumerate(steps):
        symmetric_product(gram, inner, c / _A_SCALE**2, gram, b / _A_SCALE).run()
        if q is None:
            q = inner.clone()
            q.diagonal(0, -2, -1).add_(a)
        else:
            q = torch.baddbmm(q, inner, q, beta=a)
        if number < len(steps) - 1:
            symmetric_product(inner, product, 1.0, gram, a, gram).run()
            symmetric_product(product, gram, 1.0, product, a, inner).run()
    assert q is not None
    return q


def symmetric_product(
    x: Tensor,
    result: Tensor,
    product_factor: float = 1.0,
    added: Tensor | None = None,
    added_factor: float = 0.0,
    other: Tensor | None = None,
) -> Launch:
    """What makes ``result`` (matrices, size, size) of f x other^T + g added.

    ``x`` and ``other``, which is ``x`` if it is not given, are (matrices, size, k); the products
    are symmetric, and so is ``added``.
    """
    matrices, size, inner = x.shape
    tile = tile_for(_tiles(x), x)
    across = triton.cdiv(size, tile.sizes["BLOCK"])
    tensors = {"x": x, "other": x if other is None else other}
    tensors |= {"added": result if added is None else added, "result": result}
    numbers: dict[str, float] = {"size": size, "inner": inner}
    numbers |= {"product_factor": product_factor, "added_factor": added_factor}
    fixed: dict[str, Constant] = {"ADDS": added is not None, **tile.sizes}
    fixed["PRECISION"] = "ieee" if x.dtype == torch.float32 else "tf32"
    return Launch(
        symmetric_product_kernel,
        (across, across, matrices),
        {**tensors, **numbers},
        fixed,
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def _tile(block: int, inner: int, warps: int, stages: int) -> Tile:
    return Tile({"BLOCK": block, "INNER": inner}, warps, stages)


_LARGE: Tiles = {
    ANY: [_tile(128, 64, 8, 3), _tile(128, 32, 8, 3), _tile(64, 64, 4, 3)],
    90: [_tile(128, 64, 8, 3), _tile(128, 64, 8, 4), _tile(64, 64, 4, 3)],
    100: [_tile(128, 64, 8, 3), _tile(128, 64, 8, 4), _tile(64, 64, 4, 3)],
}
_SMALL: Tiles = {ANY: [_tile(64, 64, 8, 3), _tile(64, 32, 8, 3)]}
_EXACT: Tiles = {ANY: [_tile(64, 16, 8, 2)]}


def _tiles(x: Tensor) -> Tiles:
    """The candidates for ``x`` (matrices, rows, columns).

    Float32 is multiplied without tensor cores, as these would round its factors. Where rows do not
    begin at multiples of 16 numbers, each address is calculated alone, which takes registers.
    """
    if x.dtype == torch.float32:
        return _EXACT
    is_aligned = x.size(1) % 16 == 0 and x.size(2) % 16 == 0
    return _LARGE if x.size(1) > 64 and is_aligned else _SMALL
