"""How sums are shared among threads decides how they are rounded."""

import contextlib
from collections.abc import Iterator

import torch


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
