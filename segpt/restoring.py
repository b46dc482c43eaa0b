"""States that are taken over: of optimizers, unfinished quantizations and interrupted scores.

A state lies in a file, so that anything may be in it. A tensor of another shape would be spread
over the one it replaces, and a name that is missing would be met in the middle of a run.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt.errors import CheckpointError

Arrays = Mapping[str, NDArray[Any]]

_ODD = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


def same_kind(what: str, arrays: Arrays, expected: Arrays, optional: Collection[str] = ()) -> None:
    """Check that every expected array is there, in its shape and type.

    Args:
        what: is taken over, for people.
        arrays: those of a file.
        expected: arrays as they have to be; their values do not matter.
        optional: what may be missing.

    Raises:
        CheckpointError: naming the first that is not.
    """
    for name, array in expected.items():
        if name not in arrays:
            if name in optional:
                continue
            raise CheckpointError(f"{what} lacks {name!r}; {_REMEDY}")
        actual = arrays[name]
        if actual.shape != array.shape or actual.dtype != array.dtype:
            raise CheckpointError(
                f"{what} has {name!r} as {actual.dtype} {actual.shape}, where it is {array.dtype} "
                f"{array.shape}; {_REMEDY}"
            )


_REMEDY = "go on with the settings that it began with, or begin anew"


@contextmanager
def taking_over(
    what: str, arrays: Arrays, again: Callable[[], Arrays], optional: Collection[str] = ()
) -> Iterator[None]:
    """Within the block ``arrays`` are taken over; after it, ``again`` says what that came to.

    Raises:
        CheckpointError: if it cannot be, or became something else on the way.
    """
    try:
        with np.errstate(all="ignore"):
            yield
        came_to = again()
    except _ODD as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{what} does not fit ({reason}); {_REMEDY}") from error
    same_kind(what, arrays, came_to, optional)
