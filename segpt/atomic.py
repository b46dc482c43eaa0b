"""Files and directories that appear whole or not at all, whatever kills the process.

Data is written beside its destination, flushed to the disk, and renamed over it; then the
directory entry is flushed too. A crash leaves the old contents, and at most a stray temporary
that the next write to the same place removes. A symbolic link stays; what it names is replaced.

A directory is replaced only if its writer knows what is in it. The two directories exchange their
names at once where the system can do that; elsewhere the old one is called ``.NAME.old`` for a
moment, which :func:`standing` knows.
"""

import contextlib
import ctypes
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from segpt.errors import SegptError

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, atomically; parent directories are made as needed.

    A device or pipe is written to, and not replaced.

    Raises:
        SegptError: if the disk refuses, with the old contents untouched.
    """
    named, path = path, Path(os.path.realpath(path))
    temporary = _temporary(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            with named.open("wb") as file:
                file.write(data)
            return
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
        raise _refused(named, error, path) from error
    _confirm(path, named)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A place to write a file at; it becomes ``path`` when the block ends without an exception.

    Raises:
        SegptError: if the disk refuses, with the old contents untouched.
    """
    named, path = path, Path(os.path.realpath(path))
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            yield temporary
            _sync_file(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.filename is not None and not _is_about(error, path):
            raise  # something that the block read
        raise _refused(named, error, path) from error
    _confirm(path, named)


@contextlib.contextmanager
def new_directory(
    path: Path, *, replaces: Callable[[Path], bool] = lambda _: False
) -> Iterator[Path]:
    """A directory to fill; it becomes ``path`` when the block ends without an exception.

    Args:
        path: where it goes.
        replaces: whether a directory that is there, and not empty, is what the caller may replace.

    Raises:
        SegptError: if there is something else, or the disk refuses, with the old directory
            untouched.
    """
    named, path = path, Path(os.path.realpath(path))
    temporary, old = _temporary(path), _aside(path)
    check_replaceable(named, replaces)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        if old.exists() and replaces(old):
            _discard(old, path) if path.exists() else old.rename(path)
        temporary.mkdir()
        try:
            yield temporary
            for entry in [temporary, *temporary.rglob("*")]:
                _sync_directory(entry) if entry.is_dir() else _sync_file(entry)
            check_replaceable(named, replaces)
            _put(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        if error.filename is not None and not _is_about(error, path):
            raise  # something that the block read
        raise _refused(named, error, path) from error
    _confirm(path, named)
    shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, replaces: Callable[[Path], bool] = lambda _: False) -> None:
    """Refuse to replace what is not the caller's, before any work is done for it.

    Raises:
        SegptError: if ``path`` is a file, a directory with anything in it that ``replaces`` does
            not vouch for, or one that others stand in: the working directory, the home directory,
            and whatever holds one of them.
    """
    place = Path(os.path.realpath(path))
    for kept in _lived_in():
        if place == kept or place in kept.parents:
            raise SegptError(
                f"cannot write {path}: it is a directory that you work in; name a new one "
                "with --out, for example --out result"
            )
    if not place.exists():
        return
    if not place.is_dir():
        raise SegptError(f"cannot write {path}: Not a directory; choose another --out")
    try:
        if any(place.iterdir()) and not replaces(place):
            raise SegptError(
                f"cannot write {path}: it holds other things than segpt writes there; "
                "nothing there was changed: choose another --out, or move it away"
            )
    except OSError as error:
        raise _refused(path, error, place) from error


def standing(path: Path) -> Path:
    """``path``, or what was there if a crash left it aside in the middle of being replaced."""
    if path.exists():
        return path
    old = _aside(Path(os.path.realpath(path)))
    return old if old.is_dir() else path


def remove_directory(path: Path) -> None:
    """Remove a directory that is ours; whenever this stops, it is there whole or not at all."""
    with contextlib.suppress(OSError):
        path = Path(os.path.realpath(path))
        if path.is_dir():
            _sweep(path)
            _discard(path, path)


def sweep(parent: Path, names: str) -> None:
    """Remove what killed processes left behind on their way to ``names``, a regular expression."""
    ours = re.compile(rf"\.(?:{names})\.([0-9]+)\.tmp")
    for stray in parent.iterdir():
        if (match := ours.fullmatch(stray.name)) is None:
            continue
        if int(match[1]) == os.getpid() or not _alive(int(match[1])):
            shutil.rmtree(stray) if stray.is_dir() else stray.unlink()


def _lived_in() -> Iterator[Path]:
    """The working directory and the home directory, as far as there are any."""
    for find in (Path.cwd, Path.home):
        with contextlib.suppress(OSError, RuntimeError):
            yield Path(os.path.realpath(find()))


def _put(temporary: Path, path: Path) -> None:
    """Give a directory its name; what had that name, if anything, has the temporary one then."""
    if not path.exists() or not any(path.iterdir()):
        temporary.rename(path)
    elif not _exchange(temporary, path):
        old = _aside(path)
        path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            old.rename(path)
            raise
        with contextlib.suppress(OSError):  # it may stay aside: the next write removes it
            old.rename(temporary)


def _exchange(first: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the disk cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(first), os.fsencode(other)
    return bool(rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)


def _discard(path: Path, name: Path) -> None:
    """Remove a directory under a name that the next write to ``name`` sweeps away."""
    temporary = _temporary(name)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def _is_about(error: OSError, path: Path) -> bool:
    """Whether an error is about ``path``, or what is written on the way to it."""
    about = Path(os.path.realpath(os.fsdecode(error.filename)))
    ours = {path, _temporary(path), _aside(path)}
    return not ours.isdisjoint([about, *about.parents]) or about in path.parents


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def _sweep(path: Path) -> None:
    sweep(path.parent, re.escape(path.name))


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


def _confirm(path: Path, named: Path) -> None:
    try:
        _sync_directory(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SegptError(f"{named} is written, but not safe yet: {reason}") from error


def _refused(name: Path, error: OSError, path: Path) -> SegptError:
    reason = error.strerror or str(error)
    old = _aside(path)
    if not path.exists() and old.exists():
        return SegptError(f"cannot write {name}: {reason}; what was there is {old} now")
    return SegptError(f"cannot write {name}: {reason}; nothing there was changed")
