"""How long each kernel takes at best on GPUs that are not here, from its bytes and its operations.

No kernel is faster than its bytes over the bandwidth of memory, nor than its operations over the
peak of the cores. Bytes are those of the tensors that it touches, each number once; operations are
those of its products of tiles. Both come from programs run in Triton's interpreter on tensors as
large as the real ones, of which nothing is read.
"""

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from segpt.kernels.launch import Launch
from segpt.kernels.tiles import compiled_for

from .kernel_cases import Case, cases, kernel_of
from .kernel_traffic import Memory, run, tapped


class Device(NamedTuple):
    """What a GPU reaches at most, as its vendor says.

    Attributes:
        architecture: what its kernels are compiled for.
        bandwidth: of its memory, in bytes per second.
        tensor: bfloat16 operations per second in tensor cores, added up in float32, not sparse.
        single: float32 operations per second outside of them.
        cache: bytes of the second level.
        multiprocessors: how many it has.
        source: who says so.
    """

    architecture: int
    bandwidth: float
    tensor: float
    single: float
    cache: int
    multiprocessors: int
    source: str


DEVICES = {
    "A100": Device(
        80, 2.039e12, 312e12, 19.5e12, 40 << 20, 108,
        "NVIDIA A100 data sheet, SXM 80 GB; A100 architecture whitepaper",
    ),
    "RTX 4090": Device(
        89, 1.008e12, 165.2e12, 82.6e12, 72 << 20, 128,
        "NVIDIA Ada GPU architecture whitepaper, appendix A",
    ),
    "H100": Device(
        90, 3.35e12, 989.4e12, 66.9e12, 50 << 20, 132,
        "NVIDIA H100 data sheet, SXM; H100 architecture whitepaper",
    ),
    "H200": Device(
        90, 4.8e12, 989.4e12, 66.9e12, 50 << 20, 132,
        "NVIDIA H200 data sheet, SXM; the cores and the cache are those of the H100",
    ),
    "B200": Device(
        100, 8e12, 2250e12, 80e12, 126 << 20, 148,
        "NVIDIA Blackwell data sheet, HGX B200; cache and multiprocessors as the driver shows them",
    ),
}  # fmt: skip


class Effort(NamedTuple):
    """What a launch cannot do without: bytes to and from memory, operations of products."""

    bytes: int
    flops: int

    def seconds(self, device: Device, single: bool) -> float:
        """The least time on a device; ``single`` where products are of float32."""
        peak = device.single if single else device.tensor
        return max(self.bytes / device.bandwidth, self.flops / peak)


class _Untouched(Memory):
    """Memory that is looked at and never read: stores are dropped.

    Loads give ones, so that no row is left out as one that counts nothing; ids are 0.
    """

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.note(addresses, mask, False)
        kind = np.ones if np.dtype(dtype).kind == "f" else np.zeros
        return kind(addresses.shape, dtype)

    def store(self, addresses: Any, value: Any, mask: Any) -> None:
        self.note(addresses, mask, True)

    def atomic_rmw(self, operation: Any, addresses: Any, value: Any, mask: Any, order: Any) -> Any:
        self.note(addresses, mask, False)
        self.note(addresses, mask, True)
        return np.zeros(addresses.shape, value.dtype)

    def note(self, addresses: Any, mask: Any, writes: bool) -> None:
        used = addresses[np.broadcast_to(mask, addresses.shape)].astype(np.int64)
        if used.size:
            place = self.place(int(used.min()), int(used.max()) + 1)
            place.requested[writes] += place.item * used.size

    def dot(self, a: Any, b: Any, total: Any, *rest: Any) -> Any:
        self.flops += 2 * a.data.size * b.data.shape[-1]
        return total


