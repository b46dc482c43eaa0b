"""Muon and AdamW against torch's and against the formulas, and which weights they get."""

import dataclasses
import itertools
import typing
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segpt.config.layout import Place, Role, layout
from segpt.config.model import ModelSpec
from segpt.config.optimizer import (
    Adam,
    FollowRate,
    Linear,
    Muon,
    Neurons,
    Optimizer,
    Override,
    Rule,
)
from segpt.config.schedule import Steps
from segpt.config.train import Scaling
from segpt.errors import CheckpointError, SpecError, TrainError
from segpt.kernels import newton_schulz
from segpt.kernels.updates.reference import normalise_neurons
from segpt.model.build import build
from segpt.model.model import Model
from segpt.model.params import weights
from segpt.model.scaling import initialise
from segpt.train.optim import Optimizers, remembered
from segpt.train.optim.adam import Moments, adam_step
from segpt.train.optim.muon import (
    CLASSIC,
    FIVE,
    SEVEN,
    StackedMatrix,
    muon_step,
    orthogonalise,
    second_moment_shape,
    shape_factor,
)
from segpt.train.optim.registry import OPTIMIZERS, optimizer
from segpt.train.optim.shared import Member
from segpt.train.trainer import Trainer

PLAIN = Muon(equilibrate="none", coefficients="classic", momentum_warmup=0.0)


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for shape in shapes:
        parameter = nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator)
        found.append(parameter)
    return found


def matrices(spec: Muon, *parameters: Tensor) -> StackedMatrix:
    """Parameters that are updated as one matrix, with a momentum of zero."""
    whole = StackedMatrix(list(parameters), [torch.zeros_like(p) for p in parameters])
    if spec.neurons is None:
        return whole
    return whole._replace(second=torch.zeros(second_moment_shape(spec.neurons, whole.shape)))


def step(
    spec: Muon,
    many: list[nn.Parameter],
    rate: float = 0.1,
    momentum: float = 0.95,
    *,
    both: bool = False,
) -> None:
    each = [matrices(spec, p) for p in many]
    muon_step(spec, each, rate, momentum, rate * spec.decay, both=both)


@pytest.fixture
def model(spec: ModelSpec) -> Model:
    model = build(spec)
    initialise(model, Scaling(), 0)
    for weight in weights(model):
        generator = torch.Generator().manual_seed(len(weight.name))
        weight.tensor.grad = torch.randn(weight.tensor.shape, generator=generator)
    return model


def stepped(model: Model, spec: Optimizer, **named: Any) -> dict[str, Tensor]:
    """How far one step at full rate moves every weight; the model stays as it was."""
    before = {w.name: w.tensor.detach().clone() for w in weights(model)}
    Optimizers(model, spec, **named).step(1.0, 0.5, 10.0)
    moved = {w.name: w.tensor.detach() - before[w.name] for w in weights(model)}
    with torch.no_grad():
        for weight in weights(model):
            weight.tensor.copy_(before[weight.name])
    return moved


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
    whole = matrices(spec, *ours)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        grad = torch.randn(shape, generator=generator)
        for parameter in (*ours, *theirs):
            parameter.grad = grad.clone()
        before = ours[0].detach().clone()
        muon_step(spec, [whole], 0.1, 0.95, 0.1 * 0.2)
        reference.step()  # type: ignore[no-untyped-call]
        moved = (ours[0] - before).norm()
        # theirs iterates in bfloat16, ours in float32 on a CPU
        assert (ours[0] - theirs[0]).norm() < 0.02 * moved
        with torch.no_grad():
            theirs[0].copy_(ours[0])


@pytest.mark.parametrize(
    ("coefficients", "iterations", "least"),
    [("classic", 5, 0.6), ("five", 5, 0.85), ("seven", 7, 0.9), ("polar", 5, 0.7)],
)
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
def test_update_is_nearly_orthogonal(
    coefficients: Any, iterations: int, least: float, shape: tuple[int, int]
) -> None:
    update = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    spec = Muon(coefficients=coefficients, iterations=iterations)
    values = torch.linalg.svdvals(orthogonalise(spec, update))
    assert values.max() < 1.3
    assert values.median() > least


