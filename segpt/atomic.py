"""Files and directories that appear whole or not at all, whatever kills the process.

Data is written beside its destination, flushed to the disk, and renamed over it; then the
directory entry is flushed too. A crash leaves the old contents, and at most a stray temporary
that the next write to the same place removes. A symbolic link stays; what it names is replaced.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from segpt.errors import SegptError


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically; parent directories are made as needed.

    Raises:
        SegptError: if the disk refuses, with the old contents untouched.
    """
    given, path = path, Path(os.path.realpath(path))
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _refused(given, error) from error
    _confirm(path, given)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it becomes ``path`` when the block ends without an exception.

    An existing ``path`` is replaced. Should the machine stop between the two renames that this
    takes, the old directory is put back by the next call for the same path.

    Raises:
        SegptError: if the disk refuses, with the old directory untouched.
    """
    given, path = path, Path(os.path.realpath(path))
    temporary, old = _temporary(path), path.parent / f".{path.name}.old"
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        if old.exists():
            shutil.rmtree(old) if path.exists() else old.rename(path)
        temporary.mkdir()
        try:
            yield temporary
            for entry in [temporary, *temporary.rglob("*")]:
                _sync_directory(entry) if entry.is_dir() else _sync_file(entry)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise _refused(given, error) from error
    _confirm(path, given)
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def _sweep(path: Path) -> None:
    """Remove what a killed process left behind on its way to ``path``."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.([0-9]+)\.tmp")
    for stray in path.parent.iterdir():
        if (match := ours.fullmatch(stray.name)) is None:
            continue
        if int(match[1]) == os.getpid() or not _alive(int(match[1])):
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # directories cannot be opened for syncing elsewhere
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _confirm(path: Path, given: Path) -> None:
    try:
        _sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SegptError(f"{given} is written, but not safe yet: {reason}") from error


def _refused(path: Path, error: OSError) -> SegptError:
    reason = error.strerror or str(error)
    return SegptError(f"cannot write {path}: {reason}; nothing there was changed")
