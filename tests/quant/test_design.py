"""Steps by design: that they follow what weights matter, and that nothing breaks them."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segpt import trellis
from segpt.config.layout import Role
from segpt.quant.design import Design, design
from segpt.quant.gptq import inverse_factor
from segpt.quant.sensitivity import Sensitivity
from segpt.quant.stepped import all_to_stepped, entropy, to_stepped
from segpt.values import TrellisWeight


def gram(size: int, seed: int, spread: float = 1.0) -> Tensor:
    """The second moment of correlated channels that differ in size, (size, size) float64."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=draw) / size**0.5
    x = torch.randn(4 * size, size, generator=draw) @ mixing
    x *= torch.exp(spread * torch.randn(size, generator=draw))
    return (x.T @ x).double() / len(x)


def case(
    rows: int, columns: int, seed: int, role: Role = Role.MATRIX
) -> tuple[Tensor, Sensitivity]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    outputs = gram(rows, seed + 1000)
    together = outputs.float() if role is Role.MATRIX else None
    return weight, Sensitivity(gram(columns, seed), outputs.diagonal().clone(), together)


def decoded(coded: TrellisWeight) -> Tensor:
    return torch.from_numpy(coded.decoded())


def at_rate(weight: Tensor, found: Sensitivity, coded: TrellisWeight, bits: float) -> float:
    """The damage, brought to a rate: it falls by 2^2 per bit of every weight."""
    rate = entropy(coded) / weight.numel()
    return found.damage(weight - decoded(coded)) * 4 ** (rate - bits)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_steps_rise_with_the_factor(power: float) -> None:
    weight, found = case(24, 40, 0, Role.TABLE)
    plan = design(weight, found, Role.TABLE, by_row=power, by_column=power)
    diagonal = inverse_factor(found.curvature, 0.01).diagonal()
    wanted = 8 * power * (diagonal / diagonal.log().mean().exp()).log2()
    assert (plan.columns - wanted).abs().max() < 0.51
    assert len(set(plan.columns.tolist())) >= (1 if power == 0 else 10)
    assert plan.base_step == pytest.approx(float(diagonal.log().mean().exp()), rel=1e-4)
    freedom = (found.rows + 0.02 * found.rows.mean()) ** -0.5
    wanted = 8 * power * (freedom / freedom.log().mean().exp()).log2()
    assert (plan.rows - wanted).abs().max() < 0.51


def test_rows_of_matrices_follow_the_factor_of_the_outputs() -> None:
    weight, found = case(24, 40, 0)
    assert found.outputs is not None
    plan = design(weight, found, Role.MATRIX, by_row=1.0)
    order = found.rows.argsort(descending=True)
    assert plan.order is not None
    assert torch.equal(plan.order, order)
    factor = inverse_factor(found.outputs[order][:, order].double(), 0.05)
    assert plan.row_factor is not None
    assert torch.allclose(plan.row_factor.double(), factor, rtol=1e-4, atol=1e-5)
    wanted = factor.diagonal().log2()
    wanted = 8 * (wanted - wanted.mean())
    assert (plan.rows[order] - wanted).abs().max() < 0.51


@pytest.mark.parametrize("states", [1, 8])
def test_codes_are_in_the_planned_steps(states: int) -> None:
    weight, found = case(24, 40, 1, Role.TABLE)
    weight += 3.0
    plan = design(weight, found, Role.TABLE)
    coded = to_stepped(weight, plan, 0.1, states)
    assert coded.states == states
    assert coded.rows.tolist() == plan.rows.tolist()
    assert coded.columns.tolist() == plan.columns.tolist()
    assert coded.step == pytest.approx(plan.base_step * 0.1 * (0.62 if states > 1 else 1))
    assert coded.step == float(np.float32(coded.step))
    assert plan.centre is not None
    assert coded.centre is not None
    assert coded.centre.tolist() == plan.centre.tolist()
    assert to_stepped(weight, plan.scaled(2.0), 0.05, states) == coded
    # Points lie half a step from where they are wanted in the mean; feedback adds to that.
    error = (weight - decoded(coded)) / torch.from_numpy(coded.steps())
    assert error.square().mean() < 8 / 12 * (4 if states > 1 else 1)


