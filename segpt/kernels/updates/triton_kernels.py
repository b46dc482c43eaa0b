"""Kernels of updates: each number of weights and of what is remembered is read and written once.

Tensors are reached by addresses in tables. Arguments such as ``weight`` say the type of what is at
an address, and nothing is read from them. A tile that lies inside its tensor as a whole has a mask
that is known to be true, so that several numbers are read at once.
"""

import triton
import triton.language as tl


@triton.jit
def _lerp(start, end, share):
    """As torch has it: exact at both ends."""
    near = start + share * (end - start)
    return tl.where(share < 0.5, near, end - (end - start) * (1.0 - share))


@triton.jit
def _shrunk(weight, update, decay, kept, CAUTIOUS: tl.constexpr):
    """A weight after decay; a cautious one spares what the update moves away from zero."""
    if CAUTIOUS:
        agrees = tl.where(update * weight >= 0.0, 1.0, 0.0)
        return weight - decay * weight * agrees
    else:
        return weight * kept


@triton.jit
def _pointer(address, like, ALIGNED: tl.constexpr):
    pointer = address.to(like.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _adam_tile(
    weight,
    grad,
    mean,
    square,
    place,
    inside,
    mean_share,
    beta2,
    square_share,
    root_divisor,
    eps,
    rate,
    decay,
    kept,
    CAUTIOUS: tl.constexpr,
):
    g = tl.load(grad + place, inside, other=0.0).to(tl.float32)
    m = tl.load(mean + place, inside, other=0.0).to(tl.float32)
    v = tl.load(square + place, inside, other=0.0).to(tl.float32)
    w = tl.load(weight + place, inside, other=0.0).to(tl.float32)
    m = _lerp(m, g, mean_share)
    v = v * beta2 + square_share * g * g
    w = _shrunk(w, m, decay, kept, CAUTIOUS)
    root = tl.div_rn(tl.sqrt_rn(v), root_divisor) + eps
    w -= rate * tl.div_rn(m, root)
    tl.store(mean + place, m.to(mean.dtype.element_ty), inside)
    tl.store(square + place, v.to(square.dtype.element_ty), inside)
    tl.store(weight + place, w.to(weight.dtype.element_ty), inside)


@triton.jit
def adam_kernel(
    table,
    owner,
    weight,
    grad,
    mean,
    square,
    mean_share,
    beta2,
    square_share,
    root_divisor,
    eps,
    rate,
    decay,
    kept,
    CAUTIOUS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK numbers of one of many tensors.

    ``table`` is (tensors, 6): the addresses of a weight, its gradient and its two moments, their
    size, and the first program that works on them; ``owner`` (programs,) is each one's tensor.
    """
    program = tl.program_id(0)
    row = table + tl.load(owner + program).to(tl.int64) * 6
    w = _pointer(tl.load(row), weight, ALIGNED)
    g = _pointer(tl.load(row + 1), grad, ALIGNED)
    m = _pointer(tl.load(row + 2), mean, ALIGNED)
    v = _pointer(tl.load(row + 3), square, ALIGNED)
    size, first = tl.load(row + 4), tl.load(row + 5)
    start = (program - first) * BLOCK
    place = start + tl.arange(0, BLOCK)
    if start + BLOCK <= size:
        inside = tl.full((BLOCK,), 1, tl.int1)
        _adam_tile(
            w, g, m, v, place, inside, mean_share, beta2, square_share, root_divisor, eps, rate,
            decay, kept, CAUTIOUS,
        )  # fmt: skip
    else:
        inside = place < size
        _adam_tile(
            w, g, m, v, place, inside, mean_share, beta2, square_share, root_divisor, eps, rate,
            decay, kept, CAUTIOUS,
        )  # fmt: skip


@triton.jit
def _momentum_tile(
    grad, velocity, stack, place, inside, known, share, momentum, NESTEROV: tl.constexpr
):
    g = tl.load(grad + place, inside & known, other=0.0).to(tl.float32)
    m = tl.load(velocity + place, inside, other=0.0).to(tl.float32)
    m = _lerp(m, g, share)
    tl.store(velocity + place, m.to(velocity.dtype.element_ty), inside)
    if NESTEROV:
        m = _lerp(g, m, momentum)
    tl.store(stack + place, m.to(stack.dtype.element_ty), inside)


@triton.jit
def momentum_kernel(
    table,
    grad,
    velocity,
    stack,
    share,
    momentum,
    NESTEROV: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK numbers of a momentum, from its gradient, and their place in the stack of updates.

    ``table`` is (parts, 4): the addresses of a gradient, or 0, and of a momentum, their size, and
    where in ``stack`` (matrices, out, in) they go.
    """
    row = table + tl.program_id(1).to(tl.int64) * 4
    at, size = tl.load(row), tl.load(row + 2)
    g = _pointer(at, grad, ALIGNED)
    m = _pointer(tl.load(row + 1), velocity, ALIGNED)
    target = tl.load(row + 3)
    if ALIGNED:
        target = tl.multiple_of(target, 16)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    place = start + tl.arange(0, BLOCK)
    if start + BLOCK <= size:
        inside = tl.full((BLOCK,), 1, tl.int1)
        _momentum_tile(g, m, stack + target, place, inside, at != 0, share, momentum, NESTEROV)
    elif start < size:
        inside = place < size
        _momentum_tile(g, m, stack + target, place, inside, at != 0, share, momentum, NESTEROV)


@triton.jit
def second_moment_kernel(
    update,
    table,
    second,
    energy,
    lines,
    across,
    matrix_stride,
    line_stride,
    across_stride,
    share,
    LINES: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Sums of squares of lines of ``update``, ``energy`` (matrices, lines), and their moments.

    A line is a row or a column, as strides say. ``table`` (matrices, 1) has the addresses of the
    moments (lines,) of each matrix.
    """
    matrix = tl.program_id(1).to(tl.int64)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    update += matrix * matrix_stride
    total = tl.zeros((LINES, ACROSS), tl.float32)
    for start in range(0, across, ACROSS):
        k = start + tl.arange(0, ACROSS)
        place = line[:, None].to(tl.int64) * line_stride + k[None].to(tl.int64) * across_stride
        inside = (line < lines)[:, None] & (k < across)[None]
        x = tl.load(update + place, inside, other=0.0).to(tl.float32)
        total += x * x
    squares = tl.sum(total, 1)
    pointer = tl.load(table + matrix).to(second.dtype) + line
    moment = tl.load(pointer, line < lines, other=0.0).to(tl.float32)
    moment = _lerp(moment, squares / across, share)
    tl.store(pointer, moment.to(second.dtype.element_ty), line < lines)
    tl.store(energy + matrix * lines + line, squares, line < lines)


@triton.jit
def line_scale_kernel(table, second, energy, scale, lines, BLOCK: tl.constexpr):
    """What each line of a matrix is multiplied by, ``scale`` (matrices, lines).

    It is the inverse root of its moment, times what gives the matrix back its Frobenius norm.
    """
    matrix = tl.program_id(0).to(tl.int64)
    moments = tl.load(table + matrix).to(second.dtype)
    energy += matrix * lines
    before = tl.zeros((BLOCK,), tl.float32)
    after = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, lines, BLOCK):
        line = start + tl.arange(0, BLOCK)
        squares = tl.load(energy + line, line < lines, other=0.0)
        moment = tl.load(moments + line, line < lines, other=1.0).to(tl.float32)
        before += squares
        after += squares / tl.maximum(moment, 1e-10)
    norm, changed = tl.sqrt(tl.sum(before, 0)), tl.sqrt(tl.sum(after, 0))
    ratio = norm / tl.maximum(changed, 1e-10)
    for start in range(0, lines, BLOCK):
        line = start + tl.arange(0, BLOCK)
        moment = tl.load(moments + line, line < lines, other=1.0).to(tl.float32)
        inverse = 1.0 / tl.sqrt(tl.maximum(moment, 1e-10))
        tl.store(scale + matrix * lines + line, inverse * ratio, line < lines)


@triton.jit
def muon_kernel(
    table,
    weight,
    update,
    scale,
    columns,
    lines,
    matrix_stride,
    row_stride,
    column_stride,
    rate,
    decay,
    kept,
    LINE: tl.constexpr,
    CAUTIOUS: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of a weight (rows, columns) minus that of its update.

    ``table`` is (parts, 4): the address of a weight, its rows, the matrix of ``update`` that it is
    part of, and its first row in it. ``scale`` (matrices, lines) multiplies the update by row or
    by column, as LINE says, or not at all.
    """
    entry = table + tl.program_id(1).to(tl.int64) * 4
    w = _pointer(tl.load(entry), weight, ALIGNED)
    rows, matrix, first = tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)
    if ALIGNED:
        rows, first = tl.multiple_of(rows, 16), tl.multiple_of(first, 16)
    across = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None]
    place = row[:, None] * columns + column[None]
    update += matrix * matrix_stride
    source = (first + row)[:, None] * row_stride + column[None].to(tl.int64) * column_stride
    u = tl.load(update + source, inside, other=0.0).to(tl.float32)
    if LINE == "row":
        by_row = tl.load(scale + matrix * lines + first + row, row < rows, other=0.0)
        u = u * by_row[:, None]
    elif LINE == "column":
        by_column = tl.load(scale + matrix * lines + column, column < columns, other=0.0)
        u = u * by_column[None]
    old = tl.load(w + place, inside, other=0.0).to(tl.float32)
    new = _shrunk(old, u, decay, kept, CAUTIOUS) - rate * u
    tl.store(w + place, new.to(weight.dtype.element_ty), inside)
