"""Newton-Schulz in Triton: of two symmetric products out of three, half of the tiles is computed.

A = X X^T and b A + c A^2 are symmetric, so a program that has made tile (i, j) writes its mirror
image as tile (j, i), and programs above the diagonal end at once. The third product is not
symmetric, and the library's own is as fast as any.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from segpt.kernels.launch import Constant, Launch
from segpt.kernels.registry import Backend

from .reference import NewtonSchulzCall


@triton.jit
def symmetric_product_kernel(
    x,
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
    """Tile (i, j) and (j, i) of f x x^T + g added.

    ``x`` is (matrices, size, inner); ``added`` and ``result`` are (matrices, size, size), and
    ``added`` is symmetric.
    """
    i, j, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if j <= i:
        x += matrix * size * inner
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
                x + column[:, None] * inner + k[None],
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
        tl.store(result + place, tile, inside)
        if j < i:
            mirrored = first + column[:, None] * size + row[None]
            tl.store(result + mirrored, tl.trans(tile), tl.trans(inside))


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
        x = call.x.contiguous()
        gram, inner = (x.new_empty(*x.shape[:2], x.size(1)) for _ in range(2))
        for a, b, c in call.coefficients:
            symmetric_product(x, gram).run()
            symmetric_product(gram, inner, c, gram, b).run()
            x = torch.baddbmm(x, inner, x, beta=a)
        return x


def symmetric_product(
    x: Tensor,
    result: Tensor,
    product_factor: float = 1.0,
    added: Tensor | None = None,
    added_factor: float = 0.0,
) -> Launch:
    """What makes ``result`` (matrices, size, size) of f x x^T + g added, x (matrices, size, k)."""
    matrices, size, inner = x.shape
    block, depth, warps = _tiles(x)
    across = triton.cdiv(size, block)
    tensors = {"x": x, "added": result if added is None else added, "result": result}
    numbers: dict[str, float] = {"size": size, "inner": inner}
    numbers |= {"product_factor": product_factor, "added_factor": added_factor}
    constants: dict[str, Constant] = {"ADDS": added is not None, "BLOCK": block, "INNER": depth}
    constants["PRECISION"] = "ieee" if x.dtype == torch.float32 else "tf32"
    return Launch(
        symmetric_product_kernel,
        (across, across, matrices),
        {**tensors, **numbers},
        constants,
        warps=warps,
        stages=3 if x.dtype != torch.float32 else 2,
    )


def _tiles(x: Tensor) -> tuple[int, int, int]:
    """Rows of a tile, the depth of a step, and warps.

    Float32 is multiplied without tensor cores, as these would round its factors. Where rows do not
    begin at multiples of 16 numbers, each address is calculated alone, which takes registers.
    """
    if x.dtype == torch.float32:
        return 64, 16, 8
    is_aligned = x.size(1) % 16 == 0 and x.size(2) % 16 == 0
    return (128, 64, 8) if x.size(1) > 64 and is_aligned else (64, 64, 8)
