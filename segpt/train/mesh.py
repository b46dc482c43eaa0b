"""The processes of a run: one, or as many as torchrun starts. Alone, everything is a no-op."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from segpt.errors import TrainError


@dataclass(frozen=True)
class Mesh:
    """This process's place among ``size`` processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process prints and saves."""
        return self.rank == 0

    def rows(self, batch: int, accumulation: int) -> list[slice]:
        """Which rows of a global batch this process takes in each micro-batch.

        Raises:
            TrainError: if the batch does not divide, rather than silently changing it.
        """
        share, rest = divmod(batch, accumulation * self.size)
        if rest:
            raise TrainError(
                f"a batch of {batch} sequences does not divide among {self.size} processes "
                f"times {accumulation} micro-batches; set train.batch to a multiple of "
                f"{accumulation * self.size}"
            )
        starts = [(m * self.size + self.rank) * share for m in range(accumulation)]
        return [slice(start, start + share) for start in starts]

    def mean(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over the processes, in place and in one float32 message."""
        if self.size == 1:
            return
        found = list(tensors)
        flat = torch.cat([t.reshape(-1).float() for t in found])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [t.numel() for t in found])
        for tensor, part in zip(found, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean_value(self, value: float) -> float:
        """The mean of a number over the processes, the same in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return float(shared) / self.size

    def first(self, value: float) -> float:
        """The value of the leading process: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """Run a block in the leading process, then in the others: it may leave files for them."""
        if not self.leads:
            dist.barrier()
        try:
            yield
        finally:
            if self.leads and self.size > 1:
                dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)


def join(device: str = "auto") -> Mesh:
    """Join the processes that torchrun started, or be alone; ``auto`` prefers CUDA.

    Raises:
        TrainError: if the device is not there.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(pick(device))
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return Mesh(rank, size, place)


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def pick(device: str) -> str:
    """Resolve ``auto`` and check that an explicit device exists.

    Raises:
        TrainError: if it does not.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainError(f"device {device!r} cannot be used: {reason}; try --device cpu") from None
    return device
