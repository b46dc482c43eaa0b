"""A file taken apart: every size checked against what the header implies, nothing decoded yet."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.errors import ArtifactError
from segpt.values import Artifact

from . import codec, contexts, format1, frame, header, rans, stream, tables
from .check import check_bitmap
from .codec import Stored
from .contexts import Codes, Contexts, Tensor
from .header import Header, StoredWeight

T = TypeVar("T", bound=np.generic)

MOST_TOKENIZER_BYTES = 1 << 24

_MOST_TABLE_BYTES = 2 + 2 * contexts.MOST_CLASSES * (1 + rans.SYMBOLS)


class StepSections(NamedTuple):
    """The exponents of a stepped weight, and which of its rows are stored if not all are.

    ``rows`` is (stored rows,), ``columns`` (columns,) and ``stored`` (rows,).
    """

    rows: Codes
    columns: Codes
    stored: NDArray[np.bool_] | None


class Opened(NamedTuple):
    """A file whose header, sizes and contexts are known to fit each other."""

    format: int
    header: Header
    entries: tuple[StoredWeight, ...]
    stored: dict[str, Stored]
    stepped: tuple[StepSections, ...]
    contexts: Contexts

    @property
    def coded(self) -> list[StoredWeight]:
        return [e for e in self.entries if not e.half]

    def section(self, name: str) -> bytes:
        """What a section unpacks to."""
        return codec.unpack(self.stored[name], name)

    def codes(self) -> list[Codes]:
        """The codes of every weight that has any, (stored rows, columns) each."""
        data = self.section("codes")
        if self.format == 1:
            return format1.decode(data, self.contexts)
        return stream.decode(data, self.contexts, [max(1, e.states) for e in self.coded])

    def halves(self) -> Iterator[NDArray[np.float16]]:
        """The arrays of float16 of every weight that has any, in the shapes of ``_half_shapes``."""
        shapes = [shape for e in self.entries for shape in _half_shapes(e)]
        return split(unshuffle(self.section("halves"), "<f2"), shapes)

    def shares(self, codes: Sequence[Codes]) -> dict[str, dict[StoredWeight, int]]:
        """How the sections that hold weights divide among them, in units of each section.

        ``codes`` are those of :meth:`codes`, (stored rows, columns) each.
        """
        steps = dict(zip((e for e in self.coded if e.stepped), self.stepped, strict=True))
        return {
            "classes": dict(zip(self.coded, self.contexts.sizes, strict=True)),
            "codes": dict(zip(self.coded, self._lengths(codes), strict=True)),
            "scales": {e: e.shape[0] * e.groups for e in self.coded},
            "halves": {e: sum(map(math.prod, _half_shapes(e))) for e in self.entries},
        } | {
            name: {e: size(sections) for e, sections in steps.items()}
            for name, size in _STEP_SECTIONS.items()
            if name in self.stored
        }

    def _lengths(self, decoded: Sequence[Codes]) -> Iterator[int]:
        """The ideal length of each tensor's codes, in 1/4096 bit, and 1 more per code."""
        runs, symbols = self.contexts.runs, self.contexts.grids * rans.SYMBOLS
        prices = tables.costs(self.contexts.tables).reshape(-1, symbols) + 1
        for entry, codes, rows, columns in zip(
            self.coded, decoded, self.contexts.rows, self.contexts.columns, strict=True
        ):
            grids = trellis.grids(codes, entry.states) if entry.stepped else None
            shape = (len(runs), symbols)
            counts = contexts.count(codes, grids, rows, columns, shape)
            yield int((counts * prices[runs]).sum())


# How much a stepped weight has in each section of its own.
_STEP_SECTIONS: Mapping[str, Callable[[StepSections], int]] = {
    "steps": lambda sections: 1,
    "rows": lambda sections: len(sections.rows),
    "columns": lambda sections: len(sections.columns),
    "stored": lambda sections: 0 if sections.stored is None else len(sections.stored),
}


