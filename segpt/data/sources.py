"""Which files hold text: those that are named, and those in a directory that are data."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from segpt.errors import DataError

from .compression import COMPRESSIONS, ERRORS, plain, reason

KINDS: Final = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
KNOWN: Final = f"give {', '.join(KINDS)} files, plain or {', '.join(COMPRESSIONS)}"

Notice = Callable[[str], None]

_COPIES: Final = (".bak", ".old", ".orig")  # what programs append to the name of a copy
_NO_DATA: Final = frozenset({"__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN"})
_HEAD: Final = 2**16  # bytes that are compared before whole files are
_CHUNK: Final = 2**20


class Form(NamedTuple):
    """How a file is read: one of ``KINDS``, and one of ``COMPRESSIONS`` or nothing."""

    kind: str
    compression: str


def form(path: Path) -> Form:
    """The form that a name promises, in letters of either case; a copy is read as its original."""
    name = path.name.lower().strip("#").removesuffix("~")
    for ending in _COPIES:
        name = name.removesuffix(ending)
    compression = next((c for c in COMPRESSIONS if name.endswith(c)), "")
    return Form(Path(name.removesuffix(compression)).suffix, compression)


def shown(path: Path) -> str:
    """A path for people: bytes of a name that are no UTF-8, and line breaks, are spelt out."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def find(paths: Sequence[Path], notice: Notice | None = None) -> tuple[Path, ...]:
    """The files that ``paths`` stand for, each text once.

    A file that is named is taken. A directory stands for the text files below it in the order of
    their names, without hidden ones, the copies of editors and the results of segpt; ``.json``
    files count only where there are no others, since most describe something else.

    Args:
        paths: Files and directories.
        notice: Called with a line about what is left out.

    Raises:
        DataError: if a path is missing or no text, or nothing is left.
    """
    say = notice or (lambda line: None)
    files: list[Path] = []
    for path in map(Path, paths):
        try:
            files += _inside(path, say) if path.is_dir() else [_named(path)]
        except (OSError, ValueError) as error:
            raise DataError(
                f"{shown(path)}: cannot be looked at ({reason(error)}); check the path"
            ) from error
    if not files:
        raise DataError(f"no text given; {KNOWN}")
    return _distinct(files, say)


def _named(path: Path) -> Path:
    if not path.exists():
        what = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise DataError(f"{shown(path)}: {what}; check the path")
    if not path.is_file():
        raise DataError(
            f"{shown(path)}: a pipe or a device, and a text is read more than once; write it to a "
            "file first"
        )
    if form(path).kind not in KINDS:
        raise DataError(f"{shown(path)}: not a known kind of text; {KNOWN}")
    return path


def _inside(directory: Path, say: Notice) -> list[Path]:
    files = sorted(p for p in _walk(directory) if form(p).kind in KINDS and p.is_file())
    texts = [path for path in files if form(path).kind != ".json"]
    if not files:
        raise DataError(f"{shown(directory)}: no text in this directory; {KNOWN}")
    if texts and (count := len(files) - len(texts)):
        say(
            f"{shown(directory)}: {count:,} .json {'file' if count == 1 else 'files'} beside other "
            "texts left out; name what shall be read"
        )
    return texts or files


def _walk(directory: Path) -> Iterator[Path]:
    """The files below a directory that are data, as far as their names say."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(directory, onerror=refuse):
        folders[:] = [f for f in folders if _is_data(f) and not _is_ours(Path(place, f))]
        yield from (Path(place, name) for name in names if _is_data(name))


def _is_data(name: str) -> bool:
    """Whether a name in a directory is neither hidden nor that of an editor's copy."""
    return not (
        name.startswith((".", "#", "~$")) or name.endswith(("~", "#", *_COPIES)) or name in _NO_DATA
    )


def _is_ours(folder: Path) -> bool:
    """Whether segpt keeps its results in a folder: their logs are no text to train on."""
    return folder.name == "runs" and (folder / "latest.json").is_file()


def _distinct(files: Sequence[Path], say: Notice) -> tuple[Path, ...]:
    """Each text once, at its first place, however often and under whatever name it is there."""
    kept: list[Path] = []
    copies: list[tuple[Path, Path]] = []  # each with its original
    originals: dict[Hashable, Path] = {}
    marks = zip(_identities(files), _texts(files), _contents(files), strict=True)
    for path, known in zip(files, marks, strict=True):
        original = next((originals[mark] for mark in known if mark in originals), None)
        if original is None:
            kept.append(path)
        else:
            copies.append((path, original))
        for mark in known:
            if mark is not None:
                originals.setdefault(mark, original or path)
    if copies:
        say(_repetition(copies))
    return tuple(kept)


def _repetition(copies: Sequence[tuple[Path, Path]]) -> str:
    again, original = map(shown, copies[0])
    what = f"{again} is given twice" if again == original else f"{again} is {original} again"
    more = len(copies) - 1
    if more:
        what += f", and {more:,} more {'file is a copy' if more == 1 else 'files are copies'}"
    return f"{what}; each text is read once"


def _identities(files: Sequence[Path]) -> list[Hashable]:
    """What two names of one file have in common."""
    states = [path.stat() for path in files]
    return [(state.st_dev, state.st_ino) for state in states]


def _contents(files: Sequence[Path]) -> list[Hashable]:
    """What files of equal bytes have in common; None for a file that is alone, or empty."""
    keys: list[Hashable] = [path.stat().st_size or None for path in files]
    for limit in (_HEAD, None):  # few files are read whole
        often = Counter(keys)
        keys = [
            (key, _digest(path, "", limit)) if key is not None and often[key] > 1 else None
            for path, key in zip(files, keys, strict=True)
        ]
    return keys


def _texts(files: Sequence[Path]) -> list[Hashable]:
    """What a file and its compressed copy of the same name have in common; else None."""
    forms = [form(path).compression for path in files]
    names = [
        path.with_name(path.name[: len(path.name) - len(compression)])
        for path, compression in zip(files, forms, strict=True)
    ]
    often = Counter(names)
    return [
        (name, _digest(path, compression)) if often[name] > 1 else None
        for path, name, compression in zip(files, names, forms, strict=True)
    ]


def _digest(path: Path, compression: str, limit: int | None = None) -> str:
    """SHA-256 of what a file holds; of one that cannot be read, its path: reading will tell."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            stream = plain(file, compression)
            while chunk := stream.read(limit or _CHUNK):
                digest.update(chunk)
                if limit:
                    break
    except ERRORS:
        return str(path)
    return digest.hexdigest()
