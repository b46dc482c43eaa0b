"""One writer at a time: directories are claimed at once, and locks die with their process.

A lock is the operating system's, on a hidden file beside what it protects. It ends when the process
does, however that happens, so nothing has to be cleaned up after a crash.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from segpt.errors import SegptError

_WAIT = 0.05  # seconds between two attempts


def numbered(path: Path) -> Iterator[Path]:
    """``path``, path-2, path-3, ... without end."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))


def claim(path: Path) -> Path:
    """Make the directory ``path``, or the first of path-2, path-3, ... that does not exist.

    Two processes never get the same one.

    Raises:
        SegptError: if the directory cannot be made.
    """
    for name in numbered(path):
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            name.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise SegptError(f"cannot make the directory {name}: {error.strerror}") from error
        return name
    raise AssertionError("unreachable")


@contextlib.contextmanager
def locked(path: Path, *, wait: float = 0.3) -> Iterator[None]:
    """Within the block no other process holds the lock of ``path``, which need not exist.

    Args:
        path: the file or directory that is about to be written.
        wait: seconds to wait for another process before giving up: a moment at least, as one that
            only looks whether there is a lock holds it for that long.

    Raises:
        SegptError: if another process holds it, naming that process, or the disk refuses.
    """
    place = Path(os.path.realpath(path))
    lock = place.parent / f".{place.name}.lock"
    until = time.monotonic() + wait
    while (file := _acquire(lock, path)) is None:
        if time.monotonic() >= until:
            raise SegptError(
                f"{path} is being written by another segpt{_holder(lock)}; wait for it, or choose "
                "another place with --out"
            )
        time.sleep(_WAIT)
    try:
        yield
    finally:
        with file, contextlib.suppress(OSError):  # where an open file cannot be removed, it stays
            lock.unlink()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of ``path`` at this moment."""
    place = Path(os.path.realpath(path))
    lock = place.parent / f".{place.name}.lock"
    try:
        with lock.open("r+b") as file:
            return not _take(file)  # what is taken here ends with the block
    except OSError:
        return False


def _acquire(lock: Path, path: Path) -> IO[bytes] | None:
    """The open, locked file; None if another process holds it."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+b")
    except OSError as error:
        raise SegptError(f"cannot lock {path}: {error.strerror}") from error
    if not _take(file) or not _still_there(file, lock):  # its holder has just removed it
        file.close()
        return None
    with contextlib.suppress(OSError):  # a full disk has no room for the number; nobody needs it
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file


def _take(file: IO[bytes]) -> bool:
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            file.seek(1 << 20)  # a byte that nobody reads: locked bytes cannot be read there
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def _still_there(file: IO[bytes], lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except OSError:
        return False


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" (process {int(lock.read_bytes())})"
    return ""
