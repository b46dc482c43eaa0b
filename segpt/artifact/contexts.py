"""Contexts: which frequency table codes which code.

The class of ``codes[i, j]`` is ``rows[i] + columns[j]``, clipped: the scale of the codes to expect
there, in eighths of an octave. Where the step of a weight is larger its codes are smaller, so what
is stored is how the classes differ from what the steps predict, in units of 1, 2 or 4. Classes are
absolute, so that all tensors share their tables, and neighbouring classes share one where that is
cheaper than two. Where weights alternate between grids, every class has a table for each grid.

Reading uses integers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from segpt.errors import ArtifactError

from . import tables
from .rans import SYMBOLS
from .tables import Counts, Levels

Codes = NDArray[np.int8]
Classes = NDArray[np.int16]

MOST_CLASSES = 256
MOST_RUNS = 127  # of classes that share their tables
FARTHEST_BASE = 1024
UNITS = (0, 1, 2, 4)  # by the bits of a mode; 0 stores nothing

_BASE = np.dtype("<i2")
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Tensor:
    """What a reader knows of a tensor before its codes.

    ``rows`` (rows,) and ``columns`` (columns,) are int8 exponents of its steps, in eighths of an
    octave; ``states`` is the number of states of its machine.
    """

    states: int
    rows: Codes
    columns: Codes

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)


@dataclass(frozen=True, eq=False)
class Side:
    """What is stored about the classes of a tensor: ``base``, and codes by row and by column.

    These are ``rows`` (rows,) and ``columns`` (columns,); a unit of 0 comes without codes.
    """

    base: int
    row_unit: int
    rows: Codes
    column_unit: int
    columns: Codes

    def classes(self, tensor: Tensor) -> tuple[Classes, Classes]:
        """What rows and columns of ``tensor`` add to its classes, (rows,) and (columns,)."""
        return (
            self.base + _predicted(tensor.rows, self.row_unit, self.rows),
            _predicted(tensor.columns, self.column_unit, self.columns),
        )


@dataclass(frozen=True, eq=False)
class Contexts:
    """The classes of every tensor by row and by column, and the tables they select.

    ``runs`` maps each class to the run that shares its tables; ``levels`` is (runs * grids, 256),
    the tables of a run one after the other. ``sizes`` are the bytes that each tensor has in the
    section ``classes``, unpacked.
    """

    rows: tuple[Classes, ...]
    columns: tuple[Classes, ...]
    runs: NDArray[np.uint8]
    levels: Levels
    grids: int
    sizes: tuple[int, ...]

    @property
    def tables(self) -> NDArray[np.uint16]:
        """Frequencies (runs * grids, 256)."""
        return tables.frequencies(self.levels)


def write(sides: Sequence[Side]) -> bytes:
    """The section ``classes``: the row codes of all tensors, then the column codes of all."""
    return b"".join(s.rows.tobytes() for s in sides) + b"".join(s.columns.tobytes() for s in sides)


def write_tables(
    sides: Sequence[Side], runs: NDArray[np.uint8], levels: Levels, grids: int
) -> bytes:
    """The section ``tables``.

    A byte per tensor with the units of its row codes (bits 0 and 1) and of its column codes
    (bits 2 and 3), as places in ``UNITS``; the low bytes of all bases and the high bytes; the
    number of runs, how many classes each has, and the tables. ``runs`` is (classes,) and
    ``levels`` (runs * grids, 256), as in :class:`Contexts`.
    """
    modes = bytes(UNITS.index(s.row_unit) | UNITS.index(s.column_unit) << 2 for s in sides)
    bases = np.array([s.base for s in sides], _BASE).view(np.uint8).reshape(-1, 2)
    sizes = np.bincount(runs).astype(np.uint8)
    runs_and_sizes = bytes([len(sizes)]) + sizes.tobytes()
    return modes + bases.T.tobytes() + runs_and_sizes + tables.write(levels, grids)


def read(classes: bytes, section: bytes, tensors: Sequence[Tensor]) -> Contexts:
    """The inverse of :func:`write` and :func:`write_tables`.

    Raises:
        ArtifactError: if a section is not what a writer makes for these tensors.
    """
    grids = 2 if any(t.states > 1 for t in tensors) else 1
    modes, bases, rest = np.split(
        np.frombuffer(section, np.uint8), [len(tensors), 3 * len(tensors)]
    )
    sides = _read_sides(classes, modes, bases, tensors)
    count = int(rest[0]) if len(rest) else 0
    sizes = rest[1 : 1 + count]
    if len(rest) < 1 + count or bool(tensors) != bool(count) or count > MOST_RUNS:
        raise ArtifactError(f"tables: {count} runs of classes")
    if (sizes == 0).any() or sizes.sum(dtype=np.int64) > MOST_CLASSES:
        raise ArtifactError(f"tables: they serve no class or more than {MOST_CLASSES}")
    pairs = [s.classes(t) for s, t in zip(sides, tensors, strict=True)]
    return Contexts(
        rows=tuple(rows for rows, _ in pairs),
        columns=tuple(columns for _, columns in pairs),
        runs=np.repeat(np.arange(count, dtype=np.uint8), sizes),
        levels=tables.read(section[3 * len(tensors) + 1 + count :], count * grids, grids),
        grids=grids,
        sizes=tuple(len(s.rows) + len(s.columns) for s in sides),
    )


def count(
    codes: Codes,
    grids: NDArray[np.uint8] | None,
    rows: Classes,
    columns: Classes,
    shape: tuple[int, int],
) -> Counts:
    """How often each symbol occurs in each class, in ``shape`` (classes, symbols of all grids).

    ``codes`` and ``grids`` are (rows, columns); ``rows`` and ``columns`` are what these add to a
    class, (rows,) and (columns,).
    """
    total = np.zeros(shape[0] * shape[1], np.int64)
    height = max(1, _BLOCK // codes.shape[1])
    for first in range(0, len(codes), height):
        band = slice(first, first + height)
        keys = clipped(rows[band, None], columns, shape[0]).astype(np.int64)
        keys *= shape[1]
        keys += codes[band].view(np.uint8)
        if grids is not None:
            keys += grids[band].astype(np.int64) * SYMBOLS
        total += np.bincount(keys.ravel(), minlength=len(total))
    return total.reshape(shape)


def clipped(rows: Classes, columns: Classes, classes: int) -> Classes:
    """The class of codes, of ``classes`` in all: what (rows, 1) and (columns,) add up to."""
    sums = rows + columns
    return np.clip(sums, 0, classes - 1, out=sums)


def _predicted(exponents: Codes, unit: int, codes: Codes) -> Classes:
    predicted = -exponents.astype(np.int16)
    return predicted + np.int16(unit) * codes if unit else predicted


def _read_sides(
    data: bytes, modes: NDArray[np.uint8], bases: NDArray[np.uint8], tensors: Sequence[Tensor]
) -> list[Side]:
    count = len(tensors)
    if len(bases) < 2 * count or (modes > 15).any():
        raise ArtifactError("tables: a tensor has no valid mode and base")
    units = [(UNITS[mode & 3], UNITS[mode >> 2]) for mode in modes.tolist()]
    heights = [len(t.rows) * bool(unit) for t, (unit, _) in zip(tensors, units, strict=True)]
    widths = [len(t.columns) * bool(unit) for t, (_, unit) in zip(tensors, units, strict=True)]
    cuts = np.cumsum([0, *heights, *widths]).tolist()
    if len(data) != cuts[-1]:
        raise ArtifactError("classes: the section does not have the length that the modes imply")
    runs = [np.frombuffer(data[begin:end], np.int8) for begin, end in pairwise(cuts)]
    known = np.ascontiguousarray(bases.reshape(2, -1).T).view(_BASE).ravel().tolist()
    if max(map(abs, known), default=0) > FARTHEST_BASE:
        raise ArtifactError(f"tables: a base is beyond {FARTHEST_BASE}")
    return [
        Side(base, row_unit, rows, column_unit, columns)
        for base, (row_unit, column_unit), rows, columns in zip(
            known, units, runs[:count], runs[count:], strict=True
        )
    ]
