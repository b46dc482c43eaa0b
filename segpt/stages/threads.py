"""How sums are shared among threads decides how they are rounded."""

import contextlib
from collections.abc import Iterator

import torch

from segpt.config.environment import Environment


def rounded_otherwise(what: str, then: Environment, now: Environment) -> str | None:
    """A line if what goes on adds up its sums in another order than before; None if it does not.

    Args:
        what: goes on, for people.
        then: what was computed on before, as far as that is known.
        now: the same now.
    """
    before = _decisive(then)
    differ = [
        f"{key} {before[key]} before and {value} now"
        for key, value in _decisive(now).items()
        if value is not None and before[key] not in (None, value)
    ]
    if not differ:
        return None
    return (
        f"{what} goes on, but not bit for bit as it would have: {', '.join(differ)}; resume with "
        "the same for that"
    )


def _decisive(environment: Environment) -> dict[str, object]:
    """What the last bits depend on; None where it is not known."""
    versions = environment.versions
    return {
        "processes": environment.processes,
        "device": environment.device,
        "threads": environment.threads,
        "torch": (versions.torch or None) if versions is not None else None,
    }


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
