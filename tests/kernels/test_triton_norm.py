"""Normalisation in Triton's interpreter, against the references: values and gradients."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from segpt.kernels.rms_norm.reference import (
    AddNorm,
    AddNormCall,
    RmsNormCall,
    add_norm_reference,
)
from segpt.kernels.rms_norm.reference import reference as rms_norm_reference
from tests.kernels.near import CLOSE, near, noise

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("shape", "eps"),
    [((3, 5), None), ((2, 7, 100), 0.5), ((1, 3, 4, 64), None), ((5, 513), 1e-6)],
)
def test_rms_norm(shape: tuple[int, ...], eps: float | None, dtype: torch.dtype) -> None:
    from segpt.kernels.rms_norm.triton import TritonRmsNorm

    x, slope = noise(*shape, dtype=dtype), noise(*shape, seed=1, dtype=dtype)
    results = []
    for norm in (rms_norm_reference, TritonRmsNorm().run):
        leaf = x.clone().requires_grad_()
        y = norm(RmsNormCall(leaf, eps))
        torch.autograd.backward(y, slope)
        results.append((y, leaf.grad))
    for expected, result in zip(*results, strict=True):
        near(result, expected, CLOSE[dtype])


def test_rms_norm_of_a_view_and_of_nothing() -> None:
    from segpt.kernels.rms_norm.triton import TritonRmsNorm

    x = noise(4, 6, 10).transpose(0, 1)[::2, :, 1:]
    near(TritonRmsNorm().run(RmsNormCall(x)), rms_norm_reference(RmsNormCall(x)), 1e-5)
    zero = torch.zeros(2, 9)
    assert torch.equal(TritonRmsNorm().run(RmsNormCall(zero)), zero)


def scale_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> float | Tensor:
    if kind == "number":
        return 0.7
    rows = () if kind == "learned" else shape[:-1]
    return (1.5 + noise(*rows, seed=5)).to(dtype)


def added(
    run: Callable[[AddNormCall], AddNorm],
    tensors: tuple[Tensor, Tensor],
    scale: float | Tensor,
    used: str = "both",
    eps: float | None = None,
) -> list[Tensor]:
    """Both results, and the gradients by the two and by the scale as far as there are any."""
    x, residual = (t.clone().requires_grad_() for t in tensors)
    leaves = [x, residual]
    if isinstance(scale, Tensor):
        scale = scale.clone().requires_grad_()
        leaves.append(scale)
    total, normed = run(AddNormCall(x, residual, scale, eps))
    slopes = [noise(*t.shape, seed=seed, dtype=t.dtype) for seed, t in ((2, total), (3, normed))]
    if used != "both":
        total, normed = (total.detach(), normed) if used == "norm" else (total, normed.detach())
    pairs = [(t, g) for t, g in zip((total, normed), slopes, strict=True) if t.requires_grad]
    outputs, by_outputs = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(outputs, leaves, by_outputs, allow_unused=True)
    some: Sequence[Tensor | None] = gradients  # none where a leaf is not used
    return [total, normed, *(g for g in some if g is not None)]


@pytest.mark.parametrize("scale", ["number", "learned", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 100), (5, 513)])
def test_add_norm(shape: tuple[int, ...], dtype: torch.dtype, scale: str) -> None:
    from segpt.kernels.rms_norm.triton import TritonAddNorm

    tensors = noise(*shape, dtype=dtype), noise(*shape, seed=1, dtype=dtype)
    factor = scale_of(scale, shape, dtype)
    backend = TritonAddNorm()
    assert backend.refusal(AddNormCall(*tensors, factor)) is None
    eps = 0.5 if len(shape) == 3 else None
    runs = backend.run, add_norm_reference
    pairs = tuple(added(run, tensors, factor, eps=eps) for run in runs)
    assert len(pairs[0]) == 4 + (scale != "number")
    for result, expected in zip(*pairs, strict=True):
        near(result, expected, 2 * CLOSE[dtype])


@pytest.mark.parametrize("used", ["norm", "total"])
@pytest.mark.parametrize("scale", ["number", "rows"])
def test_add_norm_where_one_result_is_used(used: str, scale: str) -> None:
    from segpt.kernels.rms_norm.triton import TritonAddNorm

    tensors, factor = (noise(6, 20), noise(6, 20, seed=1)), scale_of(scale, (6, 20), torch.float32)
    pairs = (added(run, tensors, factor, used) for run in (TritonAddNorm().run, add_norm_reference))
    for result, expected in zip(*pairs, strict=True):
        near(result, expected, 1e-5)


def test_add_norm_of_two_types_and_of_views() -> None:
    from segpt.kernels.rms_norm.triton import TritonAddNorm

    x = noise(4, 6, 10).transpose(0, 1)[::2, :, 1:]
    tensors = x, noise(3, 4, 9, seed=1, dtype=torch.float16)
    pairs = (added(run, tensors, 0.7) for run in (TritonAddNorm().run, add_norm_reference))
    for result, expected in zip(*pairs, strict=True):
        near(result, expected, 1e-3)


def test_what_add_norm_refuses() -> None:
    from segpt.kernels.rms_norm.triton import TritonAddNorm

    x = torch.zeros(2, 3, 4)
    for call, reason in (
        (AddNormCall(x, x[:1]), "another shape"),
        (AddNormCall(x, x, torch.ones(4)), "one for each row"),
        (AddNormCall(x, x.double()), "not torch.float64"),
        (AddNormCall(x.new_zeros(1, 1 << 15), x.new_zeros(1, 1 << 15)), "does not fit"),
    ):
        assert reason in (TritonAddNorm().refusal(call) or "")
