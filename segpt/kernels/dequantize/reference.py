"""Weights of codes, defined by numpy and plain torch: one rounding for each operation."""

from typing import NamedTuple

import torch
from torch import Tensor

from segpt.values import TrellisWeight

BYTE = 8


class UniformCall(NamedTuple):
    """Codes on uniform grids, as :class:`segpt.values.UniformWeight` has them.

    Attributes:
        codes: whole numbers (rows, columns), of any integer type.
        scales: float16 (rows, spans), each for as many columns as come to ``spans`` in all.
        dtype: that of the weights.
    """

    codes: Tensor
    scales: Tensor
    dtype: torch.dtype


class PackedCall(NamedTuple):
    """Codes on uniform grids, without bits between them.

    Attributes:
        packed: uint8 (rows, bytes), of :func:`pack`.
        bits: of a code, 2 to 8.
        columns: codes of a row.
        scales: float16 (rows, spans), each for as many columns as come to ``spans`` in all.
        dtype: that of the weights.
    """

    packed: Tensor
    bits: int
    columns: int
    scales: Tensor
    dtype: torch.dtype


class TrellisCall(NamedTuple):
    """Codes on a path through a trellis, as :class:`segpt.values.TrellisWeight` has them.

    Attributes:
        codes: int8 (stored rows, columns).
        states: of the machine; 1 is a uniform grid.
        step: a float32, as the Python number that equals it.
        rows: int8 (stored rows,), in eighths of an octave, and
        columns: int8 (columns,), which is added to it.
        centre: float16 (columns,), added to every stored row, or None.
        stored: bool (all rows,), or None if all rows are stored.
        shared: float16 (columns,), what every row holds that is not stored; None if none is.
        dtype: that of the weights.
    """

    codes: Tensor
    states: int
    step: float
    rows: Tensor
    columns: Tensor
    centre: Tensor | None
    stored: Tensor | None
    shared: Tensor | None
    dtype: torch.dtype


def uniform_reference(call: UniformCall) -> Tensor:
    """The weights (rows, columns): a product in float32 for each code."""
    columns = call.codes.size(1)
    width = -(-columns // call.scales.size(1))
    wide = call.scales.float().repeat_interleave(width, 1)[:, :columns]
    return (call.codes.float() * wide).to(call.dtype)


def packed_reference(call: PackedCall) -> Tensor:
    """The weights (rows, columns): a product in float32 for each code."""
    codes = unpack(call.packed, call.bits, call.columns)
    return uniform_reference(UniformCall(codes, call.scales, call.dtype))


def trellis_reference(call: TrellisCall) -> Tensor:
    """The weights (all rows, columns): steps, products and sums in float32."""
    centre, stored, shared = (
        None if part is None else part.cpu().numpy()
        for part in (call.centre, call.stored, call.shared)
    )
    codes, rows, columns = (x.cpu().numpy() for x in (call.codes, call.rows, call.columns))
    weight = TrellisWeight(call.states, codes, call.step, rows, columns, centre, stored, shared)
    return torch.from_numpy(weight.decoded()).to(call.codes.device, call.dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, columns) in ``bits`` each, two's complement, the lowest bit first.

    Returns:
        uint8 (rows, bytes): rows begin at whole bytes, and the bits after their last code are 0.
    """
    places = torch.arange(bits, device=codes.device)
    stream = (codes.to(torch.int64)[..., None] >> places & 1).flatten(1)
    stream = torch.nn.functional.pad(stream, (0, -stream.size(1) % BYTE))
    values = 1 << torch.arange(BYTE, device=codes.device)
    return (stream.view(len(codes), -1, BYTE) * values).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """The codes, int8 (rows, columns), of what :func:`pack` made of them, uint8 (rows, bytes)."""
    places = torch.arange(BYTE, device=packed.device)
    stream = (packed[..., None] >> places & 1).flatten(1)[:, : columns * bits]
    values = 1 << torch.arange(bits, device=packed.device)
    codes = (stream.view(len(packed), columns, bits) * values).sum(-1)
    return (codes - ((codes >> bits - 1) << bits)).to(torch.int8)
