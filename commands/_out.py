"""Where results go: nothing is overwritten that the same command did not write, unless asked."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from segpt.errors import SegptError

F = TypeVar("F", bound=Callable[..., object])

force = click.option(
    "--force", is_flag=True, help="Overwrite a file that this command did not write."
)


def check_file(
    path: Path | None, replaces: Callable[[Path], bool] = lambda _: False, *, forced: bool
) -> None:
    """Refuse to write a file over one of another kind, before any work is done for it.

    Args:
        path: the file that is to be written, if any.
        replaces: whether a file that is there is of the kind that is to be written.
        forced: whether any file may be overwritten.

    Raises:
        SegptError: if it is a directory, or another file and not ``forced``.
    """
    if path is None or not path.exists():
        return
    if path.is_dir():
        raise SegptError(f"{path} is a directory; name a file with --out")
    if not path.is_file() or forced:
        return  # a device such as /dev/stdout keeps nothing
    if path.stat().st_size and not replaces(path):
        raise SegptError(
            f"{path} is there and is not what this command writes; choose another --out, or add "
            "--force to overwrite it"
        )


def begins_with(*heads: bytes) -> Callable[[Path], bool]:
    """Whether a file has one of these beginnings."""

    def begins(path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(max(map(len, heads))).startswith(heads)

    return begins
