"""What the fields of tracks and entries may hold: names, words, digests, days and numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from segpt.errors import SpecError

LONGEST_NAME = 64
LONGEST_AUTHOR = 100
LONGEST_ABOUT = 2_000
LONGEST_SOURCE = 500
MOST = 2**53  # of anything counted: so far, floats hold every whole number
DEEPEST = 8  # levels of the tables in a policy or in conditions


def check_authors(authors: Sequence[str]) -> None:
    if not authors:
        raise SpecError("authors names at least one person or team")
    for author in authors:
        if not author.strip():
            raise SpecError("an author has a name")
        check_words("authors", author, LONGEST_AUTHOR)


def check_words(what: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise SpecError(f"{what} has at most {longest:,} characters, got {len(text):,}")
    check_unicode(what, text)


def check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > LONGEST_NAME:
        raise SpecError(
            f"{what} {name[:LONGEST_NAME]!r}: write at most {LONGEST_NAME} lower-case letters and "
            "digits, in words joined by '-'"
        )


def check_unicode(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{what} {text[:80]!r}: not Unicode; write it in UTF-8") from None


def check_digest(what: str, digest: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SpecError(f"{what} is a SHA-256 of 64 hexadecimal digits, got {digest[:80]!r}")


def check_date(text: str) -> None:
    try:
        sound = date.fromisoformat(text).isoformat() == text
    except ValueError:
        sound = False
    if not sound:
        raise SpecError(f"date {text[:80]!r}: write a day of the calendar as YYYY-MM-DD")


def check_count(what: str, count: int) -> None:
    if not 1 <= count <= MOST:
        raise SpecError(f"{what} is a count from 1 to {MOST:,}")


def check_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise SpecError(f"{what} must be positive and finite, got {value}")
    if value > MOST:
        raise SpecError(f"{what} is at most {MOST:,}, got {value:g}")


def check_plain(what: str, value: Any, depth: int = 0) -> None:
    """Refuse what JSON cannot hold, or could not be read from it again."""
    if depth > DEEPEST:
        raise SpecError(f"{what} has tables within tables, more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_plain(f"{what}.{str(key)[:40]}", inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(what, inner, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{what} must be finite, got {value}")
    elif isinstance(value, int) and abs(value) > MOST:
        raise SpecError(f"{what} is a whole number of more than {MOST:,}")
