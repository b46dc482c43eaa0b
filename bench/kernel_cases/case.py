"""A launch that is compiled and checked, made of tensors without memory."""

import itertools
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


def kernel_of(name: str) -> str:
    """The kernel that a case is named after, which is what comes before the sizes."""
    return " ".join(itertools.takewhile(lambda word: not word[0].isdigit(), name.split()))
