"""Which documents of a text are kept: by a field beside them, such as a score, and by length."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from segpt.errors import DataError

_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_WRITTEN = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")


@dataclass(frozen=True)
class Criterion:
    """What the value of a field has to be like: ``score>=2.75`` or ``language==en``."""

    field: str
    comparison: str
    bound: float | str

    def holds(self, value: object) -> bool:
        """Whether a value is as it should be; one of another type, or none, is not.

        A truth value counts as the word for it, true or false.
        """
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(self.bound, str):
            alike = isinstance(value, str)
        else:
            value = float(value) if isinstance(value, int | float | Decimal) else math.nan
            alike = not math.isnan(value)
        return alike and bool(_COMPARISONS[self.comparison](value, self.bound))

    def __str__(self) -> str:
        bound = self.bound if isinstance(self.bound, str) else f"{self.bound:g}"
        return f"{self.field}{self.comparison}{bound}"


def read_criterion(written: str) -> Criterion:
    """Read ``FIELD>=NUMBER``, or ``FIELD==WORD``.

    Raises:
        DataError: if it is neither.
    """
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise DataError(f"--keep {written!r}: write FIELD>=NUMBER, such as 'score>=2.75'")
    field, comparison, text = match.groups()
    try:
        number = float(text)
    except ValueError:
        if comparison not in ("==", "!="):
            raise DataError(
                f"--keep {written!r}: {text!r} is no number, and words are compared by == or !="
            ) from None
        return Criterion(field, comparison, text)
    if not math.isfinite(number):
        raise DataError(f"--keep {written!r}: {text} is no number to compare with")
    return Criterion(field, comparison, number)


@dataclass(frozen=True)
class Selection:
    """The documents for which all ``conditions`` hold and that have ``characters`` or more."""

    conditions: Sequence[Criterion] = ()
    characters: int = 0

    def __bool__(self) -> bool:
        return bool(self.conditions) or self.characters > 0

    def long_enough(self, document: bytes) -> bool:
        """Whether a document has enough characters."""
        if not self.characters or len(document) >= 4 * self.characters:
            return True
        return len(document.decode("utf-8", "replace")) >= self.characters

    def __str__(self) -> str:
        words = [f"--keep {condition}" for condition in self.conditions]
        return " ".join([*words, *([f"--min-chars {self.characters}"] if self.characters else [])])


ALL = Selection()


class LeftOut:
    """Stands for a document for which the conditions do not hold."""


LEFT_OUT: Final = LeftOut()
