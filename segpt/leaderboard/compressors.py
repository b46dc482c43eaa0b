"""What general-purpose compressors make of a text: the yardstick of a language model."""

import bz2
import lzma
import platform
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from segpt.config.base import nearest
from segpt.errors import SegptError
from segpt.values import Text

PROGRAMS = ("gzip", "bzip2", "xz", "zstd", "brotli")


class CompressedSize(NamedTuple):
    """How many bytes of a text and how many of its compressed form, and by which version."""

    bytes: int
    compressed: int
    version: str

    @property
    def bpb(self) -> float:
        return 8 * self.compressed / self.bytes


class _Compressor(NamedTuple):
    smallest: Callable[[bytes], int]
    version: str


def compressors(text: Text) -> dict[str, float]:
    """Bits per byte of the documents, joined in order, under each compressor at its best.

    Every level (and for xz every split of literal context bits, for brotli every mode) is
    tried, and the smallest result counts. Compressors whose package is absent are left out.
    """
    data = b"".join(text)
    return {name: 8 * each.smallest(data) / len(data) for name, each in _installed().items()}


def compressed(text: Text, program: str) -> CompressedSize:
    """The same for one of :data:`PROGRAMS`.

    Raises:
        SegptError: if there is no such program, or its package is absent.
        DataError: if the text cannot be read.
    """
    if program not in PROGRAMS:
        raise SegptError(f"unknown compressor {program!r}; {nearest(program, PROGRAMS)}")
    installed = _installed()
    if program not in installed:
        raise SegptError(f"the package for {program} is missing; install segpt anew")
    data = b"".join(text)
    compressor = installed[program]
    return CompressedSize(len(data), compressor.smallest(data), compressor.version)


def _installed() -> Mapping[str, _Compressor]:
    python = f"in Python {platform.python_version()}"
    return {
        "gzip": _Compressor(_gzip, f"zlib {zlib.ZLIB_RUNTIME_VERSION} {python}"),
        "bzip2": _Compressor(_bzip2, python),
        "xz": _Compressor(_xz, python),
        **_zstd(),
        **_brotli(),
    }


def _gzip(data: bytes) -> int:
    return 18 + min(len(_deflate(data, level)) for level in (6, 9))


def _deflate(data: bytes, level: int) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -15, 9)
    return stream.compress(data) + stream.flush()


def _bzip2(data: bytes) -> int:
    return min(len(bz2.compress(data, level)) for level in (5, 9))


def _xz(data: bytes) -> int:
    return min(_xz_of(data, lc, lp) for lc, lp in ((3, 0), (4, 0), (2, 0), (0, 2)))


def _xz_of(data: bytes, lc: int, lp: int) -> int:
    best = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "lp": lp}
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=[best]))


def _zstd() -> dict[str, _Compressor]:
    try:
        import zstandard
    except ImportError:
        return {}
    ultra = zstandard.ZstdCompressionParameters.from_level(22, window_log=27, enable_ldm=True)

    def smallest(data: bytes) -> int:
        plain = zstandard.ZstdCompressor(level=22)
        long = zstandard.ZstdCompressor(compression_params=ultra)
        return min(len(c.compress(data)) for c in (plain, long))

    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    return {"zstd": _Compressor(smallest, f"libzstd {version}")}


def _brotli() -> dict[str, _Compressor]:
    try:
        import brotli
    except ImportError:
        return {}

    def smallest(data: bytes) -> int:
        modes = (brotli.MODE_GENERIC, brotli.MODE_TEXT)
        return min(len(brotli.compress(data, mode=m, quality=11, lgwin=24)) for m in modes)

    return {"brotli": _Compressor(smallest, brotli.__version__)}
