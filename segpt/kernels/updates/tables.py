"""Tables of addresses and sizes on a device, by which one launch reaches many tensors.

A table is made of whole numbers alone and kept by them: as long as tensors stay where they are,
nothing is copied to the device, and when one moves, another table is made.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from segpt.kernels.launch import ALIGNED

_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(tensors: Sequence[Tensor]) -> str | None:
    """Why tensors of any shape cannot be reached by their addresses, or None if they can."""
    device = tensors[0].device
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"it takes plain tensors, not a {type(tensor).__name__}"
        if tensor.device != device:
            return f"its tensors lie on {device} and {tensor.device}"
        if not tensor.is_contiguous():
            return f"a tensor of shape {tuple(tensor.shape)} is not contiguous"
        if tensor.dtype not in _TYPES:
            return f"it takes float32, float16 and bfloat16, not {tensor.dtype}"
    return None


def address(tensor: Tensor | None) -> int:
    """Where the memory of a tensor of any shape begins; 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def aligned(*addresses: int) -> bool:
    """Whether several numbers may be read at once from each address."""
    return not any(place % ALIGNED for place in addresses)


@lru_cache(maxsize=512)
def table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Whole numbers on a device, (rows, columns) int64."""
    return _on(torch.tensor(rows, dtype=torch.int64), device)


@lru_cache(maxsize=128)
def owners(programs: tuple[int, ...], device: torch.device) -> Tensor:
    """The row that each program works on, (programs,) int32, if row i has ``programs[i]``."""
    counts = torch.tensor(programs, dtype=torch.int64)
    rows = torch.arange(len(programs), dtype=torch.int32)
    return _on(rows.repeat_interleave(counts), device)


def _on(values: Tensor, device: torch.device) -> Tensor:
    """Without waiting for what the device does."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
