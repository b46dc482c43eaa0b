"""Triton kernels in Triton's interpreter, against the references: values and gradients.

The interpreter runs on a CPU and is right for float32 and float16, not for bfloat16. Shapes are
such that no tile divides them.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.kernels.attention.reference import AttentionCall
from segpt.kernels.attention.reference import reference as attention_reference
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall
from segpt.kernels.newton_schulz.reference import reference as newton_schulz_reference

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

CLOSE = {torch.float32: 1e-5, torch.float16: 3e-3}
QUINTIC = (3.4445, -4.7750, 2.0315)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(result: Tensor, expected: Tensor, within: float) -> None:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    result, expected = result.detach().float(), expected.detach().float()
    most = max(float(expected.abs().max()), 1.0)  # what should be zero may be a rounding error
    assert float((result - expected).abs().max()) <= within * most


@pytest.mark.parametrize("shape", [(2, 10, 33), (1, 70, 70), (3, 64, 130), (1, 1, 5)])
def test_newton_schulz(shape: tuple[int, ...]) -> None:
    from segpt.kernels.newton_schulz.triton import TritonNewtonSchulz

    x = noise(*shape)
    call = NewtonSchulzCall(x / torch.linalg.matrix_norm(x, keepdim=True), (QUINTIC,) * 2)
    near(TritonNewtonSchulz().run(call), newton_schulz_reference(call), 1e-5)


def test_newton_schulz_of_half_precision() -> None:
    from segpt.kernels.newton_schulz.triton import TritonNewtonSchulz

    x = noise(2, 70, 90)
    x = x / torch.linalg.matrix_norm(x, keepdim=True)
    expected = newton_schulz_reference(NewtonSchulzCall(x, (QUINTIC,) * 2))
    result = TritonNewtonSchulz().run(NewtonSchulzCall(x.half(), (QUINTIC,) * 2))
    near(result.float(), expected, 1e-2)


ATTENTION: dict[str, dict[str, Any]] = {
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
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention(name: str, dtype: torch.dtype) -> None:
    from segpt.kernels.attention.triton import TritonAttention

    about = {"batch": 1, "heads": 2, "kv_heads": 2, "channels": 16, **ATTENTION[name]}
    of_keys = about["batch"], about["keys"], about["kv_heads"], about["channels"]
    of_queries = about["batch"], about["queries"], about["heads"], about["channels"]
    leaves = [noise(*of_queries, dtype=dtype)]
    leaves += [noise(*of_keys, seed=seed, dtype=dtype) for seed in (1, 2)]
    slope, documents = noise(*of_queries, seed=3, dtype=dtype), None
    if "starts" in about:
        documents = torch.zeros(*of_keys[:2], dtype=torch.int64)
        for row in range(about["batch"]):
            documents[row, [start + row for start in about["starts"]]] = 1
        documents = documents.cumsum(1)
    results = []
    for attend in (attention_reference, TritonAttention().run):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        q, k, v = inputs
        call = AttentionCall(q, k, v, about.get("window"), documents, about.get("scale"))
        y = attend(call)
        torch.autograd.backward(y, slope)
        results.append([y, *(leaf.grad for leaf in inputs)])
    for expected, result in zip(*results, strict=True):
        assert expected is not None
        assert result is not None
        near(result, expected, CLOSE[dtype])
