"""Format 1, which is read and no longer written: weights on grids and float16, without trellises.

It differs from the format of today in its sections ``classes`` and ``tables``, which predict
nothing and are not symmetric, and in the order of the codes: row by row, across all lanes.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from segpt.errors import ArtifactError

from . import tables
from .contexts import MOST_CLASSES, Contexts, clipped
from .loops import PRECISION
from .rans import MOST_LANES, RansDecoder
from .stream import LANES, MOST_STEPS, Codes, Shape

_BLOCK = 1 << 16


def read_contexts(classes: bytes, section: bytes, shapes: Sequence[Shape]) -> Contexts:
    """The contexts of tensors of known ``shapes``.

    Raises:
        ArtifactError: if a section is not what the writer made for these shapes.
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
        np.frombuffer(classes[begin:end], np.int8).astype(np.int16) if end > begin else np.int16(0)
        for begin, end in pairwise(cuts)
    ]
    count = section[0] if section else 0
    sizes = np.frombuffer(section[1 : 1 + count], np.uint8)
    if len(section) < 1 + count or (shapes and not count):
        raise ArtifactError("tables: the section holds no tables")
    if (sizes == 0).any() or sizes.sum(dtype=np.int64) > MOST_CLASSES:
        raise ArtifactError(f"tables: they serve no class or more than {MOST_CLASSES}")
    pairs = list(zip(runs[: len(shapes)], runs[len(shapes) :], shapes, strict=True))
    return Contexts(
        rows=tuple(np.broadcast_to(rows, shape[0]) for rows, _, shape in pairs),
        columns=tuple(np.broadcast_to(columns, shape[1]) for _, columns, shape in pairs),
        runs=np.repeat(np.arange(count, dtype=np.uint8), sizes),
        levels=_read_tables(section[1 + count :], count),
        grids=1,
        sizes=tuple(1 + height + width for height, width in zip(heights, widths, strict=True)),
    )


def decode(data: bytes, contexts: Contexts) -> list[Codes]:
    """The codes of every tensor, (rows, columns) each.

    Raises:
        ArtifactError: if ``data`` is not what the writer made for these contexts.
    """
    (lanes,) = LANES.unpack_from(data)
    shapes = [(len(r), len(c)) for r, c in zip(contexts.rows, contexts.columns, strict=True)]
    count = sum(map(math.prod, shapes))
    if not 1 <= lanes <= MOST_LANES or count > lanes * MOST_STEPS:
        raise ArtifactError(f"codes: {lanes} lanes for {count:,} codes")
    selected = np.concatenate(
        [
            np.zeros(0, np.uint8),
            *(
                contexts.runs[clipped(r[:, None], c, len(contexts.runs))].ravel()
                for r, c in zip(contexts.rows, contexts.columns, strict=True)
            ),
        ]
    )
    decoder = RansDecoder(data[LANES.size :], contexts.tables, lanes, count // lanes)
    symbols = np.empty(count, np.uint8)
    whole, size = count // lanes * lanes, max(1, _BLOCK // lanes) * lanes
    bounds = [*range(0, whole, size), whole]
    for begin, end in [*pairwise(bounds), (whole, count)]:
        bases = selected[begin:end].astype(np.int64) << PRECISION
        width = lanes if begin < whole else max(1, end - begin)
        symbols[begin:end] = decoder.read(bases.reshape(-1, width)).ravel()
    decoder.finish()
    cuts = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    return [
        symbols[begin:end].view(np.int8).reshape(shape)
        for shape, (begin, end) in zip(shapes, pairwise(cuts), strict=True)
    ]


def _read_tables(data: bytes, count: int) -> tables.Levels:
    reach = tables.reaches(data[:count], count)
    cut = count + int(reach.sum()) + count
    if len(data) != cut + int(reach.sum()):
        raise ArtifactError("tables: the section does not have the length that the reaches imply")
    outward, mirror = data[count:cut], data[cut:]
    return tables.join(reach, tables.spread(outward, reach, 0), tables.spread(mirror, reach, 1))