def test_five_and_seven_are_normalised_without_a_margin() -> None:
    # a matrix of rank 1 has all its norm in one singular value: what comes out is the polynomial
    # at 1, where a margin of 2 percent would show
    update = torch.outer(torch.ones(6), torch.ones(8))[None]
    for name, coefficients in (("five", FIVE), ("seven", SEVEN)):
        spec = Muon(coefficients=name, iterations=len(coefficients), equilibrate="none")  # type: ignore[arg-type]
        expected = 1.0
        for a, b, c in coefficients:
            expected = a * expected + b * expected**3 + c * expected**5
        found = torch.linalg.svdvals(orthogonalise(spec, update)).max()
        assert float(found) == pytest.approx(expected, abs=1e-4)


def test_stacked_matrices_equal_single_ones() -> None:
    many = parameters((16, 24), (16, 24), (16, 24))
    step(Muon(), many)
    for i, alone in enumerate(parameters((16, 24), (16, 24), (16, 24))):
        step(Muon(), [alone])
        assert torch.allclose(many[i], alone, atol=1e-6)


@pytest.mark.parametrize("neurons", [None, Neurons(), Neurons(axis="auto")])
def test_a_stack_in_one_weight_is_a_stack_of_matrices(neurons: Neurons | None) -> None:
    spec = Muon(decay=0.1, neurons=neurons)
    (whole,) = parameters((3, 16, 24))
    assert whole.grad is not None
    alone = [nn.Parameter(part.clone()) for part in whole.detach()]
    for part, grad in zip(alone, whole.grad, strict=True):
        part.grad = grad
    step(spec, [whole])
    step(spec, alone)
    for i, part in enumerate(alone):
        assert torch.allclose(whole[i], part, atol=1e-6)


@pytest.mark.parametrize("neurons", [None, Neurons()])
def test_decay_is_decoupled(neurons: Neurons | None) -> None:
    # decay added to the gradient turns the direction into that of the weights; normalised
    # neurons without any decay at all leave the difference at zero
    (plain,), (decayed,) = parameters((32, 32)), parameters((32, 32))
    for parameter in (plain, decayed):
        assert parameter.grad is not None
        parameter.grad *= 1e-3  # gradients are tiny next to the weights
    start = plain.detach().clone()
    step(Muon(decay=0.0, neurons=neurons), [plain])
    step(Muon(decay=0.5, neurons=neurons), [decayed])
    difference = (decayed - plain).detach()
    assert torch.allclose(difference, -0.1 * 0.5 * start, atol=1e-6)


@pytest.mark.parametrize("rule", [Muon(), Muon(neurons=Neurons()), Adam(beta1=0.0)])
def test_cautious_decay_spares_what_moves_away_from_zero(model: Model, rule: Rule) -> None:
    def moved(decay: float, *, cautious: bool = False) -> Tensor:
        how = dataclasses.replace(rule, decay=decay, cautious=cautious)
        return stepped(model, Optimizer(matrix=how))[up.name]

    up = next(w for w in weights(model) if w.name.endswith("up"))
    plain = moved(0.0)
    towards = up.tensor * plain <= 0  # the step makes the weight smaller, or has no say
    whole = (moved(0.5) - plain) / (-0.5 * rule.rate)
    assert torch.allclose(whole, up.tensor, atol=2e-4)
    spared = (moved(0.5, cautious=True) - plain) / (-0.5 * rule.rate)
    assert torch.allclose(spared, up.tensor * towards, atol=2e-4)
    assert 0.2 < towards.float().mean() < 0.8


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
    assert torch.allclose(orthogonalise(spec, update), orthogonalise(spec, scaled), atol=1e-4)


def test_both_divides_by_the_norms_of_the_same_matrix() -> None:
    update = torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(3))
    update = update * torch.logspace(-1, 1, 20) * torch.logspace(-1, 1, 12)[:, None]
    expected = update / update.norm(dim=2, keepdim=True) / update.norm(dim=1, keepdim=True)
    plain = orthogonalise(dataclasses.replace(Muon(), equilibrate="none"), expected)
    assert torch.allclose(orthogonalise(Muon(equilibrate="both"), update), plain, atol=1e-5)