def effort(launch: Launch) -> Effort:
    """What a launch made of ``meta`` tensors needs.

    Where the first and the last program along an axis do alike, so do those in between, and stand
    for each other; along the other axes each one runs.
    """
    lying = {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in launch.arguments.items()
    }
    launch = launch._replace(arguments=lying)
    memory = _Untouched(launch)
    flops = over_all(launch.grid, lambda program: _flops(launch, memory, program))
    read = {place.name for place in memory.places if place.requested[False]}
    written = {place.name for place in memory.places if place.requested[True]}
    sizes = {name: value.nbytes for name, value in lying.items() if isinstance(value, Tensor)}
    return Effort(sum(sizes[name] for names in (read, written) for name in names), flops)


def _flops(launch: Launch, memory: _Untouched, program: Sequence[int]) -> int:
    """Operations of the products of one program."""
    from triton.runtime import interpreter

    builder, before = interpreter.interpreter_builder, memory.flops
    place, size = builder.set_grid_idx, builder.set_grid_dim
    x, y, z = (*program, 0, 0)[:3]
    with (
        tapped(memory, memory.dot),
        patch.object(builder, "set_grid_idx", lambda *_: place(x, y, z)),
        patch.object(builder, "set_grid_dim", lambda *_: size(*(*launch.grid, 1, 1)[:3])),
        patch.object(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None),
        np.errstate(all="ignore"),
    ):
        run(launch._replace(grid=(1,)))
    return memory.flops - before


def over_all(grid: Sequence[int], of: Callable[[Sequence[int]], int]) -> int:
    """The sum over all programs of a grid."""
    samples = [sorted({0, count - 1}) for count in grid]
    sampled = {point: of(point) for point in itertools.product(*samples)}
    matters = [
        any(sampled[point] != sampled[(*point[:axis], 0, *point[axis + 1 :])] for point in sampled)
        for axis in range(len(grid))
    ]
    ranges = [range(n) if m else range(1) for n, m in zip(grid, matters, strict=True)]
    alike = math.prod(n for n, m in zip(grid, matters, strict=True) if not m)
    points = itertools.product(*ranges)
    return alike * sum(sampled[p] if p in sampled else of(p) for p in points)


def main() -> None:
    """Print the least time of each usual case on each device, as lines or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("the interpreter counts: set TRITON_INTERPRET=1")
    rows = predictions()
    if asked.json:
        devices = {name: device._asdict() for name, device in DEVICES.items()}
        sys.stdout.write(json.dumps({"devices": devices, "rows": rows}))
        return
    for row in rows:
        sys.stdout.write(
            f"{row['device']} {row['name']}: {row['bytes'] / 1e6:,.1f} MB, "
            f"{row['flops'] / 1e9:,.1f} GFLOP, {1e6 * row['seconds']:,.1f} µs\n"
        )


def predictions() -> list[dict[str, Any]]:
    """Of the first usual case of each kernel in bfloat16, by device: bytes, operations, seconds.

    Not of updates, which reach tensors through tables of addresses: their launches name none.
    """
    rows = []
    known: dict[Any, Effort] = {}
    for name, device in DEVICES.items():
        with compiled_for(device.architecture):
            usual = firsts([case for case in cases() if case.usual and "bfloat16" in case.name])
        for case in usual:
            if "table" in case.launch.arguments:
                continue
            form = case.name, tuple(case.launch.constants.items()), case.launch.grid
            if form not in known:
                known[form] = effort(case.launch)
            about = known[form]
            rows.append(
                {
                    "name": case.name,
                    "device": name,
                    "architecture": device.architecture,
                    **about._asdict(),
                    "seconds": about.seconds(device, not _in_halves(case.launch)),
                }
            )
    return rows


def firsts(usual: Sequence[Case]) -> list[Case]:
    """The first case of each kernel."""
    by_kernel: dict[str, Case] = {}
    for case in usual:
        by_kernel.setdefault(kernel_of(case.name), case)
    return list(by_kernel.values())


def _in_halves(launch: Launch) -> bool:
    """Whether a launch has numbers of 16 bits."""
    types = {getattr(value, "dtype", None) for value in launch.arguments.values()}
    return bool(types & {torch.float16, torch.bfloat16})


if __name__ == "__main__":
    main()
