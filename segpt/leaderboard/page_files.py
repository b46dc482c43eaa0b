"""The two pages in the directory of a leaderboard, README.md and index.html."""

from pathlib import Path

from segpt.atomic import write_file
from segpt.errors import SegptError

from . import page, render
from .store import read_board


def render_pages(directory: Path, *, write: bool) -> dict[Path, bool]:
    """``README.md`` and ``index.html``, and whether each was stale; with ``write`` none is left.

    Raises:
        SegptError: if a page or a track cannot be read.
        CheckError: if the chain is broken.
    """
    board = read_board(directory)
    readme, index = directory / "README.md", directory / "index.html"
    try:
        old = readme.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SegptError(
            f"cannot read {readme}: it does not exist; write one with a line {render.OPENING} and "
            f"a line {render.CLOSING}, between which the tables go"
        ) from None
    except OSError as error:
        raise SegptError(f"cannot read {readme}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SegptError(f"cannot read {readme}: it is not UTF-8") from None
    try:
        rendered = render.render(old, board.tracks, board.links)
    except SegptError as error:
        raise SegptError(f"{readme}: {error}") from error
    pages = {
        readme: rendered.encode(),
        index: page.render(board.tracks, board.links, board.chain).encode(),
    }
    stale = {path: not path.is_file() or path.read_bytes() != new for path, new in pages.items()}
    for path, new in pages.items():
        if write and stale[path]:
            write_file(path, new)
    return stale
