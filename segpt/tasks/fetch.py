"""Fetching the CORE bundle: whole and checked, or not at all."""

import hashlib
import http.client
import json
import lzma
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final
from urllib.parse import unquote, urlsplit

from segpt.atomic import new_directory
from segpt.errors import DataError, SegptError

from .core import TASKS
from .core_bundle import ITEMS, LARGEST, LIST, TABLE, Source, read_bundle, read_items

URL: Final = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
RECORD: Final = "fetched.json"
MOST: Final = 2**30  # bytes of an archive
WAITS: Final = (0.5, 1.0, 2.0)  # seconds before each further try
TIMEOUT: Final = 30.0  # seconds without a byte
BLOCK: Final = 2**18

WANTED: Final = (LIST, TABLE, *dict.fromkeys(f"{ITEMS}/{task.path}" for task in TASKS))

# Gets the bytes that have come and how many there are in all, 0 if that is unknown.
Report = Callable[[int, int], None]

_NOT_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(RuntimeError, NotImplementedError, ValueError),  # encrypted, or by an unknown method
)


@dataclass(frozen=True)
class Fetched:
    """Where a bundle is now, the SHA-256 of its archive, and of each file below ``eval_data``."""

    place: Path
    archive: str
    sources: Mapping[str, Source]


def fetch(
    source: str,
    out: Path,
    *,
    report: Report = lambda _done, _total: None,
    waits: Sequence[float] = WAITS,
) -> Fetched:
    """Put the bundle of an archive at ``out``, replacing one that is there.

    Only the files that CORE needs are unpacked. What was found is recorded in ``fetched.json``.

    Args:
        source: the URL of a zip archive (http, https or file), or its path.
        out: the directory to make.
        report: told about progress.
        waits: seconds before each further try.

    Raises:
        DataError: if the archive cannot be had, or is not that of a bundle.
        SegptError: if ``out`` is something else, or the disk refuses.
    """
    if out.exists() and not _is_empty(out) and not is_fetched(out):
        raise SegptError(
            f"{out} is there and is not a CORE bundle that segpt fetched; name another directory"
        )
    with new_directory(out, replaces=is_fetched) as folder:
        local = _local(source)
        archive = local or folder / "archive"
        if local is None:
            _download(source, archive, report, waits, out)
        digest = _unpack(archive, folder, source)
        if local is None:
            archive.unlink()
        bundle = read_bundle(folder)
        sources = {task.path: read_items(bundle, task)[1] for task in TASKS}
        files = {path: original.plain() for path, original in sources.items()}
        record = {"source": source, "sha256": digest, "files": files}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return Fetched(out, digest, sources)


def is_fetched(path: Path) -> bool:
    """Whether a directory holds what :func:`fetch` writes, and nothing else."""
    names = {entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file()}
    return RECORD in names and names <= {RECORD, *WANTED}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _local(source: str) -> Path | None:
    """The path that a source names; None if it is to be downloaded."""
    parts = urlsplit(source)
    if parts.scheme in ("http", "https"):
        return None
    if "://" in source and parts.scheme != "file":
        raise DataError(f"{source}: of an unknown kind; give an http, https or file URL, or a path")
    path = Path(unquote(parts.path) if parts.scheme == "file" else source)
    if not path.is_file():
        what = "a directory, not an archive; use it as it is" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}; give the URL or path of eval_bundle.zip")
    return path


def _download(url: str, into: Path, report: Report, waits: Sequence[float], out: Path) -> None:
    """Try until the archive is whole, each time from where the last try stopped if that is safe."""
    transfer = _Transfer(url, into, report)
    for wait in (*waits, None):
        try:
            return transfer.attempt()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if wait is None or _is_final(error):
                reason = getattr(error, "reason", None) or error
                raise DataError(
                    f"{url}: cannot be fetched ({reason}); fetch it where there is a network, "
                    f"and run `segpt data fetch core --url FILE` here, or unpack it into {out}"
                ) from error
            time.sleep(wait)
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """Whether the server has said that trying again will not help."""
    return (
        isinstance(error, urllib.error.HTTPError)
        and 400 <= error.code < 500
        and error.code not in (408, 416, 429)
    )


