"""The code stream: the order of the codes of a model, and codes to bytes and back.

A lane is a row, because the machine of a trellis runs along rows. The matrices of one width are
stacked, in order, and the stack is cut into bands of as many rows as there are lanes, the last
one lower. A band is walked column by column. Lanes go on from band to band, so that many low
matrices fill them as well as one tall one.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.config.quant import STATES
from segpt.errors import ArtifactError

from .contexts import Contexts
from .loops import PRECISION
from .rans import MOST_LANES, SYMBOLS, RansDecoder, RansEncoder, Walk

Codes = NDArray[np.int8]
Shape = tuple[int, int]

MOST_STEPS = 1 << 18  # of the decoder: what bounds its time
LANES = struct.Struct("<H")

# A lane costs about 3 bytes. Up to 96 they are what makes numpy fast, and may take 0.05 percent.
_FEWEST_LANES, _QUICK_LANES, _USUAL_LANES = 16, 96, 512
_BYTES_PER_QUICK_LANE, _BYTES_PER_LANE = 6_000, 30_000
_BLOCK = 1 << 19  # codes whose classes are looked up at once


class BandPiece(NamedTuple):
    """Rows of a tensor that lie side by side in a band."""

    tensor: int
    rows: slice


class Band(NamedTuple):
    """Rows that are decoded together."""

    columns: int
    pieces: tuple[BandPiece, ...]


def encode(
    tensors: Sequence[Codes],
    grids: Sequence[NDArray[np.uint8] | None],
    contexts: Contexts,
    lanes: int,
) -> bytes:
    """The section ``codes``: the number of lanes, then the stream.

    Of each tensor, its codes and the grid of each code are (rows, columns).
    """
    encoder = RansEncoder(contexts.tables, lanes)
    shapes = [(codes.shape[0], codes.shape[1]) for codes in tensors]
    for band in reversed(list(bands(shapes, lanes))):
        for columns in reversed(list(_blocks(band))):
            keys = _bases(band, columns, contexts, SYMBOLS)
            for lane, (tensor, rows) in zip(_lanes_of(band), band.pieces, strict=True):
                keys[:, lane] += tensors[tensor][rows, columns].view(np.uint8).T
                if (on := grids[tensor]) is not None:
                    keys[:, lane] += on[rows, columns].T.astype(np.int64) * SYMBOLS
            encoder.write(keys)
    return LANES.pack(lanes) + encoder.finish()


def decode(data: bytes, contexts: Contexts, states: Sequence[int]) -> list[Codes]:
    """The codes (rows, columns) of every tensor, given the number of states of each.

    Raises:
        ArtifactError: if ``data`` is not what :func:`encode` makes for these contexts.
    """
    shapes = [(len(r), len(c)) for r, c in zip(contexts.rows, contexts.columns, strict=True)]
    (lanes,) = LANES.unpack_from(data)
    if not 1 <= lanes <= MOST_LANES or (count := steps(shapes, lanes)) > MOST_STEPS:
        raise ArtifactError(f"codes: {lanes} lanes for {len(shapes)} matrices")
    decoder = RansDecoder(data[LANES.size :], contexts.tables, lanes, count)
    tensors = [np.empty(shape, np.int8) for shape in shapes]
    walk = _walk() if contexts.grids > 1 else None
    for band in bands(shapes, lanes):
        paths = _starts(walk, band, states) if walk else None
        for columns in _blocks(band):
            bases = _bases(band, columns, contexts, 1 << PRECISION)
            symbols = decoder.read(bases, walk, paths).view(np.int8)
            for lane, (tensor, rows) in zip(_lanes_of(band), band.pieces, strict=True):
                tensors[tensor][rows, columns] = symbols[:, lane].T
    decoder.finish()
    return tensors


def choose_lanes(shapes: Sequence[Shape], size: int) -> int:
    """As many lanes as speed asks for and a stream of ``size`` bytes allows.

    Raises:
        ArtifactError: if no number of lanes decodes in the steps that a reader takes.
    """
    quick = min(size // _BYTES_PER_QUICK_LANE, _QUICK_LANES)
    lanes = min(max(_FEWEST_LANES, quick, size // _BYTES_PER_LANE), _USUAL_LANES)
    while steps(shapes, lanes) > MOST_STEPS:
        lanes *= 2
        if lanes > MOST_LANES:
            raise ArtifactError("matrices too wide and too low to decode in time")
    return lanes


def steps(shapes: Sequence[Shape], lanes: int) -> int:
    """How many steps it takes to decode matrices of these ``shapes``."""
    heights: dict[int, int] = {}
    for rows, columns in shapes:
        heights[columns] = heights.get(columns, 0) + rows
    return sum(columns * -(-rows // lanes) for columns, rows in heights.items())


def bands(shapes: Sequence[Shape], lanes: int) -> Iterator[Band]:
    """The bands of matrices of these ``shapes``, in the order of decoding."""
    groups: dict[int, list[int]] = {}
    for tensor, (_, columns) in enumerate(shapes):
        groups.setdefault(columns, []).append(tensor)
    for columns, members in groups.items():
        pieces: list[BandPiece] = []
        free = lanes
        for tensor in members:
            first, height = 0, shapes[tensor][0]
            while first < height:
                taken = min(free, height - first)
                pieces.append(BandPiece(tensor, slice(first, first + taken)))
                first, free = first + taken, free - taken
                if not free:
                    yield Band(columns, tuple(pieces))
                    pieces, free = [], lanes
        if pieces:
            yield Band(columns, tuple(pieces))


def _lanes_of(band: Band) -> Iterator[slice]:
    """The lanes of each piece of a band."""
    first = 0
    for _, rows in band.pieces:
        last = first + rows.stop - rows.start
        yield slice(first, last)
        first = last


def _width(band: Band) -> int:
    """How many rows a band has."""
    return sum(rows.stop - rows.start for _, rows in band.pieces)


def _blocks(band: Band) -> Iterable[slice]:
    """Ranges of columns, small enough that temporaries do not matter."""
    size = max(1, _BLOCK // _width(band))
    starts = range(0, band.columns, size)
    return [slice(first, min(first + size, band.columns)) for first in starts]


def _bases(band: Band, columns: slice, contexts: Contexts, unit: int) -> NDArray[np.int64]:
    """The first table of each code's class, times ``unit``: (columns, lanes of the band)."""
    offsets = contexts.runs.astype(np.int64) * (contexts.grids * unit)
    bases = np.empty((columns.stop - columns.start, _width(band)), np.int64)
    for lane, (tensor, rows) in zip(_lanes_of(band), band.pieces, strict=True):
        classes = contexts.columns[tensor][columns, None] + contexts.rows[tensor][rows]
        bases[:, lane] = offsets.take(classes, mode="clip")  # as `contexts.clipped`, but faster
    return bases


def _walk() -> Walk:
    machines = {states: trellis.machine(states) for states in STATES}
    return Walk({states: (m.grid, m.following) for states, m in machines.items()})


def _starts(walk: Walk, band: Band, states: Sequence[int]) -> NDArray[np.int64]:
    """Where the machine of each lane begins."""
    starts = np.empty(_width(band), np.int64)
    for lane, (tensor, _) in zip(_lanes_of(band), band.pieces, strict=True):
        starts[lane] = walk.starts[states[tensor]]
    return starts
