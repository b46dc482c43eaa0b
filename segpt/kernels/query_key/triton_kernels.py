"""The kernels of :mod:`.triton`: a program has some rows, each a head of a position."""

import triton
import triton.language as tl


@triton.jit
def _place(block, rows, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The rows of a program and their channels; each row is a head of a position."""
    row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    return row, row[:, None] * channels + channel[None], (row < rows)[:, None]


@triton.jit
def _pairs(dims, BLOCK: tl.constexpr, NEIGHBOURS: tl.constexpr):
    """Of each channel its pair, how far its partner is, and the sign of what that adds."""
    channel = tl.arange(0, BLOCK)
    if NEIGHBOURS:
        second = channel % 2
        return channel // 2, 1 - 2 * second, 1 - 2 * second
    half = dims // 2
    second = (channel >= half).to(tl.int32)
    return channel - second * half, half * (1 - 2 * second), 1 - 2 * second


@triton.jit
def _angles(cos, sin, row, heads, time, dims, pair, BLOCK: tl.constexpr):
    """Cosine and sine of each channel of rows; those beyond ``dims`` turn by nothing."""
    place = (row // heads % time)[:, None] * (dims // 2) + pair[None]
    turned = (tl.arange(0, BLOCK) < dims)[None] & (row >= 0)[:, None]
    c = tl.load(cos + place, turned, other=1.0).to(tl.float32)
    return c, tl.load(sin + place, turned, other=0.0).to(tl.float32)


@triton.jit
def _inverse_rms(x, c, s, channels, epsilon, NORM: tl.constexpr):
    """1 / rms of rows, before they are rotated (1) or after (2)."""
    square = x * x
    if NORM == 2:
        square = square * (c * c + s * s)
    return 1.0 / tl.sqrt(tl.sum(square, 1) / channels + epsilon)


@triton.jit
def _forward_rows(
    x,
    y,
    gain,
    cos,
    sin,
    block,
    rows,
    heads,
    time,
    channels,
    dims,
    gains,
    epsilon,
    NORM: tl.constexpr,
    ROTARY: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    GAIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, place, inside = _place(block, rows, channels, ROWS, BLOCK)
    channel = tl.arange(0, BLOCK)[None]
    inside = inside & (channel < channels)
    value = tl.load(x + place, inside, other=0.0).to(tl.float32)
    result = value
    c, s = 1.0, 0.0
    if ROTARY:
        pair, away, sign = _pairs(dims, BLOCK, NEIGHBOURS)
        c, s = _angles(cos, sin, row, heads, time, dims, pair, BLOCK)
        partner = tl.load(x + place + away[None], inside & (channel < dims), other=0.0)
        result = value * c + partner.to(tl.float32) * s * sign[None]
    if NORM > 0:
        result = result * _inverse_rms(value, c, s, channels, epsilon, NORM)[:, None]
    if GAIN:
        result = result * tl.load(gain + row % heads % gains).to(tl.float32)[:, None]
    tl.store(y + place, result.to(y.dtype.element_ty), inside)


@triton.jit
def forward_kernel(
    q,
    k,
    new_q,
    new_k,
    gain,
    cos,
    sin,
    positions,
    time,
    heads,
    kv_heads,
    channels,
    dims,
    gains,
    epsilon,
    NORM: tl.constexpr,
    ROTARY: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    GAIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of new_q like ``q``, by the first programs, and of new_k like ``k``, by the others."""
    block, of_queries = tl.program_id(0), tl.cdiv(positions * heads, ROWS)
    if block < of_queries:
        _forward_rows(
            q, new_q, gain, cos, sin, block, positions * heads, heads, time, channels, dims, gains,
            epsilon, NORM, ROTARY, NEIGHBOURS, GAIN, ROWS, BLOCK,
        )  # fmt: skip
    else:
        _forward_rows(
            k, new_k, gain, cos, sin, block - of_queries, positions * kv_heads, kv_heads, time,
            channels, dims, gains, epsilon, NORM, ROTARY, NEIGHBOURS, False, ROWS, BLOCK,
        )  # fmt: skip


@triton.jit
def _backward_rows(
    x,
    slope,
    by_x,
    gain,
    by_gain,
    cos,
    sin,
    block,
    rows,
    heads,
    time,
    channels,
    dims,
    gains,
    epsilon,
    NORM: tl.constexpr,
    ROTARY: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    GAIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, place, inside = _place(block, rows, channels, ROWS, BLOCK)
    channel = tl.arange(0, BLOCK)[None]
    inside = inside & (channel < channels)
    result = tl.load(slope + place, inside, other=0.0).to(tl.float32)
    c, s = 1.0, 0.0
    if ROTARY:
        pair, away, sign = _pairs(dims, BLOCK, NEIGHBOURS)
        c, s = _angles(cos, sin, row, heads, time, dims, pair, BLOCK)
        partner = tl.load(slope + place + away[None], inside & (channel < dims), other=0.0)
        result = result * c - partner.to(tl.float32) * s * sign[None]
    value = tl.load(x + place, inside, other=0.0).to(tl.float32)
    along = tl.sum(value * result, 1)
    inverse = tl.full((ROWS,), 1.0, tl.float32)
    if NORM > 0:
        inverse = _inverse_rms(value, c, s, channels, epsilon, NORM)
        share = (along / channels * inverse * inverse)[:, None]
        if NORM == 2:
            result -= share * value * (c * c + s * s)
        else:
            result -= share * value
    factor = inverse
    if GAIN:
        tl.store(by_gain + row, along * inverse, row < rows)
        factor = factor * tl.load(gain + row % heads % gains).to(tl.float32)
    tl.store(by_x + place, (result * factor[:, None]).to(by_x.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    q,
    k,
    slope_q,
    slope_k,
    by_q,
    by_k,
    gain,
    by_gain,
    cos,
    sin,
    positions,
    time,
    heads,
    kv_heads,
    channels,
    dims,
    gains,
    epsilon,
    NORM: tl.constexpr,
    ROTARY: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    GAIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients by ``q`` and ``k``, and that by the gain for each head of each position.

    ``by_gain`` is (batch, time, heads) in float32, to be summed.
    """
    block, of_queries = tl.program_id(0), tl.cdiv(positions * heads, ROWS)
    if block < of_queries:
        _backward_rows(
            q, slope_q, by_q, gain, by_gain, cos, sin, block, positions * heads, heads, time,
            channels, dims, gains, epsilon, NORM, ROTARY, NEIGHBOURS, GAIN, ROWS, BLOCK,
        )  # fmt: skip
    else:
        _backward_rows(
            k, slope_k, by_k, gain, by_gain, cos, sin, block - of_queries, positions * kv_heads,
            kv_heads, time, channels, dims, gains, epsilon, NORM, ROTARY, NEIGHBOURS, False, ROWS,
            BLOCK,
        )  # fmt: skip