def test_both_gives_way_to_rows(model: Model) -> None:
    spec = Optimizer(matrix=Muon(equilibrate="row", both_until=0.3))
    for progress, equilibrate in ((0.2, "both"), (0.3, "row")):
        tensors = []
        for how in (spec, Optimizer(matrix=Muon(equilibrate=equilibrate))):  # type: ignore[arg-type]
            fresh = build(model.spec)
            initialise(fresh, Scaling(), 0)
            for weight, same in zip(weights(fresh), weights(model), strict=True):
                weight.tensor.grad = same.tensor.grad
            Optimizers(fresh, how).step(1.0, progress, 0.0)
            tensors.append([w.tensor for w in weights(fresh)])
        assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_shape_factors() -> None:
    assert shape_factor(Muon(), 64, 16) == 2.0
    assert shape_factor(Muon(), 16, 64) == 1.0
    assert shape_factor(Muon(scale="ratio"), 64, 16) == 2.0
    assert shape_factor(Muon(scale="ratio"), 16, 64) == 0.5
    assert shape_factor(Muon(scale="rms"), 64, 16) == pytest.approx(1.6)


def test_newton_schulz_matches_the_plain_formula() -> None:
    x = torch.randn(12, 20, generator=torch.Generator().manual_seed(4))
    x = x / x.norm()
    expected = x
    a, b, c = CLASSIC
    for _ in range(5):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    assert torch.allclose(newton_schulz(x[None], (CLASSIC,) * 5)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("axis", "shape", "dim"),
    [("row", (6, 9), 1), ("auto", (6, 9), 0), ("auto", (9, 6), 1), ("row", (9, 6), 1)],
)
def test_neurons_are_evened_out(axis: Any, shape: tuple[int, int], dim: int) -> None:
    spec = Neurons(beta2=0.9, axis=axis)
    second = torch.zeros(second_moment_shape(spec, shape))
    assert second.shape[dim] == 1
    generator = torch.Generator().manual_seed(5)
    moment = torch.zeros(())
    for _ in range(4):
        x = torch.randn(shape, generator=generator)
        x = x * torch.logspace(-1, 1, shape[1 - dim]).unsqueeze(dim)
        found = normalise_neurons(spec.beta2, x[None], [second])[0]
        moment = 0.9 * moment + 0.1 * (x**2).mean(dim, keepdim=True)
        expected = x / moment.sqrt()
        expected = expected * x.norm() / expected.norm()
        assert torch.allclose(found, expected, rtol=1e-4)
        assert torch.allclose(second, moment)
        assert float(found.norm()) == pytest.approx(float(x.norm()), rel=1e-5)


def test_neurons_without_a_gradient_stay() -> None:
    (parameter,) = parameters((8, 8))
    parameter.grad = torch.zeros(8, 8)
    before = parameter.detach().clone()
    step(Muon(neurons=Neurons()), [parameter])
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("rule", [PLAIN, Adam(beta1=0.0, beta2=0.0)])
def test_tiny_rates_still_move_float32_masters(rule: Rule) -> None:
    # bfloat16 masters lose steps below their spacing
    parameter = nn.Parameter(torch.full((8, 8), 5.25))
    moments = [Moments(torch.zeros(8, 8), torch.zeros(8, 8), torch.zeros(()))]
    for _ in range(1000):
        parameter.grad = torch.eye(8)
        if isinstance(rule, Muon):
            step(rule, [parameter], rate=1e-5, momentum=0.0)
        else:
            adam_step(rule, [parameter], moments, 1e-5, 0.0)
    moved = 5.25 - parameter.detach().diagonal()
    each = orthogonalise(rule, torch.eye(8)[None])[0].diagonal() if isinstance(rule, Muon) else 1.0
    assert torch.allclose(moved, 0.01 * each * torch.ones(8), rtol=0.03)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_is_torch_adamw_bit_for_bit(decay: float) -> None:
    shapes = ((7, 5), (3,), (4, 2))
    ours, theirs = parameters(*shapes), parameters(*shapes)
    spec = Adam(rate=0.02, decay=decay, beta1=0.8, beta2=0.95, eps=1e-10)
    reference = torch.optim.AdamW(theirs, lr=0.02, betas=(0.8, 0.95), eps=1e-10, weight_decay=decay)
    moments = [Moments(torch.zeros_like(p), torch.zeros_like(p), torch.zeros(())) for p in ours]
    generator = torch.Generator().manual_seed(1)
    for i in range(30):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            its.grad = mine.grad.clone()
        late = i > 10  # one weight joins later, and counts its own steps
        rate = 0.02 * (1 - i / 40)
        reference.param_groups[0]["lr"] = rate
        chosen = [0, 2] if not late else [0, 1, 2]
        if not late:
            theirs[1].grad = None
        adam_step(spec, [ours[k] for k in chosen], [moments[k] for k in chosen], rate, rate * decay)
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "rule", [Muon(), Muon(neurons=Neurons(), cautious=True), Adam(), Adam(cautious=True)]
)
def test_a_gradient_that_is_no_number_is_not_masked(model: Model, rule: Rule) -> None:
    up = next(w for w in weights(model) if w.name.endswith("up"))
    assert up.tensor.grad is not None
    up.tensor.grad[0, 0] = float("nan")
    moved = stepped(model, Optimizer(matrix=dataclasses.replace(rule, decay=0.1)))
    assert moved[up.name].isnan().any()


