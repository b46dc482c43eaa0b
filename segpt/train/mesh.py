"""The processes of a run: one, or as many as torchrun starts. Alone, everything is a no-op."""

import contextlib
import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import segpt
from segpt.errors import SegptError, TrainError

# How long a process waits for the others, who may read a long text or write to a slow disk.
PATIENCE = dt.timedelta(minutes=30)

# What gloo, NCCL and the store say when a process is gone; torch has no error of its own for it.
_LOST = re.compile(
    r"gloo|NCCL|connection (?:closed|reset|refused)|[Bb]roken pipe|timed? ?out|remote peer|"
    r"[Ss]ocket|rendezvous",
    re.IGNORECASE,
)
_MOST = 3  # differences that a message names


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
        """Average tensors of any shape over the processes, in place and in one float32 message."""
        if self.size == 1:
            return
        averaged = list(tensors)
        flat = torch.cat([t.reshape(-1).float() for t in averaged])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [t.numel() for t in averaged])
        for tensor, part in zip(averaged, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def begin_sum(self, flat: Tensor) -> dist.Work:
        """Begin to add up a tensor of any shape over several processes, in place."""
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        return work

    def begin_gather(self, own: Tensor) -> tuple[Tensor, dist.Work]:
        """Begin to collect what each of several processes gives, (numbers,) of one length.

        Returns:
            What becomes (processes, numbers), in order, and what says when it has.
        """
        every = own.new_empty(self.size, own.numel())
        work = dist.all_gather(list(every), own, async_op=True)
        assert work is not None
        return every, work

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

    def agree(self, facts: Mapping[str, Any]) -> None:
        """See that all processes were told the same; all call this, with what they were told.

        Args:
            facts: JSON values, mappings inside mappings where one wants their keys named.

        Raises:
            TrainError: in all processes if any differs; the leading one's says which and in what.
        """
        if self.size == 1:
            return
        text = json.dumps(facts, sort_keys=True, default=str).encode()
        digests = self._gathered(hashlib.sha256(text).digest())
        if len(set(digests)) == 1:
            return
        sizes = [int.from_bytes(each, "big") for each in self._gathered(len(text).to_bytes(8))]
        padded = self._gathered(text.ljust(max(sizes), b" "))
        if not self.leads:
            raise TrainError(
                f"process {self.rank} stops: the processes were not started alike; process 0 says "
                "in what they differ"
            )
        raise TrainError(_difference([json.loads(each) for each in padded]))

    @contextlib.contextmanager
    def all_well(self) -> Iterator[None]:
        """Run a block in every process, and go on only if it succeeded in all of them.

        Raises:
            SegptError: that of the block; in processes without one, a TrainError.
        """
        failure: SegptError | None = None
        try:
            yield
        except SegptError as error:
            failure = error
        failed = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise TrainError("another process could not go on; see its message")

    def _gathered(self, data: bytes) -> list[bytes]:
        """What every process gives, in order; all give as many bytes."""
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return [bytes(each.cpu().numpy()) for each in every]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)


def _difference(every: Sequence[Mapping[str, Any]]) -> str:
    """Which process was told what other than the first."""
    flat = [dict(_flat("", facts)) for facts in every]
    differ = []
    for key in dict.fromkeys(key for facts in flat for key in facts):
        values = [facts.get(key, "nothing") for facts in flat]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differ.append(
                f"{key} is {_brief(values[0])} in process 0 and {_brief(values[other])} in "
                f"process {other}"
            )
    more = f", and {len(differ) - _MOST} more" if len(differ) > _MOST else ""
    return (
        f"the processes were not started alike: {', '.join(differ[:_MOST])}{more}; start all with "
        "the same command, data and versions"
    )


