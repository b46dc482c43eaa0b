"""Random tensors, and how near a kernel in Triton's interpreter comes to what is expected."""

import torch
from torch import Tensor

# Of the largest number, or of 1 where that is smaller.
CLOSE = {torch.float32: 1e-5, torch.float16: 3e-3}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(result: Tensor, expected: Tensor, within: float) -> None:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    result, expected = result.detach().float(), expected.detach().float()
    most = max(float(expected.abs().max()), 1.0)  # what should be zero may be a rounding error
    assert float((result - expected).abs().max()) <= within * most
