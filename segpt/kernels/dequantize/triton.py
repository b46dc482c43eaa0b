"""Weights of codes in Triton, with the bits that the reference has.

A product of float32 numbers and a sum that follows it are rounded each. The compiler would fuse
them, so between both the product's bits are xored with an argument that is 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from segpt.kernels.launch import Argument, Constant, Launch
from segpt.kernels.registry import Backend
from segpt.kernels.tiles import ANY, Tile, Tiles, tile_for
from segpt.trellis import STATES
from segpt.values import EXPONENTS, FARTHEST_EXPONENT, OCTAVE

from .paths import masks
from .reference import PackedCall, TrellisCall, UniformCall

TILES: Tiles = {
    ANY: [Tile({"ROWS": 8, "COLUMNS": 128}, 4, 1), Tile({"ROWS": 4, "COLUMNS": 256}, 4, 1)]
}
TRELLIS_TILES: Tiles = {
    ANY: [Tile({"ROWS": 4, "COLUMNS": 256}, 4, 1), Tile({"ROWS": 4, "COLUMNS": 512}, 4, 1)]
}
_INTEGERS = (torch.int8, torch.int16, torch.int32)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _scaled(codes, scales, weights, row, column, rows, columns, spans, width):
    """Store codes times the scales (rows, spans) of their spans of ``width`` columns."""
    inside = (row < rows)[:, None] & (column < columns)[None]
    scale = tl.load(scales + row[:, None] * spans + (column // width)[None], inside, other=0.0)
    weight = codes.to(tl.float32) * scale.to(tl.float32)
    place = row[:, None] * columns + column[None]
    tl.store(weights + place, weight.to(weights.dtype.element_ty), inside)


@triton.jit
def uniform_kernel(
    codes,
    scales,
    weights,
    rows,
    columns,
    spans,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of the weights (rows, columns) of codes of that shape."""
    across = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None]
    code = tl.load(codes + row[:, None] * columns + column[None], inside, other=0)
    _scaled(code, scales, weights, row, column, rows, columns, spans, width)


