"""The two kernels of the cross-entropy in Triton; see ``triton.py`` for how they go together."""

import triton
import triton.language as tl


@triton.jit
def _products(
    hidden,
    weight,
    first_row,
    first_token,
    rows,
    vocab,
    width,
    channels,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile (ROWS, VOCAB) of hidden W^T in float32, of their first ``channels``; 0 outside.

    Addresses are those of the tile, which may be far, plus what fits 32 bits.
    """
    row, token = tl.arange(0, ROWS), tl.arange(0, VOCAB)
    far = tl.full((), 0, tl.int64)  # what is added to it has 64 bits
    hidden += (far + first_row) * width
    weight += (far + first_token) * width
    total = tl.zeros((ROWS, VOCAB), tl.float32)
    for start in range(0, channels, WIDTH):
        channel = start + tl.arange(0, WIDTH)
        x = tl.load(
            hidden + row[:, None] * width + channel[None],
            (first_row + row < rows)[:, None] & (channel < width)[None],
            other=0.0,
        )
        w = tl.load(
            weight + token[:, None] * width + channel[None],
            (first_token + token < vocab)[:, None] & (channel < width)[None],
            other=0.0,
        )
        total = tl.dot(x, tl.trans(w), total, input_precision=PRECISION)
    return total


@triton.jit
def _bounds(cap, divisor, caps, CAP: tl.constexpr):
    """The two numbers of a cap: of an asymmetric one from memory, as they are learned."""
    if CAP == "asymmetric":
        return tl.load(caps), tl.load(caps + 1)
    else:
        return cap, divisor


@triton.jit
def _capped(y, first, second, CAP: tl.constexpr):
    """Logits from scaled products ``y``, and their derivatives by y and, of c tanh(y / c), by c.

    With e = exp(-2 |u|), tanh |u| is (1 - e) / (1 + e) and its derivative 4 e / (1 + e)^2, which
    is right also where 1 - tanh^2 would be a difference of equal numbers; likewise the sigmoid.
    """
    if CAP == "sigmoid":
        u = y / second
        small = tl.exp(-tl.abs(u))
        share = 1.0 / (1.0 + small)
        logits = first * share * tl.where(u < 0, small, 1.0)
        return logits, (first / second) * small * share * share, y
    elif CAP == "algebraic":
        shrunk = first * tl.rsqrt(y * y + first * first)
        return y * shrunk, shrunk * shrunk * shrunk, y
    elif CAP == "none":
        return y, y, y  # nothing reads the derivatives
    else:
        c = first
        if CAP == "asymmetric":
            c = tl.where(y > 0, first, second)
        u = y / c
        small = tl.exp(-2.0 * tl.abs(u))
        share = 1.0 / (1.0 + small)
        tanh = (1.0 - small) * share
        tanh = tl.where(u < 0, -tanh, tanh)
        slope = 4.0 * small * share * share
        return c * tanh, slope, tanh - u * slope


@triton.jit
def normalise_kernel(
    hidden,
    weight,
    targets,
    caps,
    log_z,
    target_logit,
    logit_sum,
    rows,
    vocab,
    width,
    scale,
    cap,
    divisor,
    CAP: tl.constexpr,
    SMOOTHED: tl.constexpr,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Log Z and the logit of the target of ROWS rows, all (rows,) in float32.

    Where targets are smoothed, the sum of all logits too.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wanted = tl.load(targets + row, row < rows, other=0)
    first, second = _bounds(cap, divisor, caps, CAP)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    picked = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS,), tl.float32)
    for start in range(0, vocab, VOCAB):
        token = start + tl.arange(0, VOCAB)
        products = _products(
            hidden, weight, tl.program_id(0) * ROWS, start, rows, vocab, width, width,
            ROWS, VOCAB, WIDTH, PRECISION,
        )  # fmt: skip
        logits, _, _ = _capped(products * scale, first, second, CAP)
        picked += tl.sum(tl.where(token[None] == wanted[:, None], logits, 0.0), 1)
        inside = (token < vocab)[None]
        if SMOOTHED:
            summed += tl.sum(tl.where(inside, logits, 0.0), 1)
        logits = tl.where(inside, logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, 1))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        most = higher
    tl.store(log_z + row, most + tl.log(total), row < rows)
    tl.store(target_logit + row, picked, row < rows)
    if SMOOTHED:
        tl.store(logit_sum + row, summed, row < rows)


@triton.jit
def slope_kernel(
    hidden,
    weight,
    targets,
    caps,
    log_z,
    share,
    slope,
    by_caps,
    rows,
    vocab,
    width,
    scale,
    cap,
    divisor,
    z_factor,
    kept,
    spread,
    CAP: tl.constexpr,
    ROWS: tl.constexpr,
    VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of the gradient of the loss by the products, (rows, vocab).

    By a logit it is share (1 + 2 z log Z) p, less the share times ``spread``, and less the share
    times ``kept`` where the target is; by a product it is that times the slope of the cap, and the
    scale. What adds up to the gradient by learned caps is ``by_caps`` (2, tiles of tokens, rows).
    A tile whose rows do not count multiplies nothing.
    """
    first_row, first_token = tl.program_id(0) * ROWS, tl.program_id(1) * VOCAB
    row, token = first_row + tl.arange(0, ROWS), first_token + tl.arange(0, VOCAB)
    counts = tl.load(share + row, row < rows, other=0.0)
    used = tl.where(tl.max(tl.abs(counts), 0) > 0, width, 0)
    products = _products(
        hidden, weight, first_row, first_token, rows, vocab, width, used,
        ROWS, VOCAB, WIDTH, PRECISION,
    )  # fmt: skip
    first, second = _bounds(cap, divisor, caps, CAP)
    y = products * scale
    logits, by_y, by_cap = _capped(y, first, second, CAP)
    wanted = tl.load(targets + row, row < rows, other=0)
    normaliser = tl.load(log_z + row, row < rows, other=0.0)
    by_logit = tl.exp(logits - normaliser[:, None])
    by_logit *= (counts * (1.0 + z_factor * normaliser))[:, None]
    by_logit -= counts[:, None] * (tl.where(token[None] == wanted[:, None], kept, 0.0) + spread)
    inside = (row < rows)[:, None] & (token < vocab)[None]
    by_logit = tl.where(inside & (counts != 0)[:, None], by_logit, 0.0)
    if CAP == "asymmetric":
        of_caps = by_logit * by_cap
        place = by_caps + tl.program_id(1).to(tl.int64) * rows + row
        tl.store(place, tl.sum(tl.where(y > 0, of_caps, 0.0), 1), row < rows)
        place += tl.num_programs(1).to(tl.int64) * rows
        tl.store(place, tl.sum(tl.where(y > 0, 0.0, of_caps), 1), row < rows)
    if CAP != "none":
        by_logit *= by_y
    slope += first_row.to(tl.int64) * vocab
    place = tl.arange(0, ROWS)[:, None] * vocab + token[None]
    tl.store(slope + place, (by_logit * scale).to(slope.dtype.element_ty), inside)
