"""Batches on their way from the host to the device, one step ahead of the step that runs."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Copier(Protocol):
    """Copies to a device, beside what is computed there."""

    def start(self, array: NDArray[np.int64]) -> Tensor:
        """Begin to copy (rows, columns); the tensor of this shape may not be read yet."""

    def finish(self, tensor: Tensor) -> None:
        """Let what is computed from now on wait for the copy of a tensor of any shape."""


class CudaCopier:
    """Copies from pinned memory, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, array: NDArray[np.int64]) -> Tensor:
        """Begin to copy (rows, columns) from memory that the GPU reads by itself."""
        pinned = torch.from_numpy(array).pin_memory()  # kept until the copy is over
        with torch.cuda.stream(self.stream):
            return pinned.to(self.device, non_blocking=True)

    def finish(self, tensor: Tensor) -> None:
        """Let the current stream wait for the copy of a tensor of any shape."""
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self.stream)
        tensor.record_stream(now)  # its memory is free only when this stream is done with it


def copier_to(device: torch.device) -> Copier | None:
    """What copies to a device; None for a CPU, where nothing has to be copied."""
    return CudaCopier(device) if device.type == "cuda" else None


class Transfer:
    """Takes micro-batches to a device; those that were sent ahead are there already."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copier: Copier | None = None
        self._batch: NDArray[np.int64] | None = None
        self._sent: dict[int, Tensor] = {}

    @property
    def copier(self) -> Copier | None:
        """What copies; its stream is made when it is first asked for."""
        if self._copier is None:
            self._copier = copier_to(self.device)
        return self._copier

    def send(self, batch: NDArray[np.int64], parts: Sequence[slice]) -> None:
        """Begin to copy these rows of a batch (sequences, context + 1), which comes next."""
        if self.copier is not None:
            self._batch = batch
            self._sent = {rows.start: self.copier.start(batch[rows]) for rows in parts}

    def take(self, batch: NDArray[np.int64], rows: slice) -> Tensor:
        """Some rows of a batch (sequences, context + 1) on the device, each once."""
        if self.copier is None:
            return torch.from_numpy(batch[rows]).to(self.device, non_blocking=True)
        sent = self._sent.pop(rows.start, None) if batch is self._batch else None
        tensor = self.copier.start(batch[rows]) if sent is None else sent
        self.copier.finish(tensor)
        return tensor
