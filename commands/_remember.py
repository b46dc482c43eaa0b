"""A command makes what it wrote the newest of its kind, so that the next one finds it."""

from pathlib import Path

from segpt.errors import SegptError
from segpt.workspace import newest

from . import _report


def remember(kind: str, path: Path) -> None:
    """Make ``path`` the newest ``kind``; where that fails a line says so, and the work goes on."""
    try:
        newest.remember(kind, path)
    except SegptError as error:
        _report.notice(f"{path} is written, but is not remembered as the newest: {error}")