def test_the_first_column_to_be_coded_is_rounded_to_the_nearest() -> None:
    """Nothing is fed back to it, and uniform grids have no state."""
    weight, found = case(24, 40, 2, Role.TABLE)
    plan = design(weight, found, Role.TABLE)
    coded = to_stepped(weight, plan, 0.1, 1)
    centre = 0.0 if plan.centre is None else plan.centre.float()
    wanted = ((weight - centre) / torch.from_numpy(coded.steps()))[:, 0]
    assert coded.codes[:, 0].tolist() == wanted.round().tolist()


def vocabulary(alike: int, different: int) -> tuple[Tensor, Tensor]:
    """Rows of a table, and which of them are seen: 64, then so many that hardly differ."""
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(64, 16, generator=draw)
    same = torch.randn(16, generator=draw) + 0.1 * torch.randn(alike, 16, generator=draw)
    weight = torch.cat([seen, same, torch.randn(different, 16, generator=draw)])
    return weight, torch.arange(len(weight)) < 64


def table(weight: Tensor) -> Sensitivity:
    draw = torch.Generator().manual_seed(9)
    rows = torch.rand(len(weight), generator=draw).double()
    return Sensitivity(gram(weight.size(1), 0), rows, None)


@pytest.mark.parametrize("role", [Role.TABLE, Role.HEAD])
def test_unseen_rows_that_are_alike_are_shared_and_cost_nothing(role: Role) -> None:
    weight, seen = vocabulary(40, 0)
    plan = design(weight, table(weight), role, seen=seen)
    coded = to_stepped(weight, plan, 0.1, 8)
    assert coded.shape == tuple(weight.shape)
    assert coded.codes.shape == (64, 16)
    assert coded.stored is not None
    assert coded.shared is not None
    assert coded.stored.tolist() == seen.tolist()
    mean = weight[64:].mean(0)
    assert np.allclose(coded.shared.astype(np.float32), mean, rtol=1e-3, atol=1e-3)
    assert torch.equal(decoded(coded)[64:], torch.from_numpy(coded.shared).float().expand(40, 16))
    found = table(weight)
    alone = design(weight[:64], found._replace(rows=found.rows[:64]), role)
    assert entropy(to_stepped(weight[:64], alone, 0.1, 8)) == entropy(coded)


def test_unseen_rows_that_differ_are_stored() -> None:
    weight, seen = vocabulary(0, 40)
    plan = design(weight, table(weight), Role.TABLE, seen=seen)
    assert plan.stored is None
    assert plan.shared is None
    assert to_stepped(weight, plan, 0.1, 8).codes.shape == tuple(weight.shape)
    weight, seen = vocabulary(40, 4)
    plan = design(weight, table(weight), Role.TABLE, seen=seen)
    assert plan.stored is not None
    assert plan.stored.tolist() == [True] * 64 + [False] * 40 + [True] * 4
    coded = to_stepped(weight, plan, 0.01, 8)
    error = (decoded(coded) - weight).square().sum(1) / weight.square().sum(1)
    assert (error[plan.stored] < 0.01).all()


@pytest.mark.parametrize(("unseen", "role"), [(7, Role.TABLE), (40, Role.MATRIX)])
def test_few_rows_and_matrices_share_nothing(unseen: int, role: Role) -> None:
    weight, seen = vocabulary(unseen, 0)
    assert design(weight, table(weight), role, seen=seen).stored is None


def test_no_text_shares_nothing() -> None:
    weight, seen = vocabulary(40, 0)
    for which in (seen & False, seen | True, None):
        assert design(weight, table(weight), Role.TABLE, seen=which).stored is None


