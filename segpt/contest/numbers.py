"""Numbers as strangers write them: of any length, sign and exponent, none of which is trusted.

Python refuses to read whole numbers of more than 4,300 digits, and arithmetic fails on numbers
that are huge or infinite. What no run can have is therefore no number here.
"""

import re
from decimal import Decimal

DECIMALS = 15  # that a figure is read with; two figures of which these are alike are the same
MOST = 10**12  # of a figure, or of a size in a table
DIGITS = 18  # of a whole number

_PLACE = Decimal(1).scaleb(-DECIMALS)
_EXPONENT = re.compile(r"[eE][-+]?\d{7,}")  # beyond what Decimal can hold


def exact(text: str) -> Decimal | None:
    """A number as it is written; None if it is infinite, no number, or beyond Decimal."""
    if _EXPONENT.search(text):
        return None
    number = Decimal(text)
    return number if number.is_finite() else None


def figure(text: str) -> Decimal | None:
    """A number that can be a figure of a run, at most ``DECIMALS`` decimals of it.

    None if it is negative, or larger than any such figure.
    """
    number = exact(text)
    return None if number is None else bounded(number)


def bounded(number: Decimal) -> Decimal | None:
    """``number`` as :func:`figure` gives it."""
    if not number.is_finite() or not 0 <= number < MOST:
        return None
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -DECIMALS:
        return number.quantize(_PLACE)
    return number


def whole(text: str) -> int | None:
    """A whole number, with or without commas; None if it has more than ``DIGITS`` digits."""
    digits = text.replace(",", "").lstrip("0") or "0"
    return int(digits) if len(digits) <= DIGITS else None


def cut(text: str) -> str:
    """A long number for people: its beginning, and how many characters it has."""
    return text if len(text) <= 24 else f"{text[:16]}... ({len(text):,} characters)"