@triton.jit
def packed_kernel(
    packed,
    scales,
    weights,
    rows,
    columns,
    spans,
    width,
    row_bytes,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of the weights (rows, columns) of codes in uint8 (rows, bytes), BITS for each."""
    across = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None]
    first, shift = column * BITS // 8, column * BITS % 8
    place = row[:, None] * row_bytes + first[None]
    code = tl.load(packed + place, inside, other=0).to(tl.int32)
    if 8 % BITS != 0:  # a code may go on in the next byte
        goes_on = inside & (shift + BITS > 8)[None]
        code |= tl.load(packed + place + 1, goes_on, other=0).to(tl.int32) << 8
    code = code >> shift[None] & ((1 << BITS) - 1)
    code -= (code >> (BITS - 1)) << BITS
    _scaled(code, scales, weights, row, column, rows, columns, spans, width)


@triton.jit
def _xor(a, b):
    return a ^ b


@triton.jit
def _parity(bits):
    bits ^= bits >> 16
    bits ^= bits >> 8
    bits ^= bits >> 4
    bits ^= bits >> 2
    return (bits ^ (bits >> 1)) & 1


@triton.jit
def trellis_kernel(
    codes,
    sizes,
    row_exponents,
    column_exponents,
    masks,
    centre,
    source,
    shared,
    weights,
    rows,
    columns,
    least,
    zero,
    PERIOD: tl.constexpr,
    CENTRED: tl.constexpr,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Whole rows of the weights (rows, columns), from the left to the right.

    ``source`` (rows,) is the row of ``codes`` that a row is decoded from, or -1 for that of
    ``shared`` (columns,). ``sizes`` are steps by exponent, from ``least`` on, and ``masks``
    (PERIOD,) those of :func:`.paths.masks`; with a PERIOD of 0 the grid is uniform.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    coded = row
    if SHARES:
        coded = tl.load(source + row, row < rows, other=-1).to(tl.int64)
    stored = (row < rows) & (coded >= 0)
    by_row = tl.load(row_exponents + coded, stored, other=0).to(tl.int32) - least
    parities = tl.zeros((ROWS,), tl.int32)  # of the codes before, a bit for each remainder
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        within = column < columns
        inside = stored[:, None] & within[None]
        code = tl.load(codes + coded[:, None] * columns + column[None], inside, other=0)
        point = code.to(tl.int32)
        if PERIOD > 0:
            bit = (point & 1) << (column % PERIOD)[None]
            before = tl.associative_scan(bit, 1, _xor) ^ bit ^ parities[:, None]
            parities ^= tl.xor_sum(bit, 1)
            counts = before & tl.load(masks + column % PERIOD)[None]
            sign = tl.where(point > 0, 1, 0) - tl.where(point < 0, 1, 0)
            point = 2 * point - sign * _parity(counts)
        by_column = tl.load(column_exponents + column, within, other=0).to(tl.int32)
        exponent = by_row[:, None] + by_column[None]
        size = tl.load(sizes + exponent, inside, other=0.0)
        weight = point.to(tl.float32) * size
        if CENTRED:
            alone = weight.to(tl.int32, bitcast=True) ^ zero
            middle = tl.load(centre + column, within, other=0.0).to(tl.float32)
            weight = alone.to(tl.float32, bitcast=True) + middle[None]
        if SHARES:
            same = tl.load(shared + column, within, other=0.0).to(tl.float32)
            weight = tl.where(stored[:, None], weight, same[None])
        place = row[:, None] * columns + column[None]
        whole = (row < rows)[:, None] & within[None]
        tl.store(weights + place, weight.to(weights.dtype.element_ty), whole)


class TritonDequantize(Backend[UniformCall, Tensor]):
    """Codes of any integer type."""

    name, priority = "triton", 30

    def refusal(self, call: UniformCall) -> str | None:
        if call.codes.dtype not in _INTEGERS:
            return f"codes are int8, int16 or int32, not {call.codes.dtype}"
        return _refused(call.dtype)

    def run(self, call: UniformCall) -> Tensor:
        codes = call.codes.contiguous()
        weights = torch.empty(codes.shape, dtype=call.dtype, device=codes.device)
        if codes.numel():
            uniform(codes, call.scales.contiguous(), weights).run()
        return weights


class TritonDequantizePacked(Backend[PackedCall, Tensor]):
    """Codes of 2 to 8 bits, with a second byte where one may end in it."""

    name, priority = "triton", 30

    def refusal(self, call: PackedCall) -> str | None:
        if call.columns * call.bits >= 1 << 31:
            return f"rows of {call.columns:,} codes are too long"
        return _refused(call.dtype)

    def run(self, call: PackedCall) -> Tensor:
        shape = len(call.packed), call.columns
        weights = torch.empty(shape, dtype=call.dtype, device=call.packed.device)
        if weights.numel():
            packed(call.packed.contiguous(), call.bits, call.scales.contiguous(), weights).run()
        return weights


class TritonDequantizeTrellis(Backend[TrellisCall, Tensor]):
    """A scan along each row instead of a walk."""

    name, priority = "triton", 30

    def refusal(self, call: TrellisCall) -> str | None:
        if call.states not in STATES:
            return f"there is no machine with {call.states} states"
        return _refused(call.dtype)

    def run(self, call: TrellisCall) -> Tensor:
        height = len(call.codes) if call.stored is None else len(call.stored)
        shape = height, call.codes.size(1)
        weights = torch.empty(shape, dtype=call.dtype, device=call.codes.device)
        if weights.numel():
            device = weights.device
            sizes = torch.from_numpy(sizes_of(call.step)).to(device)
            remainders = torch.from_numpy(masks(call.states)).to(device)
            trellis(call, sizes, remainders, weights).run()
        return weights


def uniform(codes: Tensor, scales: Tensor, weights: Tensor) -> Launch:
    """What makes ``weights`` of ``codes``, (rows, columns) both, and ``scales`` (rows, spans)."""
    return _tiled(uniform_kernel, {"codes": codes, "scales": scales, "weights": weights}, {}, {})


def packed(codes: Tensor, bits: int, scales: Tensor, weights: Tensor) -> Launch:
    """What makes ``weights`` (rows, columns) of codes in uint8 (rows, bytes).

    ``scales`` are (rows, spans).
    """
    tensors = {"packed": codes, "scales": scales, "weights": weights}
    return _tiled(packed_kernel, tensors, {"row_bytes": codes.size(1)}, {"BITS": bits})


def trellis(call: TrellisCall, sizes: Tensor, remainders: Tensor, weights: Tensor) -> Launch:
    """What makes ``weights`` (all rows, columns).

    Args:
        call: the codes and what they mean.
        sizes: (exponents,) of :func:`sizes_of`.
        remainders: (period,) of :func:`.paths.masks`.
        weights: is written.
    """
    tile, codes = tile_for(TRELLIS_TILES, weights), call.codes.contiguous()
    rows, columns = weights.shape
    shares = call.stored is not None and call.shared is not None
    source = codes
    if call.stored is not None and shares:
        source = torch.where(call.stored, call.stored.cumsum(0) - 1, -1).to(torch.int32)
    arguments: dict[str, Argument] = {
        "codes": codes,
        "sizes": sizes,
        "row_exponents": call.rows.contiguous(),
        "column_exponents": call.columns.contiguous(),
        "masks": remainders,
        "centre": codes if call.centre is None else call.centre,
        "source": source,
        "shared": codes if call.shared is None else call.shared,
        "weights": weights,
        "rows": rows,
        "columns": columns,
        "least": -2 * FARTHEST_EXPONENT,
        "zero": 0,
    }
    constants: dict[str, Constant] = {
        "PERIOD": 0 if call.states == 1 else len(remainders),
        "CENTRED": call.centre is not None,
        "SHARES": shares,
    }
    return Launch(
        trellis_kernel,
        (triton.cdiv(rows, tile.sizes["ROWS"]),),
        arguments,
        constants | dict(tile.sizes),
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def sizes_of(step: float) -> NDArray[np.float32]:
    """Steps at all exponents that a row and a column have together, float32 (exponents,)."""
    exponents = np.arange(-2 * FARTHEST_EXPONENT, 2 * FARTHEST_EXPONENT + 1)
    octave = np.float32(step) * OCTAVE[exponents % EXPONENTS]
    with np.errstate(over="ignore", under="ignore"):  # of exponents that no weight has
        return np.ldexp(octave, exponents // EXPONENTS)


def _tiled(
    kernel: Any,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, int],
    constants: Mapping[str, Constant],
) -> Launch:
    (rows, columns), spans = tensors["weights"].shape, tensors["scales"].size(1)
    tile = tile_for(TILES, tensors["weights"])
    sizes = {"rows": rows, "columns": columns, "spans": spans, "width": -(-columns // spans)}
    tiles = triton.cdiv(rows, tile.sizes["ROWS"]) * triton.cdiv(columns, tile.sizes["COLUMNS"])
    return Launch(
        kernel,
        (tiles,),
        {**tensors, **sizes, **numbers},
        {**constants, **tile.sizes},
        warps=tile.warps,
        stages=tile.stages,
        registers=tile.registers,
    )


def _refused(dtype: torch.dtype) -> str | None:
    return None if dtype in _FLOATS else f"it makes float32, float16 and bfloat16, not {dtype}"