def test_roles_choose_the_rule(model: Model) -> None:
    # Muon on embeddings goes unnoticed elsewhere: the table is never Muon's
    optimizers = Optimizers(model, Optimizer())
    muon = {k.partition("|")[2] for k in optimizers.state() if k.startswith("momentum|")}
    assert muon == {w.name for w in weights(model) if w.role is Role.MATRIX}
    groups = {group.role: group for group in optimizers.groups()}
    assert isinstance(groups[Role.MATRIX].rule, Muon)
    assert isinstance(groups[Role.TABLE].rule, Adam)
    assert isinstance(groups[Role.VECTOR].rule, Adam)
    assert "matrix of mixer, feed: " in str(groups[Role.MATRIX])
    assert "tensors, Muon, rate 0.02, decay 0" in str(groups[Role.MATRIX])


OVERRIDES = (
    Override(place="feed", role="matrix", decay_times=2.0),
    Override(role="matrix", part="out", rule=Adam(rate=0.5, decay=0.25)),
    Override(place="embed", rate_times=10.0),
    Override(role="matrix", part="down", rate_times=0.5),
)


def test_overrides_change_what_they_cover(spec: ModelSpec) -> None:
    how = Optimizer(matrix=Muon(rate=0.02, decay=0.1), overrides=OVERRIDES)
    rules = {where.name: how.rule(where) for where in layout(spec)}
    assert rules["table"] == Adam(rate=0.1)
    assert rules["layers.0.mixer.body.query"] == Muon(rate=0.02, decay=0.1)
    assert rules["layers.0.mixer.body.out"] == Adam(rate=0.5, decay=0.25)
    assert rules["layers.1.feed.body.up"] == Muon(rate=0.02, decay=0.2)
    assert rules["layers.2.feed.body.down"] == Muon(rate=0.01, decay=0.2)
    assert rules["layers.2.feed.gain"] == Adam()


@pytest.mark.parametrize("overrides", [(), OVERRIDES])
def test_groups_are_a_partition(model: Model, overrides: tuple[Override, ...]) -> None:
    optimizers = Optimizers(model, Optimizer(overrides=overrides))
    held = [m.weight.name for found in optimizers.divided.values() for m in found]
    assert Counter(held) == Counter(w.name for w in weights(model))
    groups = optimizers.groups()
    assert sum(g.parameters for g in groups) == sum(p.numel() for p in model.parameters())
    assert sum(g.tensors for g in groups) == len(list(model.parameters()))
    assert len(groups) == (5 if overrides else 3)


def test_a_parameter_outside_the_leaves_is_refused(model: Model) -> None:
    model.layers[0].stray = nn.Parameter(torch.zeros(3))
    with pytest.raises(TrainError, match=r"parameter 'layers\.0\.stray' of the model has no rule"):
        Optimizers(model, Optimizer())


def test_a_shared_parameter_is_refused(model: Model) -> None:
    first, second = [w.param for w in weights(model) if w.name.endswith("body.up")][:2]
    second.weight = first.weight
    with pytest.raises(TrainError, match="two leaves of the model share a parameter"):
        Optimizers(model, Optimizer())


def test_an_override_that_covers_nothing_is_refused(model: Model) -> None:
    how = Optimizer(overrides=(Override(place="feed"), Override(part="queri")))
    with pytest.raises(TrainError, match=r"overrides\[1\] covers no weight"):
        Optimizers(model, how)


def test_muon_is_refused_where_there_is_no_matrix(model: Model) -> None:
    for role in ("table", "head", "vector"):
        message = rf"Muon is for matrices, and {role} is none; .* {role}: \{{kind: adam\}}"
        with pytest.raises(SpecError, match=message):
            dataclasses.replace(Optimizer(), **{role: Muon()})  # type: ignore[arg-type]
    flat = next(w for w in layout(model.spec) if len(w.shape) < 2)
    with pytest.raises(TrainError, match=r"Muon is for matrices and .* is none; give it Adam"):
        optimizer(Muon(), [Member(flat, nn.Parameter(torch.zeros(flat.shape)))])


