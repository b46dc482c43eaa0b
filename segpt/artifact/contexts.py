"""Classes: which frequency table codes which code.

The class of ``codes[i, j]`` is ``rows[i] + columns[j]``, clipped: the scale of the codes to expect
there, in fractions of an octave. Classes are absolute, so that all tensors share their tables,
and neighbouring classes share one where that is cheaper than two. Codes with a clip at a multiple
of the row's standard deviation differ little by row; their columns carry the information.

Reading uses integers only. So does the search of the writer, whose choices would otherwise
depend on how a machine rounds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError

from . import tables
from .codec import squeeze
from .rans import SYMBOLS
from .tables import UNIT, Counts, Levels

Codes = NDArray[np.int8]
Shape = tuple[int, int]

MOST_CLASSES = 256

# Scales are measured in 1/64 octave, from 2^-5 up to 2^7.
_FINE, _DEEPEST, _OCTAVES = 64, 5, 12
_STEPS = (2, 4, 8)  # classes per octave
_ROUNDS = 2
_FIXED = 16  # fractional bits of a mean square
_SCALES = np.array(
    [
        math.floor(2.0 ** (_FIXED - 2 * _DEEPEST + k / (_FINE / 2)))
        for k in range(1, _FINE * _OCTAVES + 1)
    ],
    np.int64,
)
# About what a table and each symbol in it add to the file. The choice of the tables moves its
# size by less than 0.01 percent when these are halved or doubled.
_TABLE, _ENTRY = 16 * UNIT, 4 * UNIT
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Contexts:
    """Side information about every tensor, and the tables it selects.

    ``rows`` holds int8 (rows,) or (1,) per tensor, ``columns`` int8 (columns,) or a (1,) of 0.
    ``table_of`` maps each class to its table, ``levels`` is (tables, 256).
    """

    rows: tuple[Codes, ...]
    columns: tuple[Codes, ...]
    table_of: NDArray[np.uint8]
    levels: Levels

    @property
    def tables(self) -> NDArray[np.uint16]:
        """Frequencies (tables, 256)."""
        return tables.frequencies(self.levels)

    @property
    def sizes(self) -> list[int]:
        """The bytes that the side information of each tensor takes, unpacked."""
        columns = (len(c) if len(c) > 1 else 0 for c in self.columns)
        return [1 + len(r) + c for r, c in zip(self.rows, columns, strict=True)]

    def selected(self, shapes: Sequence[Shape]) -> NDArray[np.uint8]:
        """The table of every code (count,), tensor by tensor, each read row by row."""
        found = np.empty(sum(map(math.prod, shapes)), np.uint8)
        first = 0
        for shape, rows, columns in zip(shapes, self.rows, self.columns, strict=True):
            tensor = found[first : first + math.prod(shape)].reshape(shape)
            tall = np.broadcast_to(rows, shape[0])
            for band in _bands(shape):
                tensor[band] = self.table_of[_classes(tall[band], columns, len(self.table_of))]
            first += math.prod(shape)
        return found


def write(contexts: Contexts) -> tuple[bytes, bytes]:
    """The sections ``classes`` and ``tables``.

    Classes: a byte per tensor (1: a code per row, 2: a code per column), the row codes of all
    tensors (one code where there is none per row), the column codes of all. Tables: their number,
    how many classes share each, and the tables themselves.
    """
    pairs = list(zip(contexts.rows, contexts.columns, strict=True))
    modes = bytes((len(rows) > 1) | (len(columns) > 1) << 1 for rows, columns in pairs)
    shared = np.bincount(contexts.table_of, minlength=len(contexts.levels)).astype(np.uint8)
    return (
        modes
        + b"".join(rows.tobytes() for rows, _ in pairs)
        + b"".join(columns.tobytes() for _, columns in pairs if len(columns) > 1),
        bytes([len(shared)]) + shared.tobytes() + tables.write(contexts.levels),
    )


def read(classes: bytes, section: bytes, shapes: Sequence[Shape]) -> Contexts:
    """The inverse of :func:`write`, for tensors of known ``shapes``.

    Raises:
        ArtifactError: if a section is not what a writer makes for these shapes.
    """
    modes = classes[: len(shapes)]
    if len(modes) < len(shapes) or any(mode > 3 for mode in modes):
        raise ArtifactError("classes: a tensor has no valid mode")
    heights = [shape[0] if mode & 1 else 1 for mode, shape in zip(modes, shapes, strict=True)]
    widths = [shape[1] if mode & 2 else 0 for mode, shape in zip(modes, shapes, strict=True)]
    cuts = np.cumsum([len(shapes), *heights, *widths]).tolist()
    if len(classes) != cuts[-1]:
        raise ArtifactError("classes: the section does not have the length that its modes imply")
    runs = [
        np.frombuffer(classes[begin:end], np.int8) if end > begin else np.zeros(1, np.int8)
        for begin, end in pairwise(cuts)
    ]
    count = section[0] if section else 0
    shared = np.frombuffer(section[1 : 1 + count], np.uint8)
    if len(section) < 1 + count or (shapes and not count):
        raise ArtifactError("tables: the section holds no tables")
    if (shared == 0).any() or shared.sum(dtype=np.int64) > MOST_CLASSES:
        raise ArtifactError(f"tables: they serve no class or more than {MOST_CLASSES}")
    return Contexts(
        rows=tuple(runs[: len(shapes)]),
        columns=tuple(runs[len(shapes) :]),
        table_of=np.repeat(np.arange(count, dtype=np.uint8), shared),
        levels=tables.read(section[1 + count :], count),
    )


class Fit(NamedTuple):
    """Contexts, and the bits that codes will take under them."""

    contexts: Contexts
    bits: int


def choose(tensors: Sequence[Codes]) -> Fit:
    """The contexts that code ``tensors``, int8 (rows, columns) each, in the fewest bytes."""
    return min((_fit(tensors, step) for step in _STEPS), key=_bytes)


class _Choice(NamedTuple):
    """One way to give a tensor its classes."""

    rows: Codes
    columns: Codes
    counts: Counts  # (classes, 256)
    side: int  # what storing rows and columns costs, in 1/4096 bit


def _bytes(fit: Fit) -> int:
    return fit.bits // 8 + sum(len(squeeze(part).data) for part in write(fit.contexts))


def _fit(tensors: Sequence[Codes], step: int) -> Fit:
    choices = [_choices(codes, step) for codes in tensors]
    chosen = [ways[-1] for ways in choices]
    for _ in range(_ROUNDS):
        table_of, levels = _tables(chosen)
        prices = _prices(table_of, levels, _OCTAVES * step + 1)
        chosen = [min(ways, key=lambda way: _cost(way, prices)) for ways in choices]
    table_of, levels = _tables(chosen)
    prices = _prices(table_of, levels, _OCTAVES * step + 1)
    contexts = Contexts(
        tuple(way.rows for way in chosen), tuple(way.columns for way in chosen), table_of, levels
    )
    bits = sum(int((way.counts * prices).sum()) for way in chosen) // UNIT
    return Fit(contexts, bits)


def _choices(codes: Codes, step: int) -> list[_Choice]:
    """One class for the whole tensor, classes by column, by row, and by both."""
    unit = _FINE // step
    by_row, by_column = _squares(codes)
    height, width = codes.shape
    whole = _scales(by_row.sum(keepdims=True), height * width)
    rows, row = (_coarse(s, unit) for s in (_scales(by_row, width), whole))
    columns, column = _coarse(_scales(by_column, height) - whole, unit), np.zeros(1, np.int8)
    counts = _counts(codes, rows, columns)
    first, left = int(rows.min()), int(columns.min())
    seen_rows = np.arange(first, first + counts.shape[0], dtype=np.int8)
    seen_columns = np.arange(left, left + counts.shape[1], dtype=np.int8)
    return [
        _Choice(r, c, _gather(counts, seen_r, seen_c, _OCTAVES * step + 1), _side(r) + _side(c))
        for r, c, seen_r, seen_c in (
            (row, column, row, column),
            (row, columns, row, seen_columns),
            (rows, column, seen_rows, column),
            (rows, columns, seen_rows, seen_columns),
        )
    ]


def _classes(rows: Codes, columns: Codes, classes: int) -> NDArray[np.int16]:
    return np.clip(rows[:, None].astype(np.int16) + columns, 0, classes - 1)


def _bands(shape: Shape) -> Iterator[slice]:
    """Bands of rows, small enough that temporaries of eight times their size do not matter."""
    height = max(1, _BLOCK // shape[1])
    return (slice(first, first + height) for first in range(0, shape[0], height))


def _squares(codes: Codes) -> tuple[Counts, Counts]:
    """Sums of squares by row and by column."""
    by_row, by_column = np.zeros(codes.shape[0], np.int64), np.zeros(codes.shape[1], np.int64)
    for band in _bands(codes.shape):
        squares = np.square(codes[band], dtype=np.int32)
        by_row[band] = squares.sum(axis=1, dtype=np.int64)
        by_column += squares.sum(axis=0, dtype=np.int64)
    return by_row, by_column


def _scales(squares: Counts, count: int) -> Counts:
    """The root of the mean square, in 1/64 octave above 2^-5."""
    return np.searchsorted(_SCALES, (squares << _FIXED) // count, side="right").astype(np.int64)


def _coarse(scales: Counts, unit: int) -> Codes:
    return ((scales + unit // 2) // unit).astype(np.int8)


def _counts(codes: Codes, rows: Codes, columns: Codes) -> Counts:
    """How often each symbol occurs by row code and column code, each counted from its smallest."""
    row, column = rows.astype(np.int64) - rows.min(), columns.astype(np.int64) - columns.min()
    shape = (int(row.max()) + 1, int(column.max()) + 1, SYMBOLS)
    total = np.zeros(math.prod(shape), np.int64)
    for band in _bands(codes.shape):
        keys = (row[band, None] * shape[1] + column) * SYMBOLS + codes[band].view(np.uint8)
        total += np.bincount(keys.ravel(), minlength=len(total))
    return total.reshape(shape)


def _gather(counts: Counts, rows: Codes, columns: Codes, classes: int) -> Counts:
    """Add up what :func:`_counts` counted by the class it falls into."""
    found = np.zeros((classes, SYMBOLS), np.int64)
    where = np.broadcast_to(_classes(rows, columns, classes), counts.shape[:2])
    np.add.at(found, where.ravel(), counts.reshape(-1, SYMBOLS))
    return found


def _side(codes: Codes) -> int:
    return tables.entropy(np.bincount(codes.view(np.uint8)))


def _tables(chosen: Sequence[_Choice]) -> tuple[NDArray[np.uint8], Levels]:
    """Cut the classes into runs that share a table, at the least cost of codes and tables."""
    counts = sum((way.counts for way in chosen), np.zeros((1, SYMBOLS), np.int64))
    seen = np.flatnonzero(counts.any(axis=1))
    sums = np.concatenate([np.zeros((1, SYMBOLS), np.int64), counts[seen].cumsum(axis=0)])
    least, starts = np.zeros(len(sums), np.int64), np.zeros(len(sums), np.int64)
    for end in range(1, len(sums)):
        merged = sums[end] - sums[:end]
        levels = tables.levels(merged)
        price = (merged * tables.costs(tables.frequencies(levels))).sum(axis=1)
        price += least[:end] + _TABLE + _ENTRY * (levels > 0).sum(axis=1)
        starts[end] = price.argmin()
        least[end] = price[starts[end]]
    cuts = [len(seen)]
    while cuts[-1]:
        cuts.append(int(starts[cuts[-1]]))
    cuts.reverse()
    levels = tables.levels(sums[cuts[1:]] - sums[cuts[:-1]])
    classes = np.arange(seen[-1] + 1 if len(seen) else 0)
    return np.searchsorted(seen[cuts[1:-1]], classes, side="right").astype(np.uint8), levels


def _prices(table_of: NDArray[np.uint8], levels: Levels, classes: int) -> Counts:
    """What each symbol costs in each class (classes, 256)."""
    if not len(levels):
        return np.zeros((classes, SYMBOLS), np.int64)
    last = len(table_of) - 1
    return tables.costs(tables.frequencies(levels))[table_of[np.arange(classes).clip(0, last)]]


def _cost(way: _Choice, prices: Counts) -> int:
    return int((way.counts * prices).sum()) + way.side
