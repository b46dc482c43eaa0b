"""What ``compress`` and ``decompress`` share: the artifact, and files that are not lost."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from segpt.errors import DataError, SegptError
from segpt.workspace import newest

if TYPE_CHECKING:
    from segpt.values import Artifact

F = TypeVar("F", bound=Callable[..., object])

SUFFIX = ".segz"
LARGEST = 1 << 31  # bytes of a file, far beyond what can be coded
BLOCK = 1 << 20

file = click.argument("file", type=click.Path(path_type=Path))
artifact = click.option(
    "--artifact", type=click.Path(path_type=Path), help="The model.  [default: the newest]"
)
force = click.option("--force", is_flag=True, help="Replace the file to write if it exists.")


def vacant(path: Path, replace: bool) -> Path:
    """``path``, if writing there loses nothing or may ``replace`` what it is.

    Raises:
        SegptError: if there is something, and it may not be replaced.
    """
    if path.exists() and (path.is_dir() or not replace):
        remedy = "choose another --out" + ("" if path.is_dir() else ", or add --force")
        raise SegptError(f"{path} exists already; {remedy}")
    return path


def read(path: Path) -> bytes:
    """The contents of a file.

    Raises:
        DataError: if it cannot be read, or is too large to be coded.
    """
    data = bytearray()  # a single read would ask for the largest size at once
    try:
        with path.open("rb") as stream:
            while len(data) <= LARGEST and (block := stream.read(BLOCK)):
                data += block
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise DataError(f"{path} is larger than {LARGEST:,} bytes; give parts of it")
    return bytes(data)


def open_artifact(path: Path | None) -> "Artifact":
    """The artifact that the user named, or the newest.

    Raises:
        ArtifactError: if it is none.
    """
    from segpt.artifact.container import load

    return load(newest.need("artifact", path))