@pytest.mark.parametrize("override", [Override(role="vector", rate_times=3.0), None])
def test_rates_change_the_updates_of_adam(model: Model, override: Override | None) -> None:
    # multipliers that AdamW ignores
    name = "layers.0.feed.gain"
    plain = stepped(model, Optimizer())
    if override is None:
        changed = stepped(model, Optimizer(), rates={name: 3.0})
    else:
        changed = stepped(model, Optimizer(overrides=(override,)))
    assert torch.allclose(changed[name], 3 * plain[name], rtol=1e-4)
    assert torch.equal(changed["table"], plain["table"])


def test_decays_times_two_are_twice_the_decay(model: Model) -> None:
    # a multiplier of the decay that is read, but that nothing can set
    up, query = "layers.0.feed.body.up", "layers.0.mixer.body.query"
    before = {w.name: w.tensor.detach().clone() for w in weights(model)}
    none = stepped(model, Optimizer(matrix=Muon()))
    how = Optimizer(matrix=Muon(decay=0.5), overrides=(Override(place="feed", decay_times=2.0),))
    found = stepped(model, how)
    for name, times in ((up, 2.0), (query, 1.0)):
        expected = -0.02 * 0.5 * times * before[name]
        assert torch.allclose(found[name] - none[name], expected, atol=1e-6)


@pytest.mark.parametrize("rule", [Muon(decay=0.5), Adam(decay=0.5)])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.5),  # times rate and multiplier
        ({"decay_mode": "independent"}, 0.5),
        ({"decay_mode": "fixed"}, 0.5),
        ({"decay_schedule": Linear(start=1.0, end=0.5, since=0.7)}, 0.5 * 0.75),
        ({"decay_schedule": FollowRate(least=0.2)}, 0.5 * (0.2 + 0.8 * 0.25)),
    ],
)
def test_the_optimizer_sees_decay_modes_and_schedules(
    model: Model, rule: Rule, changes: dict[str, Any], expected: float
) -> None:
    # a schedule that writes a key that no optimizer reads
    rule = dataclasses.replace(rule, **changes)
    name, multiplier = "layers.0.feed.body.up", 0.25
    tensor = next(w.tensor for w in weights(model) if w.name == name)
    before = tensor.detach().clone()
    results = []
    for how in (rule, dataclasses.replace(rule, decay=0.0)):
        with torch.no_grad():
            tensor.copy_(before)
        Optimizers(model, Optimizer(matrix=how)).step(multiplier, 0.85, 10.0)
        results.append(tensor.detach().clone())
    factor = {"lr_coupled": rule.rate * multiplier, "independent": multiplier, "fixed": 1.0}
    gone = factor[rule.decay_mode] * expected * before
    assert torch.allclose(results[1] - results[0], gone, atol=1e-6)


def test_joint_matrices_are_updated_as_one(model: Model) -> None:
    mixer = "layers.0.mixer.body."
    spec = Muon(joint=("query", "key", "value"), neurons=Neurons(), decay=0.1)
    found = {w.name: w.tensor for w in weights(model)}
    parts = [found[mixer + part] for part in ("query", "key", "value")]
    whole = nn.Parameter(torch.cat([p.detach() for p in parts]))
    whole.grad = torch.cat([p.grad for p in parts if p.grad is not None])
    before = whole.detach().clone()
    muon_step(spec, [matrices(spec, whole)], spec.rate, spec.momentum, spec.rate * 0.1)
    moved = stepped(model, Optimizer(matrix=spec))
    joined = torch.cat([moved[mixer + part] for part in ("query", "key", "value")])
    assert torch.allclose(joined, whole.detach() - before, atol=1e-6)
    apart = stepped(model, Optimizer(matrix=dataclasses.replace(spec, joint=())))
    assert not torch.allclose(apart[mixer + "query"], moved[mixer + "query"], atol=1e-3)
    assert torch.equal(apart["layers.0.feed.body.up"], moved["layers.0.feed.body.up"])


def test_momentum_warms_up_over_steps(model: Model) -> None:
    spec = Optimizer(matrix=Muon(momentum=0.9, momentum_start=0.1, momentum_warmup=Steps(count=8)))
    optimizers = Optimizers(model, spec)
    optimizers.step(1.0, 0.9, 4.0)  # long before the end of the ramp, near that of the run
    name = "layers.0.feed.body.up"
    grad = next(w.tensor.grad for w in weights(model) if w.name == name)
    assert grad is not None
    assert torch.allclose(optimizers.state()[f"momentum|{name}"], 0.5 * grad)


