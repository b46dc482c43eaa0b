"""Viterbi's search in loops that numba compiles, row by row: the same choices, bit for bit.

A column of the search is about twenty small operations on all rows in torch, whose calls take
longer than the sums. Here a row goes through a span of columns by itself, its survivors in the
first cache. Every sum and product is rounded as in :mod:`segpt.quant.viterbi`, in the same order;
what reaches beyond a span is a product of matrices, which stays torch's.

Numba takes some seconds to load and to compile, so that it pays only where much is coded.
"""

import functools
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.errors import SegptError

MOST_TORCH = 1 << 18  # weights of a process: torch takes seconds for them, as loading numba does
LARGEST = 127

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Span = Callable[[Floats, Floats, Floats, Integers, Codes, Bytes, Floats, Integers], None]
WalkBack = Callable[[Codes, Bytes, Integers, Codes], None]
Points = Callable[[Codes, Integers, NDArray[np.int16]], None]
Choice = Literal["auto", "torch", "numba"]

_choice: Choice = "auto"
_torch_weights = 0  # that torch was chosen for in this process

_INVERSE, _GAIN, _ERROR, _PRICE, _FACTOR = range(5)  # columns of `per_column`
_ONE, _TWO, _ZERO = np.float32(1), np.float32(2), np.float32(0)
_HALF, _QUARTER, _NEAR = np.float32(0.5), np.float32(0.25), np.float32(1.5)
_MOST, _ROUNDING = np.float32(LARGEST), np.float32(1.5 * 2**23)


class SearchLoops(NamedTuple):
    """The loops of numba, or None and the reason why there are none.

    Attributes:
        span: writes the choices of a span (rows, columns); see :func:`plain_span`.
        walk_back: writes the codes (rows, columns) of paths; see :func:`plain_walk_back`.
        points: writes the points (rows, columns) of codes; see :func:`plain_points`.
        reason: why there are none.
    """

    span: Span | None
    walk_back: WalkBack | None
    points: Points | None
    reason: str = ""


def use(choice: Choice) -> None:
    """Search with torch or with numba from now on, or with what is faster (``auto``).

    Raises:
        SegptError: if it shall be numba, and that is not installed or does not work.
    """
    global _choice
    if choice == "numba" and compiled().span is None:
        raise SegptError(f"numba does not work: {compiled().reason}")
    _choice = choice


def choose(count: int) -> SearchLoops | None:
    """The loops for ``count`` weights, or None where torch is to search.

    It is torch until all the weights of this process would take longer than to load numba.
    """
    global _torch_weights
    if _choice == "torch":
        return None
    if _choice == "auto" and not compiled.cache_info().currsize:
        _torch_weights += count
        if _torch_weights <= MOST_TORCH:
            return None
    return compiled() if compiled().span is not None else None


