"""Kernels with one fault each: kinds that only compiled code shows, and masks that are dropped.

And a kernel whose traffic is known.
"""

import torch
import triton
import triton.language as tl

from segpt.kernels.launch import Launch


@triton.jit
def in_double(x, y, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(y + place, (tl.load(x + place).to(tl.float64) * 0.1).to(tl.float32))


@triton.jit
def without_tensor_cores(x, y, SIDE: tl.constexpr):
    place = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None]
    tile = tl.load(x + place).to(tl.float32)
    tl.store(y + place, tl.dot(tile, tile, input_precision="ieee"))


@triton.jit
def copied(x, y, count, BLOCK: tl.constexpr, TIMES: tl.constexpr, MASKED: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (place < count) | (not MASKED)
    value = tl.load(x + place, inside, other=0.0)
    for _ in range(1, TIMES):
        value = tl.load(x + place, inside, other=0.0)
    tl.store(y + place, value, inside)


@triton.jit
def unmasked_norm(x, y, rows, width, epsilon, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The root-mean-square norm, without the mask of channels where it loads."""
    row, channel = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    place = row[:, None] * width + channel[None]
    value = tl.load(x + place, (row < rows)[:, None] & (place < rows * width), other=0.0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + epsilon)
    tl.store(y + place, value * scale[:, None], (row < rows)[:, None] & (channel < width)[None])


@triton.jit
def visible_without_window(query, key, first, queries, keys, window, WINDOWED: tl.constexpr):
    place = (query + (keys - queries))[:, None]
    seen = (key[None] <= place) & (key[None] >= first[:, None])
    return seen & (query < queries)[:, None] & (key < keys)[None]


@triton.jit
def visible_without_documents(query, key, first, queries, keys, window, WINDOWED: tl.constexpr):
    place = (query + (keys - queries))[:, None]
    seen = (key[None] <= place) & (query < queries)[:, None] & (key < keys)[None]
    if WINDOWED:
        seen = seen & (key[None] > place - window)
    return seen


def launches() -> dict[str, Launch]:
    """Each by a word of the fault that the gate must name."""
    from segpt.kernels.newton_schulz import triton as newton_schulz
    from segpt.kernels.rms_norm import triton as rms_norm

    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    half, single = torch.bfloat16, torch.float32
    row = empty(single, 4096, 16_384)
    narrow = rms_norm.forward(row, row)._replace(constants={"ROWS": 4, "BLOCK": 16_384}, warps=1)
    matrix = empty(half, 1, 4096, 4096)
    wide = newton_schulz.symmetric_product(matrix, matrix)
    wide = wide._replace(constants={**wide.constants, "BLOCK": 256, "INNER": 128}, stages=4)
    numbers = {"x": empty(single, 1024), "y": empty(single, 1024)}
    tile = {"x": empty(half, 64, 64), "y": empty(single, 64, 64)}
    return {
        "spill": narrow,
        "shared memory": wide,
        "64 bits": Launch(in_double, (1,), numbers, {"COUNT": 1024}),
        "tensor cores": Launch(without_tensor_cores, (1,), tile, {"SIDE": 64}),
    }
