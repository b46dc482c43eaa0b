"""Losses of few rows at a time are those of all logits at once, to the bit where scores are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segpt import kernels
from segpt.kernels import OPS
from segpt.kernels.cross_entropy import (
    AlgebraicCap,
    LinearHead,
    LogProbsCall,
    LossCall,
    NatsCall,
    Readout,
    TanhCap,
)

ROWS, WIDTH, VOCAB = 50, 12, 37


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def readout(softcap: float | None, weight: Tensor, *, linear: bool = True) -> Readout:
    def logits(x: Tensor) -> Tensor:
        y = 0.7 * (x @ weight.T)
        return y if softcap is None else softcap * torch.tanh(y / softcap)

    cap = None if softcap is None else TanhCap(softcap)
    return Readout(logits, VOCAB, LinearHead(weight, 0.7, cap) if linear else None)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpt.kernels.cross_entropy.torch.LOGITS", {"cpu": 500, "other": 500})
    monkeypatch.setattr("segpt.kernels.cross_entropy.torch.POSITIONS", 16)


def test_every_back_end_is_tried() -> None:
    names = {name: [b.name for b in op.backends] for name, op in OPS.items() if "token" in name}
    assert names == {
        "token_loss": ["triton", "torch", "checkpoint"],  # the first: test_triton_loss.py
        "token_nats": ["triton", "torch"],
        "token_log_probs": [],
    }


@pytest.mark.parametrize("backend", ["torch", "checkpoint"])
@pytest.mark.parametrize("softcap", [None, 15.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradients(
    backend: str, softcap: float | None, z_loss: float, smoothing: float
) -> None:
    targets = torch.arange(ROWS) % VOCAB
    share = torch.arange(ROWS).remainder(3).float()
    about = targets, share / share.sum(), z_loss, smoothing
    results = []
    for name in ("reference", backend):
        x = noise(ROWS, WIDTH, seed=0).requires_grad_()
        weight = noise(VOCAB, WIDTH, seed=1).requires_grad_()
        with kernels.use(token_loss=name):
            loss = kernels.token_loss(x, readout(softcap, weight), *about)
        results.append([*loss, *torch.autograd.grad(3 * loss.total, [x, weight])])
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-5)


def test_smoothing_is_its_definition_and_leaves_what_is_reported() -> None:
    x, weight = noise(ROWS, WIDTH, seed=0), noise(VOCAB, WIDTH, seed=1)
    head, targets = readout(15.0, weight), torch.arange(ROWS) % VOCAB
    share = torch.full((ROWS,), 1 / ROWS)
    expected = F.cross_entropy(head.logits(x), targets, label_smoothing=0.2)
    plain, smoothed = (kernels.token_loss(x, head, targets, share, 0.0, e) for e in (0.0, 0.2))
    torch.testing.assert_close(smoothed.total, expected)
    assert torch.equal(smoothed.nats, plain.nats)
    assert torch.equal(smoothed.z, plain.z)


def test_reasons_against_the_fused_loss() -> None:
    weight = noise(VOCAB, WIDTH, seed=1)

    def reason(head: Readout) -> str | None:
        call = LossCall(noise(2, WIDTH, seed=0), head, torch.tensor([1, 2]), torch.ones(2) / 2, 0.0)
        return OPS["token_loss"].refusals(call)["torch"]

    assert reason(readout(15.0, weight)) is None
    assert reason(readout(400.0, weight)) == "a soft cap above 40 loses probabilities"
    other = Readout(torch.sigmoid, VOCAB, LinearHead(weight, 1.0, AlgebraicCap(9.0)))
    assert reason(other) == "the head is capped by another function than tanh"
    assert "no plain product" in (reason(readout(15.0, weight, linear=False)) or "")


def test_nats_are_those_of_cross_entropy_bit_for_bit() -> None:
    x, head = noise(ROWS, WIDTH, seed=0), readout(15.0, noise(VOCAB, WIDTH, seed=1))
    targets = torch.arange(ROWS) % VOCAB
    nats = kernels.token_nats(x, head, targets)
    for start in range(0, ROWS, 16):  # products of as many rows, as they round by their number
        rows = slice(start, start + 16)
        wanted = F.cross_entropy(head.logits(x[rows]), targets[rows], reduction="none")
        assert torch.equal(nats[rows], wanted)
    call = NatsCall(x.view(2, 25, WIDTH), head, targets.view(2, 25))
    assert OPS["token_nats"].refusals(call)["torch"] is not None
    assert kernels.token_nats(*call).shape == (2, 25)


def test_log_probabilities_of_some_rows() -> None:
    x, head = noise(2, 25, WIDTH, seed=0), readout(None, noise(VOCAB, WIDTH, seed=1))
    picked = torch.tensor([i for i in range(50) if i % 4])
    targets = torch.arange(len(picked)) % VOCAB
    probed = torch.tensor([5, 17])
    log_probs = kernels.token_log_probs(x, head, picked, targets, probed)
    logs = head.logits(x).flatten(0, 1)[picked].log_softmax(-1)
    torch.testing.assert_close(log_probs.nats, -logs.gather(1, targets[:, None])[:, 0])
    assert log_probs.rows is not None
    torch.testing.assert_close(log_probs.rows, logs[probed])
    every = OPS["token_log_probs"](LogProbsCall(x, head, None, torch.arange(50) % VOCAB, None))
    assert every.nats.shape == (50,)
    assert every.rows is None