@functools.cache
def compiled() -> SearchLoops:
    """What numba makes of the loops, anew in every process as the decoder's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import numba

            callees = {f.__name__: numba.njit(f) for f in (plain_candidate, plain_errors)}
            loops: list[Any] = []
            signatures = _signatures(numba.types)
            for loop, signature in zip(_LOOPS, signatures, strict=True):
                # The same code, calling what is compiled.
                calling = FunctionType(loop.__code__, globals() | callees)
                loops.append(numba.njit(signature)(calling))
            return SearchLoops(*loops)
    except Exception as error:  # noqa: BLE001 - whatever it is, torch searches
        return SearchLoops(None, None, None, f"{type(error).__name__}: {error}")


def plain_span(
    left: Floats,
    cost: Floats,
    per_column: Floats,
    machine: Integers,
    codes: Codes,
    parents: Bytes,
    errors: Floats,
    ancestors: Integers,
) -> None:
    """Take the columns of a span one by one, in every row.

    Args:
        left: (rows, states, columns that are left), the corrected weights of the survivors.
        cost: (rows, states) of the survivors; moves along.
        per_column: (width, 4 + width), 1 / step, the prices of a squared miss, of a miss as an
            error and of a squared point, and the column's row of the factor.
        machine: (3, states), the two ways into each state, 2 * state + parity of the code, and
            the grid of the state; -1 on the uniform grid.
        codes: (width, rows, states), written.
        parents: (width, rows, states), the state that each survivor came from, written.
        errors: (rows, states, width), which each made in the span, written.
        ancestors: (rows, states), where each began the span, written.
    """
    (rows, states), width = cost.shape, len(per_column)
    now, then = np.empty((2, states, width), np.float32)
    made = np.empty((width, states), np.float32)
    code, miss, total = np.empty((3, 2 * states), np.float32)
    best, chosen = np.empty((2, states), np.float32)
    grid = np.repeat(machine[2], 2).astype(np.float32)
    priced = per_column[:, _PRICE].max() > _ZERO
    for row in range(rows):
        best[:] = cost[row]
        now[:] = left[row, :, :width]
        for i in range(width):
            inverse, gain = per_column[i, _INVERSE], per_column[i, _GAIN]
            size, price = per_column[i, _ERROR], per_column[i, _PRICE]
            for way in range(2 * states):
                x = now[way >> 1, i] * inverse
                code[way], point, far = plain_candidate(x, np.float32(way & 1), grid[way])
                miss[way] = far
                total[way] = far * far * gain + best[way >> 1]
                if priced:
                    total[way] += point * point * price
            for state in range(states):
                way = machine[0, state]
                if total[machine[1, state]] < total[way]:
                    way = machine[1, state]
                chosen[state] = total[way]
                parent = way >> 1
                made[i, state] = error = miss[way] * size
                codes[i, row, state] = np.int8(code[way])
                parents[i, row, state] = parent
                before, after, later = now[parent], then[state], per_column[i, _FACTOR:]
                for k in range(width):
                    after[k] = before[k] - error * later[k]
            now, then = then, now
            best, chosen = chosen, best
        cost[row] = best
        plain_errors(row, made, parents, errors, ancestors)


def plain_candidate(
    x: np.float32, parity: np.float32, grid: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """The nearest code of a parity to x, its point, and how far x is from that.

    Adding and taking off a number so large that floats have no halves there rounds to a whole
    number, ties to even.
    """
    if grid < _ZERO:
        whole = ((x - parity) * _HALF + _ROUNDING) - _ROUNDING
        whole = min(max(whole * _TWO + parity, -_MOST), _MOST)
        return whole, whole, x - whole
    away, sign = abs(x), -_ONE if x < _ZERO else _ONE
    quarter = _QUARTER * grid + _QUARTER * away
    whole = ((quarter - _HALF * parity) + _ROUNDING) - _ROUNDING
    whole = min(max(whole * _TWO + parity, parity), _MOST - _ONE + parity)
    whole = _ZERO if (away < _NEAR) & (parity < grid) else whole
    point = _TWO * whole - min(whole, grid)
    return whole * sign, point, (away - point) * sign


def plain_errors(
    row: int, made: Floats, parents: Bytes, errors: Floats, ancestors: Integers
) -> None:
    """Write the errors on the path to each state of a row, and where it began the span.

    Args:
        row: which.
        made: (width, states), the error that the survivor in each state made.
        parents: (width, rows, states), the state that each survivor came from.
        errors: (rows, states, width), written.
        ancestors: (rows, states), written.
    """
    width, states = made.shape
    for state in range(states):
        at = state
        for back in range(width):
            i = width - 1 - back
            errors[row, state, i] = made[i, at]
            at = int(parents[i, row, at])
        ancestors[row, state] = at


def plain_walk_back(codes: Codes, parents: Bytes, state: Integers, path: Codes) -> None:
    """Write the codes of the paths that end in the states (rows,) into ``path`` (rows, columns).

    Args:
        codes: (columns, rows, states) of the survivors.
        parents: (columns, rows, states), where each came from.
        state: (rows,) in which the paths end.
        path: (rows, columns), written.
    """
    columns, rows = codes.shape[:2]
    for row in range(rows):
        at = state[row]
        for back in range(columns):
            j = columns - 1 - back
            path[row, j] = codes[j, row, at]
            at = int(parents[j, row, at])


def points(codes: Codes, states: int) -> NDArray[np.int16]:
    """As :func:`segpt.trellis.points` of codes (rows, columns), by the loop where that is ready."""
    loop = compiled().points if _choice != "torch" and compiled.cache_info().currsize else None
    if loop is None or states == 1:
        return trellis.points(codes, states)
    machine = trellis.machine(states)
    table = np.column_stack([machine.following, machine.grid]).astype(np.int64)
    reached = np.empty(codes.shape, np.int16)
    loop(np.ascontiguousarray(codes), table, reached)
    return reached


def plain_points(codes: Codes, machine: Integers, reached: NDArray[np.int16]) -> None:
    """Write what codes (rows, columns) stand for into ``reached`` (rows, columns).

    Args:
        codes: (rows, columns), each row a path from state 0.
        machine: (states, 3), the successors after an even and an odd code, and the grid.
        reached: (rows, columns), written.
    """
    rows, columns = codes.shape
    for row in range(rows):
        state = 0
        for j in range(columns):
            code = np.int64(codes[row, j])
            reached[row, j] = 2 * code - machine[state, 2] * np.sign(code)
            state = int(machine[state, code & 1])


def _signatures(types: Any) -> tuple[object, ...]:
    """The arguments of the loops in numba's ``types``, all of them contiguous."""
    floats2, floats3 = types.float32[:, ::1], types.float32[:, :, ::1]
    codes, parents = types.int8[:, :, ::1], types.uint8[:, :, ::1]
    integers2 = types.int64[:, ::1]
    span = types.void(floats3, floats2, floats2, integers2, codes, parents, floats3, integers2)
    walk_back = types.void(codes, parents, types.int64[::1], types.int8[:, ::1])
    reached = types.void(types.int8[:, ::1], integers2, types.int16[:, ::1])
    return span, walk_back, reached


_LOOPS = plain_span, plain_walk_back, plain_points
