"""How sums are shared among threads decides how they are rounded."""

import contextlib
from collections.abc import Iterator, Mapping

import torch


def rounded_otherwise(
    what: str, then: Mapping[str, object], now: Mapping[str, object]
) -> str | None:
    """A line if what goes on adds up its sums in another order than before; None if it does not.

    Args:
        what: goes on, for people.
        then: what the last bits depended on before, as far as that is known.
        now: the same now.
    """
    differ = [
        f"{key} {then[key]} before and {value} now"
        for key, value in now.items()
        if then.get(key) not in (None, value)
    ]
    if not differ:
        return None
    return (
        f"{what} goes on, but not bit for bit as it would have: {', '.join(differ)}; resume with "
        "the same for that"
    )


@contextlib.contextmanager
def one_thread(device: str = "cpu") -> Iterator[None]:
    """Within the block sums come out in one order, whatever machine: on a CPU one thread works."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