@pytest.mark.parametrize(("offset", "role", "pays"), [
    (0.0, Role.TABLE, False),
    (0.05, Role.TABLE, False),
    (1.0, Role.TABLE, True),
    (1.0, Role.HEAD, True),
    (1.0, Role.MATRIX, False),
])  # fmt: skip
def test_a_centre_only_where_it_pays(offset: float, role: Role, pays: bool) -> None:
    weight, found = case(200, 16, 3, role)
    weight += offset * torch.randn(16, generator=torch.Generator().manual_seed(1))
    plan = design(weight, found, role)
    assert (plan.centre is not None) is pays
    if plan.centre is not None:
        assert torch.equal(plan.centre, weight.double().mean(0).half())
        with_centre = entropy(to_stepped(weight, plan, 0.1, 8)) + 16 * 16
        assert with_centre < entropy(to_stepped(weight, plan._replace(centre=None), 0.1, 8))


SYMMETRIC = [
    "usual", "rank 1", "zero", "indefinite", "negative", "nan", "inf", "huge", "tiny", "dead"
]  # fmt: skip
WEIGHTS = [
    "usual", "zero", "outlier", "huge", "tiny", "constant", "sparse", "dead", "far", "subnormal"
]  # fmt: skip


def symmetric(kind: str, size: int, draw: torch.Generator) -> Tensor:
    square = torch.randn(size, size, generator=draw).double()
    usual = square.T @ square
    match kind:
        case "rank 1":
            return torch.outer(square[0], square[0])
        case "zero":
            return usual * 0
        case "indefinite":
            return square + square.T
        case "negative":
            return -usual
        case "dead":
            usual[0] = usual[:, 0] = 0
            return usual
        case _:
            factors = {"nan": math.nan, "inf": math.inf, "huge": 1e60, "tiny": 1e-60}
            return usual * factors.get(kind, 1.0)


def odd_weight(kind: str, rows: int, columns: int, draw: torch.Generator) -> Tensor:
    weight = torch.randn(rows, columns, generator=draw)
    match kind:
        case "outlier":
            weight[0, 0] = 1e4
        case "constant":
            weight[:] = 0.5
        case "sparse":
            weight *= torch.rand(rows, columns, generator=draw) < 0.1
        case "dead":
            weight[:, 0] = 0
        case _:
            pass
    factors = {"zero": 0.0, "huge": 1e30, "tiny": 1e-30, "far": 1e5, "subnormal": 1e-42}
    return weight * factors.get(kind, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.campaign)])