class _Transfer:
    """A file on its way; ``tag`` is the server's name for the version that has come so far."""

    def __init__(self, url: str, into: Path, report: Report) -> None:
        self.url, self.into, self.report = url, into, report
        self.tag = ""
        self.done = 0

    def attempt(self) -> None:
        """Fetch what is missing; everything, if the server cannot promise the same version.

        Raises:
            OSError, HTTPException: if the transfer breaks.
            DataError: if the archive is too large.
            SegptError: if the disk refuses.
        """
        headers = {"User-Agent": "segpt"}
        if self.tag and self.done:
            headers |= {"Range": f"bytes={self.done}-", "If-Range": self.tag}
        self.tag, known = "", self.tag
        request = urllib.request.Request(self.url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            span = response.headers.get("Content-Range", "")
            resumed = response.status == 206 and span.startswith(f"bytes {self.done}-")
            self.done = self.done if resumed else 0
            tag = response.headers.get("ETag", "")
            self.tag = known if resumed else tag if tag.startswith('"') else ""
            length = response.headers.get("Content-Length", "")
            total = self.done + int(length) if length.isdecimal() else 0
            with _writing(self.into, "ab" if resumed else "wb") as file:
                while block := response.read(BLOCK):
                    self.done += len(block)
                    if max(self.done, total) > MOST:
                        raise DataError(f"{self.url}: more than {MOST:,} bytes; not the bundle")
                    _write(file, block, self.into)
                    self.report(self.done, total)
        if total and self.done != total:
            raise http.client.IncompleteRead(b"", total - self.done)


def _writing(path: Path, mode: str) -> IO[bytes]:
    try:
        return path.open(mode)
    except OSError as error:
        raise _refused(path, error) from error


def _write(file: IO[bytes], block: bytes, path: Path) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> SegptError:
    return SegptError(f"cannot write {path.parent}: {error.strerror or error}")


def _unpack(archive: Path, folder: Path, source: str) -> str:
    """Put the files that CORE needs into ``folder``; the SHA-256 of the archive."""
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    for name, content in _contents(archive, source):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return digest.hexdigest()


def _contents(archive: Path, source: str) -> Iterator[tuple[str, bytes]]:
    """Each file that CORE needs and what is in it.

    Names come from what is wanted, not from the archive, so that it cannot choose where to write;
    and no more of a file is unpacked than a file may have.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = _members(packed, source)
            for name in WANTED:
                yield name, _member(packed, members, name, source)
    except _NOT_ZIP as error:
        raise DataError(
            f"{source}: not the archive of a bundle ({error}); fetch {URL} again"
        ) from error


def _members(packed: zipfile.ZipFile, source: str) -> dict[str, zipfile.ZipInfo]:
    """What the archive holds, by its name below the directory of the list of tasks."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in packed.infolist():
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
            raise DataError(
                f"{source}: holds {info.filename!r}, which would lie outside the bundle; do not "
                f"trust this archive, fetch {URL}"
            )
        if name in members and not info.is_dir():
            raise DataError(f"{source}: holds {info.filename!r} twice; fetch {URL} again")
        members[name] = info
    roots = [name.parent for name in members if name.name == LIST]
    if len(roots) != 1:
        raise DataError(f"{source}: holds {len(roots)} files {LIST}, not one; fetch {URL} again")
    return {
        str(name.relative_to(roots[0])): info
        for name, info in members.items()
        if name.is_relative_to(roots[0])
    }


def _member(
    packed: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str, source: str
) -> bytes:
    if name not in members:
        raise DataError(f"{source}: holds no {name}; fetch {URL} again")
    with packed.open(members[name]) as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise DataError(f"{source}: {name} has more than {LARGEST:,} bytes; fetch {URL} again")
    return content
