"""The search for contexts: for every tensor the side information that pays, then the tables.

Which side information pays depends on the tables, which all tensors share, and the best tables on
the side information of all. So the two take turns, beginning without tables::

    candidates    of each tensor: side information by row, by column or by both, in some unit
    choice        of each tensor its cheapest candidate, at the prices of the tables
    runs          of all classes: cut where two tables are cheaper than one, by dynamic programming

Integers only: choices would otherwise depend on how a machine rounds, and the bytes with them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import contexts, tables
from .codec import squeeze
from .contexts import UNITS, Codes, Contexts, Side, Tensor
from .rans import SYMBOLS
from .tables import UNIT, Counts, Levels

# Scales are measured in 1/64 octave, from 2^-5 up to 2^7; a class is an eighth of an octave.
_FINE, _DEEPEST, _OCTAVES = 64, 5, 12
_EIGHTH = _FINE // 8
_CLASSES = 8 * _OCTAVES + 1
_ROUNDS = 2
_FIXED = 16  # fractional bits of a mean square
_SCALES = np.array(
    [
        math.floor(2.0 ** (_FIXED - 2 * _DEEPEST + k / (_FINE / 2)))
        for k in range(1, _FINE * _OCTAVES + 1)
    ],
    np.int64,
)
# About what a table and each symbol in it add to the file.
_TABLE, _ENTRY = 16 * UNIT, 5 * UNIT
# Gaussian codes in a table for e^d times their scale take about d^2 nats more each. A miss of m
# in 1/64 octave is d = m ln 2 / 64, which comes to m^2 ln 2 / 4096 bit.
_MISS, _MISS_BITS = 177, 8  # 177 / 2^8 is about ln 2
# Side information weighs twice what it takes. The optimum is flat: files grow by a few hundredths
# of a percent at most, and a third of the side information goes.
_WEIGHT = 2
_BAND = 1 << 20


class Fit(NamedTuple):
    """Contexts as the stream uses them and as sections hold them, and the bits of the codes."""

    contexts: Contexts
    classes: bytes
    tables: bytes
    bits: int


class _Candidate(NamedTuple):
    """One way to give a tensor its classes.

    ``counts`` is (classes, symbols of all grids), from the class ``first`` on to the last in use.
    """

    stored: Side
    first: int
    counts: NDArray[np.int32]

    @property
    def classes(self) -> slice:
        return slice(self.first, self.first + len(self.counts))


def choose(
    codes: Sequence[Codes], grids: Sequence[NDArray[np.uint8] | None], tensors: Sequence[Tensor]
) -> Fit:
    """The contexts that code ``codes``, int8 (rows, columns) each, in the fewest bytes.

    ``grids`` tells the grid of every code of a tensor, None where there is only one.
    """
    symbols = SYMBOLS * (2 if any(t.states > 1 for t in tensors) else 1)
    candidates = [
        _candidates(_Source(*parts, symbols)) for parts in zip(codes, grids, tensors, strict=True)
    ]
    chosen = [min(those, key=_cost_alone) for those in candidates]
    for _ in range(_ROUNDS):
        runs, levels = _runs_and_levels(_total(chosen, symbols))
        prices, side_prices = _prices(runs, levels, symbols), _side_prices(chosen)
        chosen = [
            min(those, key=lambda candidate: _cost(candidate, prices, side_prices))
            for those in candidates
        ]
    total = _total(chosen, symbols)
    sides = [candidate.stored for candidate in chosen]
    classes = contexts.write(sides)
    runs, fits = _runs_and_levels(total)[0], []
    for symmetric in (True, False):
        levels = _levels(_by_run(total, runs), symmetric).reshape(-1, SYMBOLS)
        section = contexts.write_tables(sides, runs, levels, symbols // SYMBOLS)
        bits = int((total * _prices(runs, levels, symbols)).sum()) // UNIT
        fits.append(Fit(contexts.read(classes, section, tensors), classes, section, bits))
    return min(fits, key=lambda fit: fit.bits // 8 + len(squeeze(fit.tables).data))


class _Source(NamedTuple):
    """A tensor to find classes for."""

    codes: Codes
    grids: NDArray[np.uint8] | None
    tensor: Tensor
    symbols: int

    def candidate(self, stored: Side) -> _Candidate:
        rows, columns = stored.classes(self.tensor)
        shape = (_CLASSES, self.symbols)
        counts = contexts.count(self.codes, self.grids, rows, columns, shape)
        used = np.flatnonzero(counts.any(axis=1))
        first, last = int(used[0]), int(used[-1])
        return _Candidate(stored, first, counts[first : last + 1].astype(np.int32))


def _candidates(source: _Source) -> list[_Candidate]:
    """Side information by column, by row and by both, in units of all sizes.

    A code of row i and column j is expected at the scale whole + rows[i] + columns[j], in octaves:
    what the whole tensor has, and by how much a row or a column differs. The steps predict some of
    the difference, as codes are smaller where a step is larger; ``rows`` and ``columns`` are what
    they do not predict.
    """
    height, width = source.codes.shape
    by_row, by_column = _squares(source.codes)
    (whole,) = _scales(by_row.sum(keepdims=True), height * width)
    row_mean, column_mean = (_mean(e) for e in (source.tensor.rows, source.tensor.columns))
    base = _nearest(int(whole), _EIGHTH) + row_mean + column_mean
    rows = _scales(by_row, width) - whole + _EIGHTH * (source.tensor.rows.astype(int) - row_mean)
    columns = _scales(by_column, height) - whole
    columns += _EIGHTH * (source.tensor.columns.astype(int) - column_mean)

    def side(row_unit: int, column_unit: int) -> Side:
        return Side(
            base,
            row_unit,
            _coarse(rows, row_unit, width),
            column_unit,
            _coarse(columns, column_unit, height),
        )

    units = [(0, unit) for unit in UNITS]
    units += [(unit, other) for unit in UNITS[1:] for other in (0, 2)]
    return [source.candidate(side(*pair)) for pair in units]


def _mean(exponents: Codes) -> int:
    return _nearest(int(exponents.sum(dtype=np.int64)), len(exponents))


def _nearest(value: int, unit: int) -> int:
    """The multiple of ``unit`` that is nearest to a value, as how many units it is."""
    return (2 * value + unit) // (2 * unit)


def _coarse(scales: Counts, unit: int, size: int) -> Codes:
    """Codes for ``scales`` in units of so many classes, at the least cost; none for a unit of 0.

    A scale is that of ``size`` codes, and missing it costs each of them about its square. What a
    value costs depends on how often it is used, and what it is used for on what it costs: so from
    the nearest values on, these two take turns (entropy-constrained quantization, Chou 1989).
    """
    if not unit:
        return np.zeros(0, np.int8)
    codes = ((scales + unit * _EIGHTH // 2) // (unit * _EIGHTH)).clip(-127, 127)
    for _ in range(_ROUNDS):
        values, counts = np.unique(codes, return_counts=True)
        missed = scales[:, None] - unit * _EIGHTH * values
        cost = (size * _MISS * missed**2 >> _MISS_BITS) + _weighed(counts)  # (scales, values)
        codes = values[cost.argmin(axis=1)]
    return codes.astype(np.int8)


def _squares(codes: Codes) -> tuple[Counts, Counts]:
    """Sums of squares by row and by column."""
    by_row, by_column = np.zeros(codes.shape[0], np.int64), np.zeros(codes.shape[1], np.int64)
    for band in _bands(codes.shape):
        squares = np.square(codes[band], dtype=np.int32)
        by_row[band] = squares.sum(axis=1, dtype=np.int64)
        by_column += squares.sum(axis=0, dtype=np.int64)
    return by_row, by_column


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Bands of rows, small enough that temporaries of eight times their size do not matter."""
    height = max(1, _BAND // shape[1])
    return (slice(first, first + height) for first in range(0, shape[0], height))


def _scales(squares: Counts, count: int) -> Counts:
    """The root of the mean square, in 1/64 octave above 2^-5."""
    return np.searchsorted(_SCALES, (squares << _FIXED) // count, side="right").astype(np.int64)


def _total(chosen: Sequence[_Candidate], symbols: int) -> Counts:
    """The counts of all tensors by class (classes, symbols)."""
    total = np.zeros((_CLASSES, symbols), np.int64)
    for candidate in chosen:
        total[candidate.classes] += candidate.counts
    return total


def _runs_and_levels(counts: Counts) -> tuple[NDArray[np.uint8], Levels]:
    """Cut the classes into runs that share tables, at the least cost of codes and tables.

    Args:
        counts: by class (classes, symbols).

    Returns:
        The run of each class, and levels (runs * grids, 256).
    """
    used = np.flatnonzero(counts.any(axis=1))
    cuts = _cheapest_cuts(counts[used])
    classes = np.arange(used[-1] + 1 if len(used) else 0)
    # A class that no code has goes with the used one below it.
    runs = np.searchsorted(used[cuts[1:-1]], classes, side="right").astype(np.uint8)
    return runs, _levels(_by_run(counts, runs), True).reshape(-1, SYMBOLS)


def _cheapest_cuts(counts: Counts) -> list[int]:
    """Where to cut a row of n classes, ``counts`` (n, symbols), into runs: 0, ..., n.

    Dynamic programming over the ends of runs. What the first ``end`` classes cost at least is::

        least[end] = min over begin < end of least[begin] + cost of one run of begin ... end - 1

        0        begin of the last run      end           n
        |-- cut at the least cost --|-- one run --|.......|

    A run costs its codes, in the tables that fit them best, and these tables. Then the cuts are
    read off backwards: the last run begins at ``begins[n]``, the one before it ends there.
    """
    count, symbols = counts.shape
    sums = np.concatenate([np.zeros((1, symbols), np.int64), counts.cumsum(axis=0)])
    least, begins = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    for end in range(1, count + 1):
        merged = (sums[end] - sums[:end]).reshape(end, -1, SYMBOLS)  # (begins, grids, 256)
        levels = _levels(merged, True)
        cost = (merged * tables.costs(_frequencies(levels))).sum(axis=(1, 2))
        entries = (levels[..., : SYMBOLS // 2] > 0).sum(axis=(1, 2))
        cost += least[:end] + _TABLE + _ENTRY * entries
        begins[end] = cost.argmin()
        least[end] = cost[begins[end]]
    cuts = [count]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    return cuts[::-1]


def _by_run(counts: Counts, runs: NDArray[np.uint8]) -> Counts:
    """Counts by class (classes, symbols) added up by run: (runs, grids, 256)."""
    total = np.zeros((int(runs[-1]) + 1 if len(runs) else 0, counts.shape[1]), np.int64)
    np.add.at(total, runs, counts[: len(runs)])
    return total.reshape(len(total), counts.shape[1] // SYMBOLS, SYMBOLS)


def _levels(counts: Counts, symmetric: bool) -> Levels:
    """The levels of tables (..., 256); if ``symmetric``, the same for m and -m."""
    if symmetric:
        mirrored = counts.copy()
        mirrored[..., 1:] += counts[..., :0:-1]
        mirrored[..., 0] *= 2
        counts = mirrored
    return tables.levels(counts.reshape(-1, SYMBOLS)).reshape(counts.shape)


def _frequencies(levels: Levels) -> NDArray[np.uint16]:
    return tables.frequencies(levels.reshape(-1, SYMBOLS)).reshape(levels.shape)


def _prices(runs: NDArray[np.uint8], levels: Levels, symbols: int) -> Counts:
    """What each symbol costs in each class (classes, symbols)."""
    if not len(runs):
        return np.zeros((_CLASSES, symbols), np.int64)
    prices = tables.costs(tables.frequencies(levels)).reshape(-1, symbols)
    return prices[runs[np.arange(_CLASSES).clip(0, len(runs) - 1)]]


def _cost_alone(candidate: _Candidate) -> int:
    """What a tensor costs if every class has its own table, in 1/4096 bit.

    That is where the search starts: tables of coarse classes would hide what finer ones can gain.
    """
    counts = candidate.counts.reshape(-1, SYMBOLS).astype(np.int64)
    codes = int((counts * tables.prices(counts)).sum())
    return codes + _side_cost(candidate, _side_prices([candidate]))


def _side_prices(chosen: Sequence[_Candidate]) -> Counts:
    """What each code for a row or a column costs, which all tensors share (256,)."""
    counts = np.zeros(SYMBOLS, np.int64)
    for candidate in chosen:
        for codes in (candidate.stored.rows, candidate.stored.columns):
            counts += np.bincount(codes.view(np.uint8), minlength=SYMBOLS)
    return _weighed(counts)


def _weighed(counts: Counts) -> Counts:
    return _WEIGHT * tables.prices(counts)


def _cost(candidate: _Candidate, prices: Counts, side_prices: Counts) -> int:
    """What the codes and the side information of a tensor cost, in 1/4096 bit."""
    codes = int((candidate.counts * prices[candidate.classes]).sum())
    return codes + _side_cost(candidate, side_prices)


def _side_cost(candidate: _Candidate, prices: Counts) -> int:
    stored = (candidate.stored.rows, candidate.stored.columns)
    return sum(int(prices[codes.view(np.uint8)].sum()) for codes in stored)