def test_anything_is_coded_in_finite_weights(count: int) -> None:
    """Whatever the curvature, the steps are as fine as asked for, and no code is -128."""
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        rows, columns = 1 + seed % 23, 1 + seed * 7 % 37
        columns_kind, rows_kind = SYMMETRIC[seed % 10], SYMMETRIC[seed // 10 % 10]
        weight = odd_weight(WEIGHTS[(seed + seed // 100) % 10], rows, columns, draw)
        role = (Role.TABLE, Role.MATRIX, Role.HEAD)[seed % 3]
        outputs = symmetric(rows_kind, rows, draw)
        together = outputs.float() if role is Role.MATRIX else None
        curvature = symmetric(columns_kind, columns, draw)
        found = Sensitivity(curvature, outputs.diagonal().clone(), together)
        seen = None if role is Role.MATRIX else torch.rand(rows, generator=draw) < 0.5
        before = weight.clone()
        plan = design(weight, found, role, seen=seen)
        if columns_kind != "indefinite":
            assert plan.fallback == (columns_kind in ("negative", "nan", "inf")), seed
        for states, penalty, scale in ((8, 0.0, 1.0), (1, 0.05, 1e9), (4, 0.0, 1e-12)):
            coded = to_stepped(weight, plan, scale, states, penalty)
            assert coded.shape == (rows, columns)
            assert coded.decoded().dtype == np.float32
            assert np.isfinite(coded.decoded()).all(), seed
            assert np.abs(coded.codes.astype(int)).max() <= 127, seed
            assert np.isfinite(entropy(coded)) and entropy(coded) >= 0  # noqa: PT018
            exponents = np.concatenate([coded.rows, coded.columns]).astype(int)
            assert np.abs(exponents).max() <= 72
        assert torch.equal(weight, before)


@pytest.mark.parametrize("kind", ["nan", "inf", "negative"])
def test_where_curvature_is_unknown_weights_survive(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, found = case(24, 40, 0)
    odd = found._replace(curvature=symmetric(kind, 40, draw))
    for scale in (1e-3, 1.0, 1e6):
        coded = to_stepped(weight, design(weight, odd, Role.MATRIX), scale, 8)
        assert (weight - decoded(coded)).square().mean() < 0.05
    rows = found._replace(outputs=symmetric(kind, 24, draw).float())
    coded = to_stepped(weight, design(weight, rows, Role.MATRIX), 0.01, 8)
    assert (weight - decoded(coded)).square().mean() < 0.05


def test_what_does_not_matter_takes_no_bits() -> None:
    weight, found = case(24, 40, 0)
    plan = design(weight, found._replace(curvature=torch.zeros(40, 40).double()), Role.MATRIX)
    assert not plan.fallback
    assert entropy(to_stepped(weight, plan, 1e-3, 8)) == 0


def test_the_furthest_weight_has_a_code_however_fine_the_steps() -> None:
    for states in (1, 8):
        weight, found = case(16, 32, 5)
        weight[3, 4], weight[7, 30] = 50.0, -80.0
        plan = design(weight, found, Role.MATRIX)
        coded = to_stepped(weight, plan, 1e-9, states)
        assert 90 < np.abs(coded.codes.astype(int)).max() <= 127
        error = (weight - decoded(coded)) / torch.from_numpy(coded.steps())
        assert error.abs().max() < 40
        assert (weight - decoded(coded))[[3, 7], [4, 30]].abs().max() < 5


def mean_damage(two_sided: bool, feedback: bool = True) -> float:
    """In the mean over cases, at 3.5 bits; without feedback codes are the nearest."""
    logs = []
    for seed in range(8):
        weight, found = case(48, 40, seed)
        plan = design(weight, found, Role.MATRIX, two_sided=two_sided)
        if not feedback:
            plan = plan._replace(
                inverse_factor=plan.inverse_factor.diagonal().diag(), order=None, row_factor=None
            )
        logs.append(math.log(at_rate(weight, found, to_stepped(weight, plan, 0.12, 8), 3.5)))
    return math.exp(np.mean(logs))


@pytest.mark.slow
def test_feeding_errors_back_lowers_the_damage_and_doing_so_twice_lowers_it_more() -> None:
    both, one, none = mean_damage(True), mean_damage(False), mean_damage(False, feedback=False)
    assert both < 0.95 * one
    assert one < 0.8 * none


@pytest.mark.slow
@pytest.mark.parametrize("states", [1, 8])
def test_feedback_is_no_worse_than_the_nearest_points_in_the_same_steps(states: int) -> None:
    ratios = []
    for seed in range(30):
        weight, found = case(8 + seed, 12 + 2 * seed, seed)
        plan = design(weight, found, Role.MATRIX)
        nearest = plan._replace(
            inverse_factor=plan.inverse_factor.diagonal().diag(), order=None, row_factor=None
        )
        ours, theirs = (
            found.damage(weight - decoded(to_stepped(weight, p, 0.1, states)))
            for p in (plan, nearest)
        )
        ratios.append(ours / theirs)
    assert np.mean(ratios) < 0.7
    assert max(ratios) < 1


@pytest.mark.slow
def test_designed_steps_beat_equal_ones() -> None:
    logs: dict[float, list[float]] = {0.0: [], 0.5: []}
    for seed in range(8):
        weight, found = case(48, 40, seed)
        for power, losses in logs.items():
            plan = design(weight, found, Role.MATRIX, by_row=power, by_column=power)
            damage = at_rate(weight, found, to_stepped(weight, plan, 0.12, 8), 3.5)
            losses.append(math.log(damage))
    assert np.mean(logs[0.5]) < np.mean(logs[0.0]) - 0.1


def test_a_penalty_takes_fewer_bits_and_pays_at_low_rates() -> None:
    logs: dict[float, list[float]] = {0.0: [], 0.05: []}
    rates: dict[float, list[float]] = {0.0: [], 0.05: []}
    for seed in range(8):
        weight, found = case(64, 64, seed)
        plan = design(weight, found, Role.MATRIX, two_sided=False)
        for penalty in logs:
            coded = to_stepped(weight, plan, 0.8, 1, penalty)
            rates[penalty].append(entropy(coded) / weight.numel())
            logs[penalty].append(math.log(at_rate(weight, found, coded, 2.0)))
    assert np.mean(rates[0.05]) < np.mean(rates[0.0]) < 2.5
    assert np.mean(logs[0.05]) < np.mean(logs[0.0])


@pytest.mark.parametrize("states", [1, 4, 8, 16])
def test_entropy_counts_by_grid_and_by_deviation_of_the_column(states: int) -> None:
    draw = np.random.default_rng(states)
    spread = np.exp(draw.normal(0, 1, 30))
    codes = np.round(draw.normal(size=(200, 30)) * spread * 5).clip(-127, 127).astype(np.int8)
    coded = TrellisWeight(states, codes, 0.01, np.zeros(200, np.int8), np.zeros(30, np.int8))
    grids = trellis.grids(codes, states)
    groups: dict[Any, Counter[int]] = {}
    for column in range(30):
        deviation = math.sqrt(np.mean(codes[:, column].astype(float) ** 2) + 1e-3)
        which = round(4 * math.log2(deviation))
        for grid in (0, 1):
            found = codes[:, column][grids[:, column] == grid].tolist()
            groups.setdefault((which, grid), Counter()).update(found)
    bits = sum(
        -count * math.log2(count / group.total())
        for group in groups.values()
        for count in group.values()
    )
    assert entropy(coded) == pytest.approx(bits)


def test_weights_of_nothing_take_no_bits() -> None:
    flat = TrellisWeight(
        8, np.zeros((20, 9), np.int8), 0.01, np.zeros(20, np.int8), np.zeros(9, np.int8)
    )
    assert entropy(flat) == 0


def test_a_plan_is_a_value() -> None:
    """The same input, the same plan and codes; and scaling leaves the plan alone."""
    weight, found = case(24, 40, 7)
    one, two = (design(weight, found, Role.MATRIX) for _ in range(2))
    assert to_stepped(weight, one, 0.1, 8) == to_stepped(weight, two, 0.1, 8)
    base_step = one.base_step
    assert isinstance(one.scaled(2.0), Design)
    assert one.scaled(2.0).base_step == 2 * base_step
    assert one.base_step == base_step


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_weights_are_coded_together_as_alone(penalty: float) -> None:
    shapes = [(40, 24), (40, 24), (24, 40), (40, 24), (24, 40)]
    roles = [Role.MATRIX] * 4 + [Role.TABLE]
    items = []
    for seed, (shape, role) in enumerate(zip(shapes, roles, strict=True)):
        weight, found = case(*shape, seed, role)  # rows of a table have no order: coded alone
        items.append((weight, design(weight, found, role), 0.05 * (1 + seed)))
    assert {plan.order is None for _, plan, _ in items} == {True, False}
    for states in (1, 8):
        together = all_to_stepped(items, states, penalty)
        assert together == [to_stepped(*item, states, penalty) for item in items]
    assert all_to_stepped([], 8) == []


def test_one_row_of_outliers_does_not_coarsen_the_others() -> None:
    """Codes end at 127: the row that needs more gets wider steps, and it alone."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=draw)
    weight[5] *= 6
    found = Sensitivity(torch.eye(64).double(), torch.ones(32).double(), None)
    plan = design(weight, found, Role.MATRIX)
    usual = float(weight.square().mean().sqrt())
    coded = to_stepped(weight, plan, usual / 40 / plan.base_step, 8)
    error = (weight - torch.from_numpy(coded.decoded())).square().mean(1).sqrt()
    others = torch.arange(32) != 5
    assert int(coded.rows[5]) > int(coded.rows[0])
    assert float(error[others].max()) < 0.5 * float(error[5])
    assert float(error[others].mean()) < usual / 60
    assert float(error[5]) < float(weight[5].abs().max()) / 100
