"""Compressed files as the streams that they hold."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any, Final

import zstandard

COMPRESSIONS: Final = (".gz", ".bz2", ".xz", ".zst")
ERRORS: Final = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

Stream = IO[bytes] | gzip.GzipFile

# How far back a frame may refer: all that `zstd --long=31` makes. The library refuses more.
_WINDOW: Final = 2**31


def plain(file: IO[bytes], ending: str) -> Stream:
    """What ``file`` holds, decompressed as the ``ending`` of its name says."""
    match ending:
        case ".gz":
            return gzip.GzipFile(fileobj=file)
        case ".bz2":
            return bz2.BZ2File(file)
        case ".xz":
            return lzma.LZMAFile(file)
        case ".zst":
            return io.BufferedReader(_Zstandard(file))
        case _:
            return file


def reason(error: BaseException) -> str:
    """Why one of ``ERRORS`` was raised, in words for people."""
    match error:
        case EOFError():
            return "it ends too early"
        case zstandard.ZstdError() if "memory" in str(error):
            return (
                "its frames look back further than memory or 2 GiB allow; compress it again "
                "without --ultra and --long"
            )
        case OSError(strerror=str(text)):
            return text
        case _:
            return str(error) or type(error).__name__


class _Zstandard(io.RawIOBase):
    """Decompressed frames; unlike zstandard's own reader it notices that the last is cut off."""

    def __init__(self, file: IO[bytes]) -> None:
        self._chunks = self._decompressed(file)
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = memoryview(chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    @staticmethod
    def _decompressed(file: IO[bytes]) -> Iterator[bytes]:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        frame = None
        while chunk := file.read(4096):  # which expands to 130 MB at most
            while chunk:
                if frame is None or frame.eof:
                    frame = decompressor.decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
        if frame is not None and not frame.eof:
            raise EOFError
