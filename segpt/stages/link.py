"""Files of ids of other programs to Tokens: both splits refer to them, and nothing is copied."""

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from segpt.atomic import new_directory
from segpt.data.linked import link_tokens
from segpt.errors import DataError
from segpt.locks import locked
from segpt.values import Tokenizer, Tokens

from .json_files import write_json
from .prepare import SOURCE, SPLITS, Source, check_vacant, is_prepared, open_splits

_BESIDE = re.compile(r"offsets_.*|.*_bytes_.*|documents\.bin")  # files that lie beside those of ids
_TRAINING = re.compile(r"(.+_)train(_.*)?")


def matched(patterns: Sequence[str]) -> list[Path]:
    """The files that patterns stand for, those of each pattern in the order of their names.

    What a pattern matches of offsets and byte counts, which lie beside ids, is left out.

    Raises:
        DataError: if a pattern matches nothing, or a file is matched twice.
    """
    files: list[Path] = []
    for pattern in patterns:
        paths = [Path(pattern)] if Path(pattern).is_file() else _found(pattern)
        if not paths:
            raise DataError(f"{pattern}: no such file of ids; check the path or pattern")
        files += paths
    places = [path.resolve() for path in files]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise DataError(f"{files[number]}: is named twice; name each file once")
    return files


def _found(pattern: str) -> list[Path]:
    paths = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    return sorted(p for p in paths if p.is_file() and not _BESIDE.fullmatch(p.name))


def held_out_beside(train: Sequence[Path]) -> list[Path]:
    """The validation files that lie beside training files: x_val_* beside x_train_*.

    Raises:
        DataError: if there are none.
    """
    patterns = []
    for path in train:
        if match := _TRAINING.fullmatch(path.stem):
            name = f"{glob.escape(match[1])}val_*{glob.escape(path.suffix)}"
            patterns.append(str(Path(glob.escape(str(path.parent)), name)))
    files = [path for pattern in dict.fromkeys(patterns) for path in _found(pattern)]
    if not files:
        raise DataError(
            f"no validation files beside {train[0]} (x_val_* beside x_train_* are known); name "
            "them with --validation"
        )
    return files


def rotated(files: Sequence[Path], number: int) -> list[Path]:
    """The files from the one of a number on, counted from 1 and beginning anew after the last."""
    first = (number - 1) % len(files)
    return [*files[first:], *files[:first]]


def check_place(out: Path, files: Sequence[Path]) -> None:
    """Refuse a directory that holds other things, or one of the files, before anything is read.

    Raises:
        DataError: naming what it holds.
    """
    place = out.resolve()
    for path in files:
        if place in path.resolve().parents:
            raise DataError(f"{out}: holds {path.name} itself; choose another --out")
    check_vacant(out)


def link(
    train: Sequence[Path],
    validation: Sequence[Path],
    tokenizer: Tokenizer,
    out: Path,
    report: Callable[[int], None] = lambda size: None,
    *,
    id_type: str | None = None,
    source: Source,
) -> tuple[Tokens, Tokens]:
    """Write both splits below ``out``, whole or not at all; the files stay where they are.

    Args:
        train: The training files, in order.
        validation: The validation files, in order.
        tokenizer: What made the ids.
        out: The directory; a text that was prepared or linked there is replaced.
        report: Called with the bytes of each part that was read.
        id_type: What the ids of files without a header are.
        source: What the result depends on, which is kept beside the splits.

    Raises:
        DataError: if a file is in both, damaged, or below ``out``, or ``out`` holds other things.
    """
    check_place(out, [*train, *validation])
    if both := {p.resolve() for p in train} & {p.resolve() for p in validation}:
        raise DataError(f"{min(both)}: is both training and validation file; name it once")
    with locked(out), new_directory(out, replaces=is_prepared) as directory:
        for split, paths in zip(SPLITS, (train, validation), strict=True):
            (directory / split).mkdir()
            link_tokens(
                paths, tokenizer, directory / split, split=split, id_type=id_type, report=report
            )
        write_json(directory / SOURCE, dict(source))
    return open_splits(out)
