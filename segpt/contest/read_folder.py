"""A submission folder to its contradictions: reads the files, and the record it claims to beat."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from segpt.errors import SegptError, SpecError

from . import claims
from .check import check
from .encoding import decoded
from .submission_folder import (
    NEEDS,
    Contradiction,
    Folder,
    Previous,
    is_log,
    metadata_of,
    script_of,
)

LARGEST = 64 << 20  # bytes of a file that is read
SKIPPED = ("__pycache__", ".git")
_EASTERNMOST = timedelta(hours=14)  # where it is tomorrow already


def check_folder(directory: Path, against: str | None = None) -> list[Contradiction]:
    """Every contradiction of a submission folder; empty if it is sound.

    Args:
        directory: the folder of one submission.
        against: the previous record: its bits per byte, its folder, or its metadata.

    Raises:
        SegptError: if there is no such folder, or a file cannot be read.
        SpecError: if ``against`` is none of these.
    """
    before = None if against is None else read_previous(against)
    today = (datetime.now(UTC) + _EASTERNMOST).date()
    return check(read_folder(directory), today, before)


def read_folder(directory: Path) -> Folder:
    """The files of a submission.

    Raises:
        SegptError: if there is no such folder, or a file cannot be read.
    """
    if not directory.is_dir():
        raise SegptError(f"{directory}: no such folder; name the folder of one submission")
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {
        path.relative_to(directory).as_posix(): path
        for path in paths
        if not set(SKIPPED).intersection(path.relative_to(directory).parts)
    }
    names = {metadata_of(files), script_of(files), NEEDS}
    read = {n for n in files if n in names or is_log(n) or n.lower().endswith(".md")}
    return Folder(
        sizes={name: path.stat().st_size for name, path in files.items()},
        texts={name: _text(files[name]) for name in sorted(read)},
    )


def read_previous(against: str) -> Previous:
    """The record to beat: a number, a submission folder, or its metadata.

    Raises:
        SegptError: if it cannot be read.
        SpecError: if it is no number and no metadata with bits per byte.
    """
    try:
        bpb = float(against)
    except ValueError:
        path = Path(against)
    else:
        if not 0 < bpb < claims.MOST:
            raise SpecError(f"--against {against!r}: no bits per byte of a record; give its BPB")
        return Previous(against, (bpb,))
    if os.path.isdir(path):  # noqa: PTH112 - for a name of any length
        path = path / (metadata_of(p.name for p in path.iterdir()) or "submission.json")
    if not os.path.isfile(path):  # noqa: PTH113
        raise SpecError(
            f"--against {against!r}: neither a number nor a file; give the bits per byte of the "
            "previous record, its folder, or its submission.json"
        )
    try:
        about = claims.read(_text(path))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    values = [float(seed.bpb) for seed in about.seeds if seed.bpb is not None]
    if not values and about.bpb is not None:
        values = [float(about.bpb)]
    if not values:
        raise SpecError(f"{path}: names no val_bpb; give the bits per byte of the record instead")
    return Previous(str(path), tuple(values))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return decoded(file.read(LARGEST))
    except OSError as error:
        raise SegptError(f"cannot read {path}: {error.strerror}") from None
