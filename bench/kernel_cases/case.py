"""A launch that is compiled and checked, made of tensors without memory."""

from typing import NamedTuple

import torch
from torch import Tensor

from segpt.kernels.launch import Launch

BF16, FP16, FP32 = TYPES = (torch.bfloat16, torch.float16, torch.float32)


class Case(NamedTuple):
    """A launch with a name, unique among all; the ``usual`` ones stand for the others in tests."""

    name: str
    launch: Launch
    usual: bool


def meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
