"""Uniform grids symmetric about zero: how wide a row's grid is, and rounding to nearest."""

import torch
from torch import Tensor

from segpt.errors import CheckpointError
from segpt.values import UniformWeight

# Float16 below this is subnormal: few bits, and some decoders flush it to zero.
_BY_ENTROPY = 6  # bits from which a clip sets the entropy of codes, and cuts nothing off
SMALLEST_SCALE = torch.finfo(torch.float16).tiny


def largest_code(bits: int) -> int:
    """Q: codes lie in [-Q, Q], and the code that would break the symmetry stays unused."""
    return 2 ** (bits - 1) - 1


def scales(weight: Tensor, bits: int, k: float, group: int | None = None) -> Tensor:
    """SDClip: a grid that ends at ``k`` standard deviations of each row, or group of a row.

    The deviation is taken about zero, where the grid is centred, so that a row far from zero is
    not clipped away; for trained rows, whose mean is next to nothing, it is the population's.
    Float16 is the stored form, so rounding with these scales is rounding with what is stored.
    No scale is below 6.1e-5, the smallest normal float16: a row of zeros encodes zeros, and one
    too small for that grid (deviation below about 3e-5) does too.

    Below 6 bits, where a clip is to make errors small, the grid of a group ends at its furthest
    weight if that is nearer: of 32 Gaussian weights it lies near 2 deviations, and codes beyond
    would stand for nothing.

    Args:
        weight: (rows, columns) float32.
        bits: 2 to 8.
        k: standard deviations at which codes are clipped. For a Gaussian row the entropy of the
            codes is about 2.05 + log2(Q / k) bits.
        group: most columns that share a scale; a row is cut into the fewest equal spans, the
            last of which may be shorter. None is the whole row.

    Returns:
        (rows, spans) float16, one scale k * deviation / Q each.

    Raises:
        CheckpointError: naming the first row whose scale float16 cannot hold.
    """
    columns = weight.size(1)
    spans = 1 if group is None else -(-columns // group)
    width = -(-columns // spans)
    parts = torch.split(weight.float(), width, 1)
    ends = k * torch.stack([w.square().mean(1) for w in parts], 1).sqrt()
    if group is not None and bits < _BY_ENTROPY:
        ends = torch.minimum(ends, torch.stack([w.abs().amax(1) for w in parts], 1))
    exact = ends / largest_code(bits)
    stored = exact.clamp_min(SMALLEST_SCALE).half()
    if len(lost := (~stored.isfinite()).nonzero()):
        row = int(lost[0, 0])
        raise CheckpointError(
            f"row {row} spreads too far for a float16 scale ({float(exact[row].max()):.3g}); "
            "the weights have diverged, so quantize an earlier checkpoint"
        )
    return stored


def widen(scales: Tensor, columns: int) -> Tensor:
    """The scale of every weight, (rows, columns) float32, as ``UniformWeight`` has it."""
    width = -(-columns // scales.size(1))
    return scales.float().repeat_interleave(width, 1)[:, :columns]


def nearest(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Round each weight to the nearest point of its grid: int8 codes (rows, columns)."""
    most = largest_code(bits)
    steps = weight.float() / widen(scales, weight.size(1))
    return steps.round().clamp(-most, most).to(torch.int8)


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """The weights (rows, columns) of codes, bit-equal to ``UniformWeight.decoded``."""
    return codes.float() * widen(scales, codes.size(1))


def to_grid(codes: Tensor, scales: Tensor, bits: int) -> UniformWeight:
    """Codes (rows, columns) and scales (rows, spans) as a value that can be stored."""
    return UniformWeight(bits, codes.cpu().numpy(), scales.cpu().numpy())
