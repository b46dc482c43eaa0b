"""The processes that torchrun starts: which one speaks, and which commands they can share."""

import contextlib
import os
from collections.abc import Iterator

from segpt.errors import SegptError, SpecError

SHARED = frozenset({"train", "score"})  # commands whose work several processes can share


def leads() -> bool:
    """Whether this process speaks, of those that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """An error that all processes come upon before they meet is said by the one that speaks."""
    try:
        yield
    except SegptError as error:
        if leads():
            raise
        raise SystemExit(error.exit_code) from None


def check_alone(what: str) -> None:
    """Refuse work that several processes would only do several times over, into the same files.

    A number of processes counts where torchrun has set it; a scheduler may set it for all that a
    job runs.

    Raises:
        SpecError: if torchrun started more than this process; the others end without a word.
    """
    started = "TORCHELASTIC_RUN_ID" in os.environ
    if started and os.environ.get("WORLD_SIZE", "1") != "1":
        if not leads():
            raise SystemExit(2)
        raise SpecError(f"{what} runs in one process; start it without torchrun")
