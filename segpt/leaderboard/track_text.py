"""The text that a track scores, where it is at hand."""

from pathlib import Path

from segpt.data.corpus import builtin
from segpt.data.text import read_text, text_digest
from segpt.errors import CheckError
from segpt.stages.prepare import as_text, open_splits
from segpt.values import Text

from .track import Track

BUILTIN = "builtin"  # the source of a track whose text comes with Python


def text_of(directory: Path, track: Track, named: Path | None = None) -> Text | None:
    """The text of a track, if it is at hand.

    Args:
        directory: the leaderboard, where :attr:`Track.source` may name a file.
        track: whose text is wanted.
        named: a file or directory that holds it instead, or a prepared text that held it out.

    Raises:
        DataError: if the file cannot be read.
        CheckError: if it holds another text than the track's.
    """
    if named is not None:
        prepared = (named / "validation" / "manifest.json").is_file()
        text = as_text(open_splits(named)[1]) if prepared else read_text([named])
    elif track.source == BUILTIN:
        text = builtin("validation")
    elif track.source and (directory / track.source).is_file():
        text = read_text([directory / track.source])
    else:
        return None
    if track.text is not None and (digest := text_digest(text)) != track.text:
        raise CheckError(
            f"{text.name}: its digest is {digest[:12]}, and the text of {track.name} has "
            f"{track.text[:12]}; give that with --text"
        )
    return text
