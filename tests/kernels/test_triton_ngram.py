"""The mixture with n-gram counts: numpy's, the reference's and Triton's in its interpreter."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt.eval import ngram
from segpt.kernels.ngram_mixture.reference import (
    NgramMixtureCall,
    NgramRowsCall,
    mixture_reference,
    rows_reference,
)
from tests.kernels.near import CLOSE

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.slow


def near(result: Tensor, expected: Tensor, within: float) -> None:
    assert result.shape == expected.shape
    result, expected = result.double(), expected.double()
    assert torch.equal(result.isfinite(), expected.isfinite())
    ends = expected.isfinite()
    most = max(float(expected[ends].abs().max()), 1e-3)
    assert float((result - expected)[ends].abs().max()) <= within * most


def seen(tables: int, targets: int, dtype: torch.dtype = torch.float64) -> NgramMixtureCall:
    """Contexts of which a third is unknown, and targets that half of the others never saw."""
    random = torch.Generator().manual_seed(tables * targets)
    total = torch.randint(1, 50, (tables, targets), generator=random).double()
    known = torch.rand(tables, targets, generator=random) > 1 / 3
    total = torch.where(known, total, 0.0)
    hits = (total * torch.rand(tables, targets, generator=random)).floor()
    hits = torch.where(torch.rand(tables, targets, generator=random) > 0.5, hits, 0.0)
    features = torch.from_numpy(
        ngram._features(total.numpy(), (total / 2).ceil().numpy(), (total % 4).numpy())
    )
    model = -12 * torch.rand(targets, generator=random).double()
    weights = 2 * torch.randn(len(features), tables, generator=random).double()
    weights[0, 0] = 30.0  # beyond what counts
    frequency = hits / total.clamp_min(1)
    model, frequency, features = (part.to(dtype) for part in (model, frequency, features))
    return NgramMixtureCall(model, frequency, features, known, weights.to(dtype))


@pytest.mark.parametrize(("tables", "targets"), [(1, 5), (6, 300)])
def test_the_reference_is_what_scoring_computes(tables: int, targets: int) -> None:
    call = seen(tables, targets)
    call.model[0] = -900.0  # too small for a float64
    arrays = [part.numpy() for part in call]
    arrays[-1] = arrays[-1][..., None]
    nats, gradients = ngram._score(*arrays)
    result = mixture_reference(call)
    assert np.allclose(result.nats.numpy(), nats, rtol=1e-12, atol=1e-14)
    assert np.allclose(result.gradients.numpy(), gradients, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("tables", "targets"), [(1, 5), (6, 300)])
def test_mixture(tables: int, targets: int, dtype: torch.dtype) -> None:
    from segpt.kernels.ngram_mixture.triton import TritonNgramMixture

    call = seen(tables, targets, dtype)
    assert TritonNgramMixture().refusal(call) is None
    assert TritonNgramMixture().refusal(seen(tables, targets)) is not None
    result, expected = TritonNgramMixture().run(call), mixture_reference(call)
    assert result.nats.dtype == result.gradients.dtype == dtype
    near(result.nats, expected.nats, CLOSE[dtype])
    near(result.gradients, expected.gradients, CLOSE[dtype])


def test_a_probability_that_float32_does_not_hold() -> None:
    from segpt.kernels.ngram_mixture.triton import TritonNgramMixture

    call = seen(4, 40, torch.float32)
    call.model[:20] = -torch.arange(20) * 60.0
    result, expected = TritonNgramMixture().run(call), mixture_reference(call)
    near(result.nats, expected.nats, 1e-6)
    near(result.gradients, expected.gradients, 1e-4)


@pytest.mark.parametrize("dtype", CLOSE)
def test_rows(dtype: torch.dtype) -> None:
    from segpt.kernels.ngram_mixture.triton import TritonNgramRows

    random = torch.Generator().manual_seed(0)
    model = torch.log_softmax(4 * torch.randn(3, 1100, generator=random), 1)
    counts = torch.rand(3, 1100, generator=random) * (torch.rand(3, 1100, generator=random) > 0.9)
    kept = torch.tensor([0.9, 0.2, 1.0])
    counted = counts / counts.sum(1, keepdim=True) * (1 - kept)[:, None]
    call = NgramRowsCall(model.to(dtype), kept.to(dtype), counted.to(dtype))
    result = TritonNgramRows().run(call)
    near(result, rows_reference(call), CLOSE[dtype])
    if dtype == torch.float32:
        assert torch.allclose(result.exp().sum(1), torch.ones(3), atol=1e-5)
        ours = ngram._joined(model[1].double().numpy(), float(kept[1]), counted[1].double().numpy())
        assert np.allclose(result[1].numpy(), ours, atol=2e-5)
    assert math.isclose(float(result[2, 0]), float(model[2, 0]), rel_tol=CLOSE[dtype])