def open_artifact(artifact: Artifact) -> Opened:
    """Everything about a file but its codes and values.

    Raises:
        ArtifactError: if a section is not what the header implies.
    """
    version, stored = frame.split(artifact.data)
    _check_size("header", stored["header"], 0, header.MOST_BYTES)
    head = header.read(codec.unpack(stored["header"], "header"))
    header.check_size(head, len(artifact.data))
    entries = head.entries
    if version == 1 and any(e.stepped for e in entries):
        raise ArtifactError("header: format 1 has no stepped weights")
    coded = [e for e in entries if not e.half]
    scales = 2 * sum(e.shape[0] * e.groups for e in coded)
    halves = 2 * sum(math.prod(shape) for e in entries for shape in _half_shapes(e))
    codes = sum(e.weight.size for e in coded)
    _check_size("tokenizer", stored["tokenizer"], 0, MOST_TOKENIZER_BYTES)
    _check_size("classes", stored["classes"], 0, sum(sum(e.shape) for e in coded) + len(coded))
    _check_size("tables", stored["tables"], 0, _MOST_TABLE_BYTES + 3 * len(coded))
    most = stream.LANES.size + 4 * rans.MOST_LANES + 2 * codes
    _check_size("codes", stored["codes"], stream.LANES.size, most)
    _check_size("scales", stored["scales"], scales, scales)
    _check_size("halves", stored["halves"], halves, halves)
    stepped = _read_steps([e for e in coded if e.stepped], stored) if version > 1 else ()
    classes, table_section = (codec.unpack(stored[name], name) for name in ("classes", "tables"))
    if version == 1:
        known = format1.read_contexts(classes, table_section, [e.shape for e in coded])
    else:
        rest = iter(stepped)
        known = contexts.read(
            classes,
            table_section,
            [Tensor(e.states, *next(rest)[:2]) if e.stepped else uniform(e.shape) for e in coded],
        )
    return Opened(version, head, entries, stored, stepped, known)


def _read_steps(
    entries: Sequence[StoredWeight], stored: dict[str, Stored]
) -> tuple[StepSections, ...]:
    """What is known of the stepped weights before their codes; all sizes are checked."""
    partial = [e for e in entries if e.partial]
    bitmap_bytes = sum(-(-e.shape[0] // 8) for e in partial)
    _check_size("stored", stored["stored"], bitmap_bytes, bitmap_bytes)
    data = np.frombuffer(codec.unpack(stored["stored"], "stored"), np.uint8)
    bitmaps = iter(list(_bitmaps(data, partial)))
    kept = [next(bitmaps) if e.partial else None for e in entries]
    heights = [
        e.shape[0] if rows is None else int(rows.sum())
        for e, rows in zip(entries, kept, strict=True)
    ]
    widths = [e.shape[1] for e in entries]
    _check_size("steps", stored["steps"], 4 * len(entries), 4 * len(entries))
    _check_size("rows", stored["rows"], sum(heights), sum(heights))
    _check_size("columns", stored["columns"], sum(widths), sum(widths))
    rows, columns = (
        split(np.frombuffer(codec.unpack(stored[name], name), np.int8), [(n,) for n in lengths])
        for name, lengths in (("rows", heights), ("columns", widths))
    )
    return tuple(map(StepSections, rows, columns, kept))


def _bitmaps(
    data: NDArray[np.uint8], entries: Iterable[StoredWeight]
) -> Iterator[NDArray[np.bool_]]:
    begin = 0
    for entry in entries:
        rows = entry.shape[0]
        end = begin + -(-rows // 8)
        bits = np.unpackbits(data[begin:end], bitorder="little").astype(np.bool_)
        if bits[rows:].any():
            raise ArtifactError(f"{entry.weight.name}: the bitmap of rows has bits after the last")
        check_bitmap(entry.weight.name, bits[:rows])
        yield bits[:rows]
        begin = end


def _half_shapes(entry: StoredWeight) -> list[tuple[int, ...]]:
    """The arrays of a weight in the section ``halves``."""
    if entry.half:
        return [entry.weight.shape]
    return [entry.shape[1:]] * (entry.centred + entry.partial)


def _check_size(name: str, stored: Stored, least: int, most: int) -> None:
    if not least <= stored.size <= most:
        raise ArtifactError(f"{name}: {stored.size:,} bytes, where {least:,} to {most:,} belong")


def split(values: NDArray[T], shapes: Sequence[tuple[int, ...]]) -> Iterator[NDArray[T]]:
    """Consecutive pieces of ``values`` (count,), in these shapes."""
    cuts = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    for shape, (begin, end) in zip(shapes, pairwise(cuts), strict=True):
        yield values[begin:end].reshape(shape)


def unshuffle(data: bytes, dtype: str) -> NDArray[Any]:
    """Values (count,) from all their lowest bytes, then the next, and so on."""
    size = np.dtype(dtype)
    planes = np.frombuffer(data, np.uint8).reshape(size.itemsize, -1)
    values = np.ascontiguousarray(planes.T).view(size).ravel()
    return values.astype(size.newbyteorder("="))


def uniform(shape: tuple[int, ...]) -> Tensor:
    """A matrix whose steps say nothing about the scale of its codes."""
    return Tensor(1, np.zeros(shape[0], np.int8), np.zeros(shape[1], np.int8))
