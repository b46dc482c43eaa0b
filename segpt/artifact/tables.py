"""Frequency tables: 256 symbols that share 2^14, in about a byte per symbol that occurs.

A table is stored as a *level* per symbol, a byte on a scale that is linear up to 32 and then
doubles every 16 steps. Levels give weights, and weights are scaled to frequencies with integers
only, so that every machine derives the same tables and every byte string is a valid one.
Symbols are int8 codes read as uint8, so that -1 is symbol 255.
"""

import math

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError

from .rans import PRECISION, SYMBOLS, TOTAL

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
    shares = (counts << (PRECISION + _FRACTION)) // np.maximum(total, 1)
    found = np.maximum(np.searchsorted(_BETWEEN, shares, side="right"), counts > 0)
    found[:, :1] += total == 0
    return found.astype(np.uint8)


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
    """What every symbol costs, in 1/4096 bit; about 24 bits where it cannot be coded."""
    return _COSTS[tables]


def entropy(counts: Counts) -> int:
    """What values with these ``counts`` cost by themselves, in 1/4096 bit."""
    share = np.maximum(1, (counts << PRECISION) // max(1, int(counts.sum())))
    return int((counts * _COSTS[share]).sum())


def write(levels: Levels) -> bytes:
    """Levels as bytes, without the symbols beyond the reach of each table.

    One byte of reach per table, the largest absolute code in use. Then, table by table, the level
    of 0 and the steps outwards to the levels of 1, 2, ... Then, table by table, how the levels of
    -1, -2, ... differ from those of 1, 2, ... All modulo 256.
    """
    positive, negative = levels[:, : FARTHEST + 1], levels[:, : SYMBOLS - FARTHEST - 1 : -1]
    used = positive > 0
    used[:, 1:] |= negative > 0
    reach = FARTHEST - used[:, ::-1].argmax(axis=1)
    within = np.arange(FARTHEST + 1) <= reach[:, None]
    outward = np.diff(positive, axis=1, prepend=np.uint8(0))
    mirror = negative - positive[:, 1:]
    return (
        reach.astype(np.uint8).tobytes()
        + outward[within].tobytes()
        + mirror[within[:, 1:]].tobytes()
    )


def read(data: bytes, tables: int) -> Levels:
    """The inverse of :func:`write` for a known number of tables.

    Raises:
        ArtifactError: if ``data`` has another length than the reaches imply, a reach is beyond
            127, or a table is empty.
    """
    reach = np.frombuffer(data[:tables], np.uint8).astype(np.int64)
    if len(reach) < tables or (reach > FARTHEST).any():
        raise ArtifactError("tables: a reach is missing or beyond 127")
    within = np.arange(FARTHEST + 1) <= reach[:, None]
    cut = tables + int(within.sum())
    if len(data) != cut + int(reach.sum()):
        raise ArtifactError("tables: the section does not have the length that the reaches imply")
    outward = np.zeros(within.shape, np.uint8)
    outward[within] = np.frombuffer(data[tables:cut], np.uint8)
    mirror = np.zeros((tables, FARTHEST), np.uint8)
    mirror[within[:, 1:]] = np.frombuffer(data[cut:], np.uint8)
    positive = np.cumsum(outward, axis=1, dtype=np.uint8) * within
    levels = np.zeros((tables, SYMBOLS), np.uint8)
    levels[:, : FARTHEST + 1] = positive
    levels[:, : SYMBOLS - FARTHEST - 1 : -1] = positive[:, 1:] + mirror
    if not levels.any(axis=1).all():
        raise ArtifactError("tables: a table gives no symbol a frequency")
    return levels
