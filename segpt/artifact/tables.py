"""Frequency tables: 256 symbols that share 2^14, in about a byte per symbol that occurs.

A table is stored as a *level* per symbol, a byte on a scale that is linear up to 32 and then
doubles every 16 steps. On that scale a bell curve is a parabola, whose second differences are
all the same, which is what is stored. Levels give weights, and weights are scaled to frequencies
with integers only, so that every machine derives the same tables and every byte string is a valid
one. Symbols are int8 codes read as uint8, so that -1 is symbol 255.
"""

import math

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError

from .loops import PRECISION
from .rans import SYMBOLS, TOTAL

Counts = NDArray[np.int64]
Levels = NDArray[np.uint8]

FARTHEST = 127
UNIT = 1 << 12  # costs are integers in 1/4096 bit, so that no choice hangs on a rounding error

_WEIGHTS = np.array([k if k < 16 else (16 + k % 16) << (k // 16 - 1) for k in range(256)], np.int64)
_FRACTION = 4
_BETWEEN = (_WEIGHTS[1:] + _WEIGHTS[:-1]) << (_FRACTION - 1)
# What a symbol of each frequency costs. A frequency of 0 cannot be coded: more than any other.
_COSTS = np.array(
    [24 * UNIT, *(round(UNIT * (PRECISION - math.log2(f))) for f in range(1, TOTAL + 1))], np.int64
)


def levels(counts: Counts) -> Levels:
    """The levels (tables, 256) that come closest to ``counts``; symbols that occur get 1 or more.

    A table without counts gives everything to symbol 0.
    """
    total = counts.sum(axis=1, keepdims=True)
    used = counts > 0  # few symbols of most tables
    shares = (counts[used] << (PRECISION + _FRACTION)) // np.broadcast_to(total, used.shape)[used]
    closest = np.zeros(counts.shape, np.uint8)
    closest[used] = np.searchsorted(_BETWEEN, shares, side="right").clip(1)
    closest[:, :1] += total == 0
    return closest


def frequencies(levels: Levels) -> NDArray[np.uint16]:
    """Tables (tables, 256) that sum to 2^14 each; the most frequent symbol takes what is left.

    At most 255 symbols are in use and k (255 - k) < 2^14, so it always keeps at least 1.
    """
    weights = _WEIGHTS[levels]
    total = weights.sum(axis=1, keepdims=True)
    tables = np.where(weights > 0, np.maximum(1, weights * TOTAL // total), 0)
    tables[np.arange(len(tables)), weights.argmax(axis=1)] += TOTAL - tables.sum(axis=1)
    return tables.astype(np.uint16)


def costs(tables: NDArray[np.uint16]) -> Counts:
    """What every symbol costs, (tables, 256) in 1/4096 bit; 24 bits where it cannot be coded."""
    return _COSTS[tables]


def prices(counts: Counts) -> Counts:
    """What each value with these ``counts`` (..., values) costs in a table of its own, as above."""
    total = np.maximum(1, counts.sum(axis=-1, keepdims=True))
    return _COSTS[np.maximum(1, (counts << PRECISION) // total)]


def write(levels: Levels, stride: int = 1) -> bytes:
    """Levels (tables, 256) as bytes, without the symbols beyond the reach of each table.

    One byte of reach per table, the largest absolute code in use, and a byte that tells whether
    the levels of -m are not all those of m. Then, table by table, a number for each code from 0
    to the reach: the level of 0, the step to that of 1, and how each step outwards differs from
    the one before; less the same number of the table ``stride`` before. Then, if they differ, how
    the levels of -1, -2, ... differ from those of 1, 2, ... All modulo 256.
    """
    positive, negative = levels[:, : FARTHEST + 1], levels[:, : SYMBOLS - FARTHEST - 1 : -1]
    used = positive > 0
    used[:, 1:] |= negative > 0
    reach = FARTHEST - used[:, ::-1].argmax(axis=1)
    within = np.arange(FARTHEST + 1) <= reach[:, None]
    outward = np.diff(positive, axis=1, prepend=np.uint8(0))
    outward[:, 2:] = np.diff(outward[:, 1:], axis=1)
    outward *= within
    outward[stride:] -= outward[:-stride].copy()
    mirror = (negative - positive[:, 1:])[within[:, 1:]]
    lopsided = bool(mirror.any())
    return (
        reach.astype(np.uint8).tobytes()
        + bytes([lopsided])
        + outward[within].tobytes()
        + mirror.tobytes() * lopsided
    )


def read(data: bytes, tables: int, stride: int = 1) -> Levels:
    """The inverse of :func:`write` for a known number of tables, (tables, 256).

    Raises:
        ArtifactError: if ``data`` has another length than the reaches imply, a reach is beyond
            127, or a table is empty.
    """
    levels, end = read_some(data, tables, stride)
    if end != len(data):
        raise ArtifactError("tables: the section does not have the length that the reaches imply")
    return levels


def read_some(data: bytes, tables: int, stride: int = 1) -> tuple[Levels, int]:
    """As :func:`read`, (tables, 256), from the start of ``data``; also where the tables end."""
    reach = reaches(data[:tables], tables)
    flag = data[tables : tables + 1]
    if flag not in (b"\0", b"\1"):
        raise ArtifactError("tables: they are neither symmetric nor lopsided")
    outward = tables + 1
    mirror = outward + int(reach.sum()) + tables
    end = mirror + int(reach.sum()) * flag[0]
    if len(data) < end:
        raise ArtifactError("tables: the section does not have the length that the reaches imply")
    steps = spread(data[outward:mirror], reach, 0)
    for before, step, most in zip(steps, steps[stride:], reach[stride:], strict=False):
        step[: most + 1] += before[: most + 1]
    steps[:, 1:] = np.cumsum(steps[:, 1:], axis=1, dtype=np.uint8)
    return join(reach, steps, spread(data[mirror:end], reach, 1) if flag[0] else None), end


def reaches(data: bytes, tables: int) -> Counts:
    """The reach of each table, (tables,), of one byte each.

    Raises:
        ArtifactError: if one is missing or beyond 127.
    """
    reach = np.frombuffer(data, np.uint8).astype(np.int64)
    if len(reach) < tables or (reach > FARTHEST).any():
        raise ArtifactError("tables: a reach is missing or beyond 127")
    return reach


def spread(data: bytes, reach: Counts, first: int) -> Levels:
    """The bytes for codes from ``first`` to the reach of each table, 0 beyond it.

    ``reach`` is (tables,), and the result (tables, 128 - first).
    """
    codes = np.arange(first, FARTHEST + 1)
    table = np.zeros((len(reach), len(codes)), np.uint8)
    table[codes <= reach[:, None]] = np.frombuffer(data, np.uint8)
    return table


def join(reach: Counts, steps: Levels, mirror: Levels | None) -> Levels:
    """Levels (tables, 256) from the steps outwards and how negative codes differ.

    Raises:
        ArtifactError: if a table is empty.
    """
    within = np.arange(FARTHEST + 1) <= reach[:, None]
    positive = np.cumsum(steps, axis=1, dtype=np.uint8) * within
    levels = np.zeros((len(reach), SYMBOLS), np.uint8)
    levels[:, : FARTHEST + 1] = positive
    levels[:, : SYMBOLS - FARTHEST - 1 : -1] = positive[:, 1:] + (0 if mirror is None else mirror)
    if not levels.any(axis=1).all():
        raise ArtifactError("tables: a table gives no symbol a frequency")
    return levels
