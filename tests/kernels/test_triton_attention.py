"""Attention in Triton's interpreter, against the reference: values and gradients.

Shapes are such that no tile divides them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.kernels.attention.reference import AttentionCall, reference

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

CLOSE = {torch.float32: 1e-5, torch.float16: 3e-3}
Attend = Callable[[AttentionCall], Tensor]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number or to 1."""
    assert result.shape == expected.shape
    result, expected = result.detach().double(), expected.detach().double()
    most = max(float(expected.abs().max()), 1.0)  # what should be zero may be a rounding error
    return float((result - expected).abs().max()) / most


CASES: dict[str, dict[str, Any]] = {
    "plain": {"queries": 37, "keys": 37},
    "grouped": {"queries": 70, "keys": 70, "heads": 4, "kv_heads": 2, "channels": 24},
    "cached": {"queries": 5, "keys": 77, "heads": 2, "kv_heads": 1},
    "windowed": {"queries": 100, "keys": 100, "window": 9},
    "windowed and cached": {"queries": 40, "keys": 130, "window": 33, "scale": 0.3},
    "documents": {"queries": 90, "keys": 90, "starts": (1, 30, 31, 70), "batch": 2},
    "documents, cached and windowed": {
        "queries": 50, "keys": 90, "starts": (35, 36, 80), "window": 20, "heads": 6, "kv_heads": 2
    },
    "a window of one": {"queries": 20, "keys": 20, "window": 1},
    "32 channels": {"queries": 45, "keys": 77, "channels": 32, "window": 40},
    "48 channels": {"queries": 45, "keys": 45, "channels": 48, "heads": 3, "kv_heads": 1},
    "64 channels": {"queries": 37, "keys": 70, "channels": 64, "starts": (5, 50)},
    "128 channels": {"queries": 35, "keys": 40, "channels": 128, "kv_heads": 1, "window": 30},
}  # fmt: skip


def inputs(name: str, dtype: torch.dtype) -> tuple[AttentionCall, Tensor]:
    """A call of a case, and the gradient by its result."""
    about = {"batch": 1, "heads": 2, "kv_heads": 2, "channels": 16, **CASES[name]}
    of_keys = about["batch"], about["keys"], about["kv_heads"], about["channels"]
    of_queries = about["batch"], about["queries"], about["heads"], about["channels"]
    documents = None
    if "starts" in about:
        documents = torch.zeros(*of_keys[:2], dtype=torch.int64)
        for row in range(about["batch"]):
            documents[row, [start + row for start in about["starts"]]] = 1
        documents = documents.cumsum(1)
    k, v = (noise(*of_keys, seed=seed, dtype=dtype) for seed in (1, 2))
    call = AttentionCall(
        noise(*of_queries, dtype=dtype), k, v, about.get("window"), documents, about.get("scale")
    )
    return call, noise(*of_queries, seed=3, dtype=dtype)


def descended(attend: Attend, call: AttentionCall, slope: Tensor) -> list[Tensor]:
    """The result, and the gradients by queries, keys and values."""
    leaves = [t.clone().requires_grad_() for t in call[:3]]
    y = attend(AttentionCall(*leaves, *call[3:]))
    return [y, *torch.autograd.grad(y, leaves, slope)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parity(name: str, dtype: torch.dtype) -> None:
    from segpt.kernels.attention.triton import TritonAttention

    call, slope = inputs(name, dtype)
    expected = descended(reference, call, slope)
    for mine, theirs in zip(descended(TritonAttention().run, call, slope), expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert error(mine, theirs) <= CLOSE[dtype]
