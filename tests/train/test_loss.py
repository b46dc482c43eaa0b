"""The loss of a batch: its gradients are those of whole logits, and it never holds them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segpt.config.caps import Algebraic, Asymmetric, Sigmoid
from segpt.config.model import ModelSpec
from segpt.config.train import Scaling
from segpt.kernels import onednn
from segpt.kernels.cross_entropy import TOKEN_LOSS, Loss, LossCall, capped
from segpt.model.build import build
from segpt.model.head import Head
from segpt.model.model import Model
from segpt.model.params import LowRankProduct, Table
from segpt.model.scaling import initialise
from segpt.train.loss import token_loss


class ShiftedHead(Head):
    """A head that learns more than a weight."""

    def __init__(self, head: Head, vocab: int) -> None:
        super().__init__(head.softcap, head.matrix)
        self.offset = nn.Parameter(torch.linspace(-1, 1, vocab))

    def forward(self, x: Tensor, table: Table) -> Tensor:
        return super().forward(x, table) + self.offset


def is_fused(model: Model) -> bool:
    """Whether the loss of this head is computed without the head being called."""
    x, targets = torch.zeros(1, model.spec.width), torch.zeros(1, dtype=torch.int64)
    call = LossCall(x, model.readout(), targets, torch.ones(1), 0.0)
    return TOKEN_LOSS.refusals(call)["torch"] is None


def made(spec: ModelSpec, softcap: float | None = 30.0, *, tied: bool = True) -> Model:
    head = dataclasses.replace(spec.head, softcap=softcap, tied=tied)
    model = build(dataclasses.replace(spec, head=head))
    initialise(model, Scaling(table=1.0), 0)
    return model


def stream(spec: ModelSpec, rows: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, spec.context, spec.width, generator=generator)
    return x.to(dtype).requires_grad_()


def wanted_tokens(spec: ModelSpec, rows: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(spec.vocab, (rows, spec.context), generator=generator)


def whole(model: Model, x: Tensor, targets: Tensor, c: float, counted: Tensor | None) -> Tensor:
    """The same by its definition, from all logits at once in float64."""
    logits = model.logits(x).double()
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    every = nats + c * logits.logsumexp(-1).flatten().square()
    return every.mean() if counted is None else every[counted.flatten()].mean()


def gradients(total: Tensor, model: Model, x: Tensor) -> list[Tensor]:
    learned = [x, *model.head.parameters(), model.table.weight]
    total = 3 * total  # not only a gradient of 1
    found: Sequence[Tensor | None] = torch.autograd.grad(total, learned, allow_unused=True)
    return [g for g in found if g is not None]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segpt.kernels.cross_entropy.torch.LOGITS", {"cpu": 500, "other": 500})


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0, 30.0, 400.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_those_of_whole_logits(
    spec: ModelSpec, softcap: float | None, z_loss: float, *, fast: bool, tied: bool, masked: bool
) -> None:
    model = made(spec, softcap, tied=tied)
    if not fast:
        model.head = ShiftedHead(model.head, spec.vocab)
    assert is_fused(model) == (fast and softcap != 400.0)
    check_gradients(model, spec, z_loss, masked=masked)


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize(
    ("changes", "fast"),
    [
        ({"scale": 0.3}, True),
        ({"gain": True}, True),
        ({"tied": False, "multiple": 64}, True),
        ({"tied": False, "zero": True}, True),
        ({"softcap": Sigmoid(cap=30.0, divisor=7.5)}, False),
        ({"softcap": Algebraic(cap=15.0)}, False),
        ({"softcap": Asymmetric()}, False),
    ],
)
def test_every_head(
    spec: ModelSpec, softcap: float | None, changes: dict[str, Any], *, fast: bool
) -> None:
    head = dataclasses.replace(spec.head, **{"softcap": softcap} | changes)
    model = build(dataclasses.replace(spec, head=head))
    initialise(model, Scaling(table=1.0), 0)
    assert is_fused(model) == fast
    check_gradients(model, spec, 0.01)


@pytest.mark.parametrize(
    "softcap", [None, 30.0, Sigmoid(cap=30.0, divisor=7.5), Algebraic(cap=15.0), Asymmetric()]
)
def test_every_cap_is_numbers(
    spec: ModelSpec, softcap: float | Sigmoid | Algebraic | Asymmetric | None
) -> None:
    head = dataclasses.replace(spec.head, softcap=softcap, scale=0.5)
    model = build(dataclasses.replace(spec, head=head))
    initialise(model, Scaling(table=1.0), 0)
    linear, x = model.readout().linear, 9 * stream(spec)
    assert linear is not None
    y = 0.5 * (model.head.normalise(x) @ linear.weight.T)
    logits = y if linear.cap is None else capped(y, linear.cap)
    torch.testing.assert_close(logits, model.head(model.head.normalise(x), model.table))
    if model.head.cap is not None:
        model.head.cap.register_forward_hook(lambda *_: None)
        assert model.readout().linear is None


def check_gradients(model: Model, spec: ModelSpec, z_loss: float, *, masked: bool = False) -> None:
    x, targets = stream(spec), wanted_tokens(spec)
    counted = targets % 3 > 0 if masked else None
    found = token_loss(model, x, targets, z_loss, counted)
    wanted = whole(model, x, targets, z_loss, counted)
    torch.testing.assert_close(found.total.double(), wanted, atol=1e-5, rtol=1e-6)
    pairs = zip(gradients(found.total, model, x), gradients(wanted, model, x), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_smoothing_is_descended_and_not_reported(spec: ModelSpec, *, fast: bool) -> None:
    model = made(spec)
    if not fast:
        model.head = ShiftedHead(model.head, spec.vocab)
    x, targets = stream(spec), wanted_tokens(spec)
    smoothed = token_loss(model, x, targets, 0.01, smoothing=0.2)
    logits = model.logits(x).double().flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), label_smoothing=0.2)
    expected = expected + 0.01 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(smoothed.total.double(), expected, atol=1e-5, rtol=1e-6)
    pairs = zip(gradients(smoothed.total, model, x), gradients(expected, model, x), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    plain = token_loss(model, x, targets, 0.01)
    assert torch.equal(smoothed.nats, plain.nats)
    assert torch.equal(smoothed.z, plain.z)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("coefficient", [1e-4, 1e-2])
def test_the_coefficient_of_z_is_the_one_that_is_stated(
    spec: ModelSpec, coefficient: float, *, fast: bool
) -> None:
    # a coefficient times itself, or one whose gradient is lost on the way
    model = made(spec)
    if not fast:
        model.head = ShiftedHead(model.head, spec.vocab)
    x, targets = stream(spec), wanted_tokens(spec)
    plain, more = (token_loss(model, x, targets, c) for c in (0.0, coefficient))
    of_plain, of_more = (gradients(loss.total, model, x) for loss in (plain, more))
    log_z = model.logits(x).double().logsumexp(-1)
    squared = float(log_z.detach().square().mean())
    alone = gradients(log_z.square().mean(), model, x)
    for before, after, z in zip(of_plain, of_more, alone, strict=True):
        effective = float(((after - before).double() * z).sum() / z.double().square().sum())
        assert effective == pytest.approx(coefficient, rel=0.02)
    # and the cross-entropy is reported without it
    assert float(more.nats) == pytest.approx(float(plain.nats), rel=1e-6)
    assert float(more.z) == pytest.approx(coefficient * squared, rel=1e-4)
    assert float(more.total.detach()) == pytest.approx(float(more.nats + more.z), rel=1e-6)


def test_the_gradient_for_logits_is_that_of_the_definition(spec: ModelSpec) -> None:
    # (1 + 2 c log Z) p - onehot, through an identity as the head
    width = spec.width
    model = build(
        dataclasses.replace(spec, vocab=width, head=dataclasses.replace(spec.head, softcap=None))
    )
    initialise(model, Scaling(), 0)
    with torch.no_grad():
        model.table.weight.copy_(torch.eye(width))
    x, targets, c = stream(spec), wanted_tokens(spec) % width, 0.05
    (found,) = torch.autograd.grad(token_loss(model, x, targets, c).total, x)
    log_z = x.logsumexp(-1, keepdim=True)
    wanted = (1 + 2 * c * log_z) * x.softmax(-1) - F.one_hot(targets, width)
    torch.testing.assert_close(found, wanted / targets.numel(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("fast", [True, False])
def test_the_loss_is_float32_whatever_the_stream_is(spec: ModelSpec, *, fast: bool) -> None:
    # a loss in bfloat16 has two or three digits
    model = made(spec)
    if not fast:
        model.head = ShiftedHead(model.head, spec.vocab)
    x, targets = stream(spec, dtype=torch.bfloat16), wanted_tokens(spec)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_loss(model, x, targets, 1e-4)
    assert {part.dtype for part in found} == {torch.float32}
    wanted = whole(model, x, targets, 1e-4, None)  # from the same rounded logits
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    mine, theirs = gradients(found.total, model, x), gradients(wanted, model, x)
    assert [g.dtype for g in mine] == [g.dtype for g in theirs]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            a.float(), b.float(), atol=2e-3 * float(b.abs().max()), rtol=0.02
        )


def rounded(weight: Tensor) -> Tensor:
    """Straight through: what is used differs from what learns."""
    return weight + (weight.round(decimals=1) - weight).detach()


@pytest.mark.parametrize("tied", [True, False])
def test_a_transform_is_what_is_used_and_its_weight_what_learns(
    spec: ModelSpec, *, tied: bool
) -> None:
    model = made(spec, tied=tied)
    leaf: Any = model.table if tied else model.head.matrix
    leaf.weight_transform = lambda weight: 2 * rounded(weight)
    x, targets = stream(spec), wanted_tokens(spec)
    assert is_fused(model)
    found = token_loss(model, x, targets)
    wanted = whole(model, x, targets, 0.0, None)
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    pairs = zip(gradients(found.total, model, x), gradients(wanted, model, x), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_what_is_no_single_weight_takes_the_general_way(spec: ModelSpec) -> None:
    model = made(spec)
    down, up = torch.randn(72, 2, spec.width), torch.randn(72, spec.vocab, 2)
    model.table.product = LowRankProduct(lambda: (down[:1], up[:1]))
    assert not is_fused(model)
    hooked = made(spec)
    hooked.head.register_forward_hook(lambda *_: None)
    assert not is_fused(hooked)


def test_without_gradients_only_the_loss_is_made(spec: ModelSpec) -> None:
    model, x, targets = made(spec), stream(spec), wanted_tokens(spec)
    with torch.no_grad():
        found = token_loss(model, x, targets)
    assert not any(part.requires_grad for part in found)
    assert float(found.nats.detach()) == pytest.approx(
        float(whole(model, x, targets, 0.0, None).detach()), rel=1e-6
    )


def test_probabilities_below_what_float32_holds(spec: ModelSpec) -> None:
    # exp(-200) is 0 in float32, and its logarithm is not -200
    for softcap in (None, 400.0):
        model = made(spec, softcap)
        with torch.no_grad():
            model.table.weight.mul_(50)
        x, targets = stream(spec), wanted_tokens(spec)
        found = token_loss(model, x, targets)
        assert float(found.nats.detach()) == pytest.approx(
            float(whole(model, x, targets, 0.0, None).detach()), rel=1e-5
        )
        assert math.isfinite(float(found.nats.detach()))


@pytest.mark.skipif(not onednn.available(), reason="needs oneDNN on x86")
def test_products_by_onednn(spec: ModelSpec) -> None:
    model, x, targets = made(spec), stream(spec), wanted_tokens(spec)
    with onednn.wanted():
        found = token_loss(model, x, targets, 0.01)
    wanted = token_loss(model, x, targets, 0.01)
    torch.testing.assert_close(found.total, wanted.total)
    pairs = zip(gradients(found.total, model, x), gradients(wanted.total, model, x), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_few_logits_are_held(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    # all of them, several times over, is what limits a batch where the vocabulary is large
    sizes: list[int] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            found = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (found,) if isinstance(t, Tensor))
            return found

    model, x, targets = made(spec), stream(spec, rows=64), wanted_tokens(spec, rows=64)
    with Watch():  # type: ignore[no-untyped-call]
        loss: Loss = token_loss(model, x, targets, 1e-4)
        loss.total.backward()  # type: ignore[no-untyped-call]
    assert max(sizes) <= x.numel()