def _brief(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _flat(place: str, value: object) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings and lists by dotted path."""
    inner: dict[Any, Any] = {}
    if isinstance(value, list):
        inner = dict(enumerate(value))
    elif isinstance(value, Mapping):
        inner = dict(value)
    if not inner:
        yield place, value
    for key, part in inner.items():
        yield from _flat(f"{place}.{key}" if place else str(key), part)


def join(device: str = "auto") -> Mesh:
    """Join the processes that torchrun started, or be alone; ``auto`` prefers CUDA.

    Several processes on a machine each take the CUDA device of their own number there.

    Raises:
        TrainError: if the device is not there, is one for several processes, or the processes
            do not all come or are of different versions.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    where = pick(device) if size == 1 else _own(device)
    place = torch.device("cuda:0" if where == "cuda" else where)
    mesh = Mesh(rank, size, place)
    if size > 1 and not dist.is_initialized():
        _meet("nccl" if place.type == "cuda" else "gloo")
        mesh.agree({"segpt": segpt.__version__, "torch": torch.__version__})
    return mesh


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Mesh]:
    """:func:`join` for a block, and leave after it; a process that is lost ends it everywhere.

    Raises:
        TrainError: as :func:`join`, and if another process is gone.
    """
    with together():
        mesh = join(device)
        try:
            yield mesh
        finally:
            leave()


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def pick(device: str) -> str:
    """Resolve ``auto``, check that an explicit device exists, and make it the current one.

    Raises:
        TrainError: if it does not exist, or is of a kind that is not computed on.
    """
    kind, number = _read(device)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return "cpu"
    place = _cuda(device, number or 0)
    return "cuda" if number is None else str(place)


def _meet(backend: str) -> None:
    with together():
        dist.init_process_group(backend, timeout=PATIENCE)


def _own(device: str) -> str:
    """The device of this process among several, by its number on its machine."""
    kind, number = _read(device)
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return "cpu"
    if number is not None:
        raise TrainError(
            f"--device {device} is one device, and {os.environ['WORLD_SIZE']} processes were "
            "started; give --device cuda, and each takes one of its own (CUDA_VISIBLE_DEVICES "
            "says which there are), or start one process"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= (count := torch.cuda.device_count()) > 0:
        raise TrainError(
            f"process {local} on this machine has no CUDA device of its own: there "
            f"{_are(count)}; start as many processes as there are devices (--nproc-per-node)"
        )
    return str(_cuda(device, local))


def _read(device: str) -> tuple[str, int | None]:
    """The kind of a device, and its number if it has one."""
    kind, colon, number = device.partition(":")
    numbered = kind == "cuda" and number.isascii() and number.isdecimal() and len(number) < 5
    if device not in ("auto", "cpu", "cuda") and not (colon and numbered):
        raise TrainError(
            f"device {device!r} is none that segpt computes on; give auto, cpu, cuda, or cuda:N "
            "with the number of a device"
        )
    return kind, int(number) if colon else None


def _cuda(device: str, number: int) -> torch.device:
    """A CUDA device that is there and answers, which becomes the current one."""
    if not torch.cuda.is_available():
        raise TrainError(
            f"device {device!r} cannot be used: torch finds no CUDA device here; give --device "
            "cpu, or ask segpt doctor why"
        )
    if number >= (count := torch.cuda.device_count()):
        known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise TrainError(f"device {device!r} is not there: there {_are(count)}, {known}")
    place = torch.device("cuda", number)
    try:
        torch.cuda.set_device(place)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise TrainError(
            f"device {device!r} is there but does not answer; another program may hold it, or the "
            "driver may be too old: see nvidia-smi, or give --device cpu"
        ) from error
    return place


def _are(count: int) -> str:
    return "is 1 CUDA device" if count == 1 else f"are {count} CUDA devices"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turn what torch raises when another process is gone into a message.

    Raises:
        TrainError: then.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if alone or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        raise TrainError(
            "another process of this run has ended or does not answer, so this one ends, too; its "
            "own message says why, and what was saved is kept"
        ) from error
