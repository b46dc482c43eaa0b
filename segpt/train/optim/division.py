"""Work on matrices divided among the processes: each is done by one, its owner, for all.

    owner of each matrix (the same in every process) -> own results -> one message -> all results

The largest matrix goes first, each to the process that has least to do. So owners follow from what
learns in a step, and no state belongs to a process.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from segpt.train.mesh import Mesh


class Work(NamedTuple):
    """What is to be done for matrices of one shape, each by itself.

    Attributes:
        matrices: how many there are.
        shape: of each result, (..., out, in).
        cost: of each, in a unit that is the same for all work.
        dtype: of the results, on their way too.
        compute: the results of the matrices with these numbers, (numbers, ..., out, in).
    """

    matrices: int
    shape: tuple[int, ...]
    cost: int
    dtype: torch.dtype
    compute: Callable[[Sequence[int]], Tensor]


@runtime_checkable
class DividesWork(Protocol):
    """An optimizer of a group whose step has a part that one process can do for all."""

    def prepare(self, progress: float, steps: float) -> list[Work]:
        """Begin a step: do what comes before the work, and say what that is."""

    def apply(self, multiplier: float, progress: float, results: Sequence[Tensor]) -> None:
        """End a step with the results of the work, (matrices, ..., out, in) for each shape."""


class Division:
    """Work of one dtype, of which this process has done its part and the others do theirs."""

    def __init__(self, work: Sequence[Work], mesh: Mesh) -> None:
        """Do what this process owns, and begin to exchange results."""
        self.work = work
        costs = tuple(each.cost for each in work for _ in range(each.matrices))
        owner = iter(owners(costs, mesh.size))
        # by process and work, the numbers of the matrices that it owns
        self.numbers: list[list[list[int]]] = [[[] for _ in work] for _ in range(mesh.size)]
        for kind, each in enumerate(work):
            for number in range(each.matrices):
                self.numbers[next(owner)][kind].append(number)
        self.exchange = mesh.begin_gather(self._own_results(mesh)) if work else None

    def results(self) -> list[Tensor]:
        """All results, (matrices, ..., out, in) for each work."""
        if self.exchange is None:
            return []
        messages, arrival = self.exchange
        arrival.wait()
        every = [messages.new_empty(each.matrices, *each.shape) for each in self.work]
        for message, numbers in zip(messages, self.numbers, strict=True):
            start = 0
            for own, result in zip(numbers, every, strict=True):
                if own:
                    part = message[start : start + len(own) * result[0].numel()]
                    result[own] = part.view(len(own), *result.shape[1:])
                    start += part.numel()
        return every

    def _own_results(self, mesh: Mesh) -> Tensor:
        """What this process gives, (numbers,), as long as what any gives."""
        sizes = (
            sum(
                len(own) * math.prod(each.shape)
                for own, each in zip(numbers, self.work, strict=True)
            )
            for numbers in self.numbers
        )
        message = torch.zeros(max(sizes), dtype=self.work[0].dtype, device=mesh.device)
        start = 0
        for own, each in zip(self.numbers[mesh.rank], self.work, strict=True):
            if own:
                result = each.compute(own)
                message[start : start + result.numel()] = result.flatten()
                start += result.numel()
        return message


@functools.cache
def owners(costs: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Which of ``size`` processes does each work, so that none has much more to do than another."""
    loads, owner = [0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = loads.index(min(loads))
        owner[index] = least
        loads[least] += costs[index]
    return tuple(owner)
