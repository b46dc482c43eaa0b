"""oneDNN runs where it is asked for, and nowhere else."""

import pytest
import torch
from torch import Tensor

from segpt import kernels
from segpt.kernels import onednn
from segpt.kernels.newton_schulz.onednn import OneDnnNewtonSchulz
from segpt.kernels.newton_schulz.reference import NewtonSchulzCall

pytestmark = pytest.mark.skipif(not onednn.available(), reason="needs oneDNN on x86")

QUINTIC = (3.4445, -4.7750, 2.0315)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scores_do_not_meet_it() -> None:
    # its rounding would change every score, and with it what a decoder must repeat
    x, weight = noise(256, 64, seed=0), noise(128, 64, seed=1)
    exact = torch.nn.functional.linear(x, weight)
    assert torch.equal(kernels.linear(x, weight), exact)
    with onednn.wanted():
        node = kernels.linear(x.requires_grad_(), weight).grad_fn
    assert node is not None
    assert node.name() == "_LinearBackward"
    assert torch.equal(kernels.linear(x, weight), exact)


def test_an_error_ends_the_wish() -> None:
    with pytest.raises(ZeroDivisionError), onednn.wanted():
        raise ZeroDivisionError
    assert onednn.refusal(noise(2, 2, seed=0)) is not None


@pytest.mark.parametrize("x", [noise(256, 64, seed=0).bfloat16(), noise(4, 64, seed=0)])
def test_other_types_and_small_products_go_the_usual_way(x: Tensor) -> None:
    weight = noise(128, 64, seed=1).to(x)
    with onednn.wanted():
        found = kernels.linear(x, weight)
    assert torch.equal(found, torch.nn.functional.linear(x, weight))


def test_autocast_decides_the_type() -> None:
    x, weight = noise(256, 64, seed=0), noise(128, 64, seed=1)
    with onednn.wanted(), torch.autocast("cpu", torch.bfloat16):
        assert kernels.linear(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 128, 128), (2, 96, 200)])
def test_newton_schulz(shape: tuple[int, int, int]) -> None:
    x = noise(*shape, seed=0)
    x = x / torch.linalg.matrix_norm(x, keepdim=True)
    with onednn.wanted():
        backend = OneDnnNewtonSchulz()
        call = NewtonSchulzCall(x, (QUINTIC,) * 2)
        assert backend.refusal(call) is None
        reason = backend.refusal(NewtonSchulzCall(x.clone().requires_grad_(), (QUINTIC,)))
        assert reason == "it has no gradients"
        result = backend.run(call)
    wanted = kernels.OPS["newton_schulz"].reference(call)
    torch.testing.assert_close(result, wanted, atol=2e-6, rtol=0)


def test_only_the_gradients_that_are_needed() -> None:
    x, weight = noise(2, 128, 64, seed=0), noise(128, 64, seed=1)
    with onednn.wanted():
        for needed, other in ((x, weight), (weight, x)):
            needed.requires_grad_()
            torch.autograd.backward(kernels.linear(x, weight).sum())
            assert needed.grad is not None
            assert other.grad is None
            needed.requires_grad_(False).grad = None