def test_adam_decay_shrinks_weights_without_gradient_signal(model: Model) -> None:
    # Adam without decay
    optimizers = Optimizers(model, Optimizer(table=Adam(rate=0.1, decay=0.5)))
    before = model.table.weight.detach().clone()
    for weight in weights(model):
        weight.tensor.grad = torch.zeros_like(weight.tensor)
    optimizers.step(1.0, 0.5, 10.0)
    assert torch.allclose(model.table.weight, before * (1 - 0.1 * 0.5))


def test_weights_that_have_not_joined_stay(model: Model) -> None:
    optimizers = Optimizers(model, Optimizer(vector=Adam(decay=0.5)))
    late = [w for w in weights(model) if w.name.startswith("visits.")]
    assert late
    before = [w.tensor.detach().clone() for w in late]
    for weight in itertools.chain(weights(model)):
        is_late = weight.name.startswith("visits.")
        weight.tensor.grad = None if is_late else torch.ones_like(weight.tensor)
    optimizers.step(1.0, 0.1, 2.0)
    tensors: list[Tensor] = [w.tensor for w in late]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


EVERYTHING = Optimizer(
    matrix=Muon(
        decay=0.1,
        cautious=True,
        neurons=Neurons(axis="auto"),
        joint=("query", "key", "value"),
        both_until=0.5,
        momentum_warmup=Steps(count=7),
        decay_schedule=Linear(start=1.0, end=0.5, since=0.5),
    ),
    table=Adam(decay=0.1, cautious=True, decay_mode="independent"),
    overrides=(Override(role="matrix", part="up", rule=Adam(decay=0.1)),),
)


def test_resuming_is_exact_with_everything_on(
    make: Callable[..., Trainer], batches: Callable[[int], NDArray[np.int64]]
) -> None:
    whole = make(steps=12, optimizer=EVERYTHING)
    state: dict[str, NDArray[Any]] = {}
    used: dict[str, NDArray[np.float32]] = {}
    for i in range(12):
        if i == 6:
            state, used = whole.state(), whole.averaged_weights()
        whole.train_step(batches(i))
    again = make(steps=12, optimizer=EVERYTHING)
    again.restore(6, used, state)
    for i in range(6, 12):
        again.train_step(batches(i))
    expected, found = whole.state(), again.state()
    assert found.keys() == expected.keys()
    assert any(key.startswith("second|") for key in found)
    odd = [key for key in found if not np.array_equal(found[key], expected[key], equal_nan=True)]
    assert not odd


def test_a_state_without_what_is_needed_is_refused(model: Model) -> None:
    state = Optimizers(model, Optimizer()).state()
    with pytest.raises(CheckpointError, match=r"lacks 'second\|layers\.0"):
        Optimizers(model, Optimizer(matrix=Muon(neurons=Neurons()))).restore(state)


@pytest.mark.parametrize("rule", [Muon(), Muon(neurons=Neurons(axis="auto")), Adam()])
def test_what_is_remembered_is_what_checkpoints_hold(model: Model, rule: Rule) -> None:
    optimizers = Optimizers(model, Optimizer(matrix=rule))
    optimizers.step(1.0, 0.5, 10.0)
    state = optimizers.state()
    for weight in (w for w in layout(model.spec) if w.role is Role.MATRIX):
        kept = {f"{part.name}|{weight.name}": part for part in remembered(rule, weight.shape)}
        assert kept.keys() == {key for key in state if key.endswith(f"|{weight.name}")}
        for key, part in kept.items():
            assert (state[key].shape, state[key].dtype) == (part.shape, part.dtype)


def test_every_rule_has_an_optimizer() -> None:
    assert set(OPTIMIZERS) == set(typing.get_args(Rule))


def test_every_weight_has_a_place(spec: ModelSpec) -> None:
    places = {where.name: where.place for where in layout(spec)}
    assert places["table"] is Place.EMBED
    assert places["layers.0.mixer.gain"] is places["layers.2.mixer.body.key"] is Place.MIXER
    assert places["layers.1.feed.body.up"] is Place.FEED
    assert {p for n, p in places.items() if n.startswith("visits.")} == {Place.JOIN}
