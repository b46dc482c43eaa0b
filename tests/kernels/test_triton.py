"""Triton kernels in Triton's interpreter, against the references: values and gradients.

The interpreter runs on a CPU and is right for float32 and float16, not for bfloat16. Shapes are
such that no tile divides them.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from segpt.kernels.cross_entropy.reference import (
    LinearHead,
    LossCall,
    NatsCall,
    Readout,
    loss_reference,
    nats_reference,
)
from segpt.kernels.rms_norm.reference import RmsNormCall
from segpt.kernels.rms_norm.reference import reference as rms_norm_reference

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow

CLOSE = {torch.float32: 1e-5, torch.float16: 3e-3}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(result: Tensor, expected: Tensor, within: float) -> None:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    result, expected = result.detach().float(), expected.detach().float()
    most = max(float(expected.abs().max()), 1.0)  # what should be zero may be a rounding error
    assert float((result - expected).abs().max()) <= within * most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 100), (1, 3, 4, 64), (5, 513)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from segpt.kernels.rms_norm.triton import TritonRmsNorm

    x, slope = noise(*shape, dtype=dtype), noise(*shape, seed=1, dtype=dtype)
    results = []
    for norm in (rms_norm_reference, TritonRmsNorm().run):
        leaf = x.clone().requires_grad_()
        y = norm(RmsNormCall(leaf))
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


def head(weight: Tensor, scale: float, softcap: float | None) -> Readout:
    def logits(x: Tensor) -> Tensor:
        y = scale * (x @ weight.to(x.dtype).T).float()
        return y if softcap is None else softcap * torch.tanh(y / softcap)

    return Readout(logits, len(weight), LinearHead(weight, scale, softcap))


def descended(loss: Any, hidden: Tensor, weight: Tensor, **about: Any) -> tuple[Tensor, ...]:
    """The three numbers of a loss, and its gradients."""
    x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    readout = head(w, about["scale"], about["softcap"])
    call = LossCall(x, readout, about["targets"], about["share"], about["z_loss"])
    result = loss(call)
    (2.5 * result.total).backward()
    assert x.grad is not None
    assert w.grad is not None
    return (*(number.detach() for number in result), x.grad, w.grad)


@pytest.mark.parametrize(
    ("rows", "vocab", "width", "scale", "softcap", "z_loss"),
    [
        (70, 131, 40, 1.0, None, 0.0),
        (33, 300, 20, 0.5, 30.0, 1e-2),
        (130, 65, 64, 2.0, 5.0, 0.0),
        (1, 7, 3, 1.0, None, 1e-2),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_token_loss(
    rows: int,
    vocab: int,
    width: int,
    scale: float,
    softcap: float | None,
    z_loss: float,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from segpt.kernels.cross_entropy import triton

    monkeypatch.setattr(triton, "SLOPES", 50 * vocab)  # so that there are several chunks of rows
    share = torch.rand(rows, generator=torch.Generator().manual_seed(3))
    share[: rows // 3] = 0  # what does not count
    about = {
        "targets": torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2)),
        "share": share / share.sum(),
        "scale": scale,
        "softcap": softcap,
        "z_loss": z_loss,
    }
    hidden, weight = noise(rows, width, dtype=dtype), 0.5 * noise(vocab, width, seed=1)
    expected = descended(loss_reference, hidden, weight, **about)
    result = descended(triton.TritonLoss().run, hidden, weight, **about)
    for one, other in zip(result, expected, strict=True):
        near(one, other, 2 * CLOSE[dtype])


@pytest.mark.parametrize("softcap", [None, 7.0])
def test_token_nats(softcap: float | None) -> None:
    from segpt.kernels.cross_entropy.triton import TritonNats

    hidden, weight = noise(3, 50, 24), noise(200, 24, seed=1)
    targets = torch.randint(200, (3, 50), generator=torch.Generator().manual_seed(2))
    call = NatsCall(hidden, head(weight, 1.0, softcap), targets)
    near(TritonNats().run(call), nats_reference(call), 1e-5)
