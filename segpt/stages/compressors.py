"""What general-purpose compressors make of a text: the yardstick of a language model."""

import bz2
import lzma
import zlib
from collections.abc import Callable

from segpt.values import Text


def compressors(text: Text) -> dict[str, float]:
    """Bits per byte of the documents, joined in order, under each compressor at its best.

    Every level (and for xz every split of literal context bits, for brotli every mode) is
    tried, and the smallest result counts. Compressors whose package is absent are left out.
    """
    data = b"".join(text)
    smallest: dict[str, int] = {
        "gzip": 18 + min(len(_deflate(data, level)) for level in (6, 9)),
        "bzip2": min(len(bz2.compress(data, level)) for level in (5, 9)),
        "xz": min(len(_xz(data, literal)) for literal in ((3, 0), (4, 0), (2, 0), (0, 2))),
    }
    for name, compress in _packages().items():
        smallest[name] = len(compress(data))
    return {name: 8 * size / len(data) for name, size in smallest.items()}


def _deflate(data: bytes, level: int) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -15, 9)
    return stream.compress(data) + stream.flush()


def _xz(data: bytes, literal: tuple[int, int]) -> bytes:
    lc, lp = literal
    best = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "lp": lp}
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=[best])


def _packages() -> dict[str, Callable[[bytes], bytes]]:
    found: dict[str, Callable[[bytes], bytes]] = {}
    try:
        import zstandard

        ultra = zstandard.ZstdCompressionParameters.from_level(22, window_log=27, enable_ldm=True)
        plain = zstandard.ZstdCompressor(level=22)
        found["zstd"] = lambda data: min(
            (c.compress(data) for c in (plain, zstandard.ZstdCompressor(compression_params=ultra))),
            key=len,
        )
    except ImportError:
        pass
    try:
        import brotli

        found["brotli"] = lambda data: min(
            (
                brotli.compress(data, mode=mode, quality=11, lgwin=24)
                for mode in (brotli.MODE_GENERIC, brotli.MODE_TEXT)
            ),
            key=len,
        )
    except ImportError:
        pass
    return found
