"""The quality report against direct computation."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from segpt.errors import CheckpointError, DataError
from segpt.model.model import Model
from segpt.quant import quality
from segpt.quant.quality import compare

MakeModel = Callable[..., Model]
SIZES = np.arange(64) % 5
BLOCKS = [np.random.default_rng(i).integers(0, 64, (2, 17)) for i in range(3)]


def disturbed(model: Model, noise: float) -> Model:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=noise)
    return other


def test_matches_direct_computation(tiny: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "POSITIONS", 7)  # chunks that do not divide a block
    before = tiny()
    after = disturbed(before, 0.05)
    found = compare(before, after, BLOCKS, SIZES)

    tokens = torch.from_numpy(np.concatenate(BLOCKS))
    targets = tokens[:, 1:].flatten()
    with torch.no_grad():
        p, q = (m(tokens[:, :-1]).flatten(0, 1).double().log_softmax(-1) for m in (before, after))
    rows = torch.arange(len(targets))
    divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    size = int(SIZES[targets.numpy()].sum())
    nats = -float(q[rows, targets].sum())
    assert found.tokens == 96
    assert found.bytes == size
    assert found.loss_before == pytest.approx(-float(p[rows, targets].mean()), rel=1e-6)
    assert found.loss_after == pytest.approx(nats / 96, rel=1e-6)
    assert found.bpb_after == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert found.kl_mean == pytest.approx(float(divergence.mean()), rel=1e-4)
    assert found.kl_p99 == pytest.approx(float(divergence.quantile(0.99)), rel=1e-4)
    assert found.top1_agreement == pytest.approx(
        float((p.argmax(1) == q.argmax(1)).double().mean())
    )
    assert found.kl_p99 > found.kl_mean > 0
    assert found.top1_agreement < 1


def test_a_model_agrees_with_itself(tiny: MakeModel) -> None:
    found = compare(tiny(), tiny(), BLOCKS, SIZES)
    assert found.kl_mean == found.kl_p99 == 0
    assert found.top1_agreement == 1
    assert found.bpb_before == found.bpb_after


def test_text_that_cannot_be_measured_is_refused(tiny: MakeModel) -> None:
    model = tiny()
    for blocks, sizes in (([], SIZES), (BLOCKS, np.zeros(64, int)), (BLOCKS, SIZES[:10])):
        with pytest.raises(DataError, match="held-out"):
            compare(model, model, blocks, sizes)


def test_a_diverged_model_is_refused(tiny: MakeModel) -> None:
    with pytest.raises(CheckpointError, match="finite"):
        compare(tiny(), disturbed(tiny(), math.nan), BLOCKS, SIZES)
