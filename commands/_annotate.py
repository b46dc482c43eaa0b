"""Annotations that GitHub shows beside a file, from lines that a job prints."""

import os
from pathlib import Path

import click

from segpt.errors import spelled

_MESSAGE = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = _MESSAGE | str.maketrans({":": "%3A", ",": "%2C"})


def error(path: Path, message: str) -> None:
    """Annotate a file with an error, where the environment says that this is a CI job.

    The line goes to stderr, which GitHub reads too, so that stdout is the same everywhere.
    """
    if os.environ.get("CI"):
        place = _unicode(str(path)).translate(_PROPERTY)
        click.echo(f"::error file={place}::{_unicode(message).translate(_MESSAGE)}", err=True)


def one_line(text: str) -> str:
    """The text with line breaks and other characters that do not print spelt out."""
    return spelled(_unicode(text))


def _unicode(text: str) -> str:
    """What of a text is Unicode: names of files may hold any bytes."""
    return text.encode(errors="replace").decode()
