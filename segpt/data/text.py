"""Documents as bytes, streamed from files."""

import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import zstandard

from segpt.errors import DataError
from segpt.values import Text

SEPARATOR: Final = b"<|endoftext|>"
KINDS: Final = (".txt", ".jsonl", ".parquet")
COMPRESSIONS: Final = (".gz", ".xz", ".zst")

Report = Callable[[int], None]
_Opened = IO[bytes] | gzip.GzipFile


def read_text(paths: Sequence[Path], *, field: str = "text", report: Report | None = None) -> Text:
    """The documents of files and directories, read as they are asked for.

    A ``.txt`` file is one document, or several between lines ``<|endoftext|>``, in any encoding.
    A ``.jsonl`` file has one object per line and a ``.parquet`` file one row per document, with
    the document in ``field``. Any of them may be compressed (``.gz``, ``.xz``, ``.zst``), and a
    directory stands for all such files below it, in the order of their names. Empty documents
    are left out.

    Args:
        paths: Files and directories.
        field: The name of the key or column that holds the text.
        report: Called after each document with the bytes of the files consumed so far, of
            :func:`total_bytes`.

    Raises:
        DataError: if a path is missing or of an unknown kind; on reading, if a file is damaged
            or there is no document at all.
    """
    files = _files(paths)
    sizes = [path.stat().st_size for path in files]

    def read() -> Iterator[bytes]:
        consumed, empty = 0, True
        for path, size in zip(files, sizes, strict=True):
            for document, position in _documents(path, field):
                if document:
                    empty = False
                    yield document
                if report:
                    report(consumed + position)
            consumed += size
        if empty:
            raise DataError(f"{name}: no text in it; give files with at least one document")

    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return Text(name, read)


def total_bytes(paths: Sequence[Path]) -> int:
    """The size of the files that :func:`read_text` reads, as they are on the disk.

    Raises:
        DataError: if a path is missing or of an unknown kind.
    """
    return sum(path.stat().st_size for path in _files(paths))


def document_digest(document: bytes) -> bytes:
    """The SHA-256 of a document."""
    return hashlib.sha256(document).digest()


def document_hash(document: bytes) -> int:
    """The first 8 bytes of the document's SHA-256, as its hexadecimal form is read."""
    return int.from_bytes(document_digest(document)[:8], "big")


def text_digest(documents: Iterable[bytes]) -> str:
    """SHA-256 over the SHA-256 of each document, in hexadecimal."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document_digest(document))
    return digest.hexdigest()


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if _kind(p) in KINDS and p.is_file())
            if not inside:
                raise DataError(f"{path}: no text in this directory; {_KNOWN}")
            found += inside
        elif not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        elif _kind(path) not in KINDS:
            raise DataError(f"{path}: not a known kind of text; {_KNOWN}")
        else:
            found.append(path)
    if not found:
        raise DataError(f"no text given; {_KNOWN}")
    return found


_KNOWN = f"give {', '.join(KINDS)} files, plain or {', '.join(COMPRESSIONS)}"


def _kind(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return plain.suffix


def _documents(path: Path, field: str) -> Iterator[tuple[bytes, int]]:
    """Each document of a file, and how much of the file was read to get it."""
    parse = {".txt": _split, ".jsonl": _lines, ".parquet": _rows}[_kind(path)]
    try:
        with path.open("rb") as file:
            for document in parse(path, plain(path, file), field):
                yield document, file.tell()
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); check the file or fetch it again"
        ) from error


def plain(path: Path, file: IO[bytes]) -> _Opened:
    """What a file holds, decompressed by the ending of its name."""
    match path.suffix:
        case ".gz":
            return gzip.GzipFile(fileobj=file)
        case ".xz":
            return lzma.LZMAFile(file)
        case ".zst":
            return io.BufferedReader(_Zstandard(file))
        case _:
            return file


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
        decompressor = zstandard.ZstdDecompressor()
        frame = None
        while chunk := file.read(4096):  # which expands to 130 MB at most
            while chunk:
                if frame is None or frame.eof:
                    frame = decompressor.decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
        if frame is not None and not frame.eof:
            raise EOFError("it ends in the middle of a frame")


def _split(_path: Path, stream: _Opened, _field: str) -> Iterator[bytes]:
    lines: list[bytes] = []
    for line in stream:
        if line.rstrip(b"\r\n") == SEPARATOR:
            yield b"".join(lines)
            lines = []
        else:
            lines.append(line)
    yield b"".join(lines)


def _lines(path: Path, stream: _Opened, field: str) -> Iterator[bytes]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error}); correct the line") from error
        if not isinstance(entry, dict) or not isinstance(entry.get(field), str):
            keys = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(
                f"{path}:{number}: no text under {field!r}; name another field (found: {keys})"
            )
        yield _utf8(entry[field])


def _rows(path: Path, stream: _Opened, field: str) -> Iterator[bytes]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow; pip install 'segpt[parquet]'") from error
    try:
        table = parquet.ParquetFile(stream if path.suffix == ".parquet" else _whole(stream))
        columns = table.schema_arrow.names
        if field not in columns:
            raise DataError(
                f"{path}: no column {field!r}; name another field (found: {', '.join(columns)})"
            )
        for batch in table.iter_batches(columns=[field], batch_size=1024):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str | bytes | None):
                    raise DataError(f"{path}: column {field!r} is not text; name another field")
                yield _utf8(value) if isinstance(value, str) else value or b""
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: not a parquet file ({error}); check the file or fetch it again"
        ) from error


def _whole(stream: _Opened) -> io.BytesIO:
    return io.BytesIO(stream.read())


def _utf8(text: str) -> bytes:
    """The bytes of ``text``; half a surrogate pair, which JSON allows, is kept as it is."""
    return text.encode("utf-8", "surrogatepass")
