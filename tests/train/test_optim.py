"""Muon against torch's, and against what the published script does instead."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from segpt.kernels import orthogonalise
from segpt.model.build import build
from segpt.model.leaves import weights
from segpt.model.scaling import initialise
from segpt.spec.layout import Role
from segpt.spec.model import ModelSpec
from segpt.spec.train import Adam, Muon, Optimizer, Scaling
from segpt.train.optim import CLASSIC, Optimizers, direction, muon_step, shape_factor

PLAIN = Muon(equilibrate="none", coefficients="classic", momentum_warmup=0.0)


def parameters(*shapes: tuple[int, int], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape in shapes:
        parameter = nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator)
        found.append(parameter)
    return found


def step(spec: Muon, many: list[nn.Parameter], rate: float = 0.1, momentum: float = 0.95) -> None:
    momenta = [torch.zeros_like(p) for p in many]
    muon_step(spec, list(many), momenta, rate, momentum)


@pytest.mark.parametrize("shape", [(48, 48), (64, 32), (32, 64)])
@pytest.mark.parametrize(
    ("scale", "adjust"), [("spectral", "original"), ("rms", "match_rms_adamw")]
)
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_torch_muon(shape: tuple[int, int], scale: str, adjust: str, nesterov: bool) -> None:
    spec = PLAIN.__class__(
        equilibrate="none",
        coefficients="classic",
        scale=scale,  # type: ignore[arg-type]
        nesterov=nesterov,
        rate=0.1,
        decay=0.2,
    )
    ours, theirs = parameters(shape), parameters(shape)
    reference = torch.optim.Muon(
        theirs, lr=0.1, weight_decay=0.2, momentum=0.95, nesterov=nesterov, adjust_lr_fn=adjust
    )
    momenta = [torch.zeros_like(p) for p in ours]
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        grad = torch.randn(shape, generator=generator)
        for parameter in (*ours, *theirs):
            parameter.grad = grad.clone()
        before = ours[0].detach().clone()
        muon_step(spec, list(ours), momenta, 0.1, 0.95)
        reference.step()  # type: ignore[no-untyped-call]
        moved = (ours[0] - before).norm()
        # theirs iterates in bfloat16, ours in float32 on a CPU
        assert (ours[0] - theirs[0]).norm() < 0.02 * moved
        with torch.no_grad():
            theirs[0].copy_(ours[0])


@pytest.mark.parametrize("coefficients", ["classic", "polar"])
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_update_is_nearly_orthogonal(coefficients: str, shape: tuple[int, int]) -> None:
    update = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    spec = Muon(coefficients=coefficients)  # type: ignore[arg-type]
    values = torch.linalg.svdvals(direction(spec, update))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_stacked_matrices_equal_single_ones() -> None:
    many = parameters((16, 24), (16, 24), (16, 24))
    step(Muon(), many)
    for i, alone in enumerate(parameters((16, 24), (16, 24), (16, 24))):
        step(Muon(), [alone])
        assert torch.allclose(many[i], alone, atol=1e-6)


def test_decay_is_decoupled() -> None:
    # decay added to the gradient turns the direction into that of the weights
    (plain,), (decayed,) = parameters((32, 32)), parameters((32, 32))
    for parameter in (plain, decayed):
        assert parameter.grad is not None
        parameter.grad *= 1e-3  # gradients are tiny next to the weights
    start = plain.detach().clone()
    step(Muon(decay=0.0), [plain])
    step(Muon(decay=0.5), [decayed])
    difference = (decayed - plain).detach()
    assert torch.allclose(difference, -0.1 * 0.5 * start, atol=1e-6)


def test_rows_are_equilibrated() -> None:
    # "MuonEq-R" without any row equilibration: scaling rows would change the update
    (even,), (uneven,) = parameters((32, 48)), parameters((32, 48))
    with torch.no_grad():
        uneven.copy_(even)
    assert even.grad is not None
    scales = torch.logspace(-3, 3, 32)[:, None]
    uneven.grad = even.grad * scales
    step(Muon(equilibrate="row"), [even], momentum=0.0)
    step(Muon(equilibrate="row"), [uneven], momentum=0.0)
    assert torch.allclose(even, uneven, atol=1e-5)
    (control,) = parameters((32, 48))
    control.grad = uneven.grad
    step(Muon(equilibrate="none"), [control], momentum=0.0)
    assert not torch.allclose(even, control, atol=1e-3)


def test_columns_are_equilibrated() -> None:
    update = torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(3))
    scaled = update * torch.logspace(-2, 2, 20)
    spec = Muon(equilibrate="column")
    assert torch.allclose(direction(spec, update), direction(spec, scaled), atol=1e-4)


def test_shape_factors() -> None:
    assert shape_factor(Muon(), 64, 16) == 2.0
    assert shape_factor(Muon(), 16, 64) == 1.0
    assert shape_factor(Muon(scale="rms"), 64, 16) == pytest.approx(1.6)


def test_newton_schulz_matches_the_plain_formula() -> None:
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(4))
    x = x / x.norm()
    expected = x
    a, b, c = CLASSIC
    for _ in range(5):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    assert torch.allclose(orthogonalise(x[None], (CLASSIC,) * 5)[0], expected, atol=1e-5)


def test_tiny_rates_still_move_float32_masters() -> None:
    # bfloat16 masters lose steps below their spacing
    parameter = nn.Parameter(torch.full((8, 8), 5.25))
    for _ in range(1000):
        parameter.grad = torch.eye(8)
        step(PLAIN, [parameter], rate=1e-5, momentum=0.0)
    moved = 5.25 - parameter.detach().diagonal()
    assert torch.allclose(moved, torch.full((8,), 0.01), rtol=0.35)


def test_roles_choose_the_rule(spec: ModelSpec) -> None:
    # Muon on embeddings goes unnoticed elsewhere: the table is never Muon's
    model = build(spec)
    initialise(model, Scaling(), 0)
    optimizers = Optimizers(model, Optimizer())
    muon = set(optimizers.momenta)
    assert muon == {w.name for w in weights(model) if w.role is Role.MATRIX}
    groups = {group.role: group for group in optimizers.groups()}
    assert isinstance(groups[Role.MATRIX].rule, Muon)
    assert isinstance(groups[Role.TABLE].rule, Adam)
    assert isinstance(groups[Role.VECTOR].rule, Adam)
    total = sum(group.parameters for group in groups.values())
    assert total == sum(p.numel() for p in model.parameters())
    assert "Muon, rate 0.02" in str(groups[Role.MATRIX])


def test_adam_decay_shrinks_weights_without_gradient_signal(spec: ModelSpec) -> None:
    # Adam without decay
    model = build(spec)
    initialise(model, Scaling(), 0)
    optimizers = Optimizers(model, Optimizer(table=Adam(rate=0.1, decay=0.5)))
    before = model.table.weight.detach().clone()
    for weight in weights(model):
        weight.tensor.grad = torch.zeros_like(weight.tensor)
    optimizers.step(1.0, 0.5)
    assert torch.allclose(model.table.weight, before * (1 - 0.1 * 0.5))


def test_weights_that_have_not_joined_stay(spec: ModelSpec) -> None:
    model = build(spec)
    initialise(model, Scaling(), 0)
    optimizers = Optimizers(model, Optimizer(vector=Adam(decay=0.5)))
    late = [w for w in weights(model) if w.name.startswith("visits.")]
    assert late
    before = [w.tensor.detach().clone() for w in late]
    for weight in itertools.chain(weights(model)):
        is_late = weight.name.startswith("visits.")
        weight.tensor.grad = None if is_late else torch.ones_like(weight.tensor)
    optimizers.step(1.0, 0.1)
    tensors: list[Tensor] = [w.tensor for w in late]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
