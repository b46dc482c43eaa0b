"""Numbers of bytes as people write them: 16000000, 16_000_000, 16e6, 16MB, 15.9 MB or 16MiB."""

import re
from decimal import Decimal

from segpt.errors import SpecError

MOST = 10**15  # bytes: no file of a small model comes near it
LONGEST = 40  # characters
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(
    r"(?P<number>\d[\d_]*|\d{1,3}(?:,\d{3})+|\d[\d_]*\.\d+)(?P<exponent>[eE][+]?\d{1,2})?"
    r"\s*(?P<unit>[a-zA-Z]*)"
)
_EXAMPLES = "write a number of bytes such as 16000000, 16MB (millions) or 16MiB (1,048,576 each)"


def byte_count(text: str) -> int:
    """The number of bytes that ``text`` names.

    ``k``, ``M``, ``G`` and ``T``, with or without a B, are powers of 1000; ``KiB`` to ``TiB`` are
    powers of 1024.

    Raises:
        SpecError: if it names none, may mean two things, or is no size of a file.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None:
        raise SpecError(f"{text[:LONGEST]!r} is no size; {_EXAMPLES}")
    number, exponent, unit = match["number"], match["exponent"] or "", match["unit"]
    size = Decimal(number.replace("_", "").replace(",", "") + exponent) * _factor(text, unit)
    if size != int(size):
        raise SpecError(f"{text[:LONGEST]!r} is not a whole number of bytes; {_EXAMPLES}")
    if not 1 <= size <= MOST:
        raise SpecError(f"{text[:LONGEST]!r} is not between one byte and a petabyte; {_EXAMPLES}")
    return int(size)


def _factor(text: str, unit: str) -> int:
    """How many bytes one of ``unit`` has."""
    if len(unit) == 2 and unit[0].isalpha() and unit[1] == "b" and unit[0].isupper():
        bits = f"{unit[0]}b can mean bits; write {unit[0]}B for bytes"
        raise SpecError(f"{text[:LONGEST]!r} has two meanings: {bits}")
    word = unit.lower()
    word = "" if word in ("b", "byte", "bytes") else word.removesuffix("b")
    if word.removesuffix("i") not in _POWERS or word == "i":
        raise SpecError(f"{text[:LONGEST]!r} has an unknown unit {unit!r}; {_EXAMPLES}")
    base = 1024 if word.endswith("i") else 1000
    return int(base ** _POWERS[word.removesuffix("i")])
