"""Compression of a section as a whole, and unpacking within a size known in advance."""

import lzma
from enum import IntEnum
from types import ModuleType
from typing import NamedTuple

import numpy as np

from segpt.errors import ArtifactError

from . import tables
from .rans import RansDecoder, RansEncoder


class SectionCodec(IntEnum):
    """How a section is stored."""

    STORED = 0
    LZMA = 1  # one raw LZMA2 stream with a dictionary of 2^20 bytes
    BROTLI = 2  # one stream of RFC 7932
    RANS = 3  # one table for all bytes, then a code stream; unknown to format 1


_BYTES_PER_LANE = 4096  # of a code stream: what bounds the number of its steps
_SMALLEST = 32  # bytes; below that a table never pays


class Stored(NamedTuple):
    """A section as it lies in the file: ``data`` unpacks to ``size`` bytes."""

    codec: SectionCodec
    size: int
    data: bytes


def verbatim(data: bytes) -> Stored:
    """Store ``data`` as it is."""
    return Stored(SectionCodec.STORED, len(data), data)


def squeeze(data: bytes) -> Stored:
    """Store ``data`` with whichever codec makes it smallest; the simplest wins a tie."""
    choices = [verbatim(data), Stored(SectionCodec.LZMA, len(data), _lzma(data))]
    if (brotli := _brotli()) is not None:
        choices.append(Stored(SectionCodec.BROTLI, len(data), brotli.compress(data, quality=11)))
    if len(data) >= _SMALLEST and b"\x80" not in data:
        choices.append(Stored(SectionCodec.RANS, len(data), _rans(data)))
    return min(choices, key=lambda stored: len(stored.data))


def unpack(stored: Stored, section: str) -> bytes:
    """The bytes of a section, of which never much more than ``stored.size`` are held.

    Raises:
        ArtifactError: if the data is damaged or does not unpack to exactly ``stored.size`` bytes.
    """
    match stored.codec:
        case SectionCodec.STORED:
            data: bytes | None = stored.data
        case SectionCodec.LZMA:
            data = _unlzma(stored)
        case SectionCodec.BROTLI:
            data = _unbrotli(stored, section)
        case SectionCodec.RANS:
            data = _unrans(stored)
    if data is None or len(data) != stored.size:
        raise ArtifactError(f"{section}: does not unpack to the {stored.size:,} bytes it declares")
    return data


def _lzma(data: bytes) -> bytes:
    # No literal context: the sections hold numbers, which have no text to predict them.
    strong = {"preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, **strong}])


def _unlzma(stored: Stored) -> bytes | None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    try:
        # One byte more than declared, so that the decompressor goes on to the end mark.
        data = decompressor.decompress(stored.data, stored.size + 1)
    except lzma.LZMAError:
        return None
    return data if decompressor.eof and not decompressor.unused_data else None


def _brotli() -> ModuleType | None:
    """Brotli if it is installed and can bound its output, which it can since 1.2."""
    try:
        import brotli
    except ImportError:
        return None
    return brotli if hasattr(brotli.Decompressor, "can_accept_more_data") else None


def _unbrotli(stored: Stored, section: str) -> bytes | None:
    if (brotli := _brotli()) is None:
        raise ArtifactError(
            f"{section}: compressed with brotli; install it with: pip install 'brotli>=1.2'"
        )
    decompressor = brotli.Decompressor()
    pieces, size, unread = [], 0, stored.data
    try:
        while size <= stored.size and not decompressor.is_finished():
            piece = decompressor.process(unread, output_buffer_limit=stored.size - size + 1)
            if not piece and not unread:
                return None  # it waits for input that does not exist
            pieces.append(piece)
            size, unread = size + len(piece), b""
    except brotli.error:
        return None
    return b"".join(pieces) if decompressor.is_finished() else None


def _rans(data: bytes) -> bytes:
    symbols = np.frombuffer(data, np.uint8)
    levels = tables.levels(np.bincount(symbols, minlength=256)[None])
    lanes = _lanes(len(data))
    encoder = RansEncoder(tables.frequencies(levels), lanes)
    whole = len(data) // lanes * lanes
    encoder.write(symbols[None, whole:].astype(np.int64))
    encoder.write(symbols[:whole].reshape(-1, lanes).astype(np.int64))
    return tables.write(levels) + encoder.finish()


def _unrans(stored: Stored) -> bytes:
    levels, end = tables.read_some(stored.data, 1)
    lanes = _lanes(stored.size)
    decoder = RansDecoder(
        stored.data[end:], tables.frequencies(levels), lanes, stored.size // lanes
    )
    whole, rest = divmod(stored.size, lanes)
    shapes = ((whole, lanes), (1, rest))
    pieces = [decoder.read(np.broadcast_to(np.int64(0), shape)) for shape in shapes]
    decoder.finish()
    return b"".join(piece.tobytes() for piece in pieces)


def _lanes(size: int) -> int:
    return 1 + size // _BYTES_PER_LANE
