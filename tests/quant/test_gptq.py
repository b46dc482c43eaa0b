"""GPTQ against its definition, against rounding to nearest, and on Hessians that fail."""

import pytest
import torch
from torch import Tensor

from segpt.config.quant import CLIP
from segpt.quant.gptq import gptq, inverse_factor, output_error
from segpt.quant.grid import decode, nearest, scales, to_grid


def inputs(columns: int, generator: torch.Generator, tokens: int = 256) -> Tensor:
    """Correlated inputs (tokens, columns) whose channels differ in size."""
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    return torch.randn(tokens, columns, generator=generator) @ mixing


def case(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = inputs(columns, generator)
    return torch.randn(rows, columns, generator=generator), (x.T @ x).double() / len(x)


def definition(weight: Tensor, hessian: Tensor, scale: Tensor, bits: int, damping: float) -> Tensor:
    """Algorithm 1 of the paper, column by column in float64, with the decoded stored weights."""
    identity = torch.eye(len(hessian), dtype=torch.float64)
    hessian = hessian + damping * hessian.diagonal().mean() * identity
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    left, codes = weight.double().clone(), torch.zeros_like(weight, dtype=torch.int8)
    for j in range(weight.size(1)):
        codes[:, j] = nearest(left.float(), scale, bits)[:, j]
        stored = torch.from_numpy(to_grid(codes, scale, bits).decoded())[:, j]
        error = (left[:, j] - stored) / factor[j, j]
        left[:, j:] -= error[:, None] * factor[j, j:]
    return codes


def total(weight: Tensor, codes: Tensor, scale: Tensor, x: Tensor) -> float:
    """The squared norm of (W - Q) X."""
    return float(((weight - decode(codes, scale)) @ x.T).double().square().sum())


@pytest.mark.parametrize("seed", range(40))
def test_beats_nearest_on_correlated_inputs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = inputs(48, generator)
    weight = torch.randn(24, 48, generator=generator)
    bits, group = 3 + seed % 6, (None, 16)[seed % 2]
    scale = scales(weight, bits, 4.0, group)
    found = gptq(weight, x.T @ x / len(x), scale, bits, act_order=seed % 3 > 0, block=16)
    assert found.damping == 0.01
    assert total(weight, found.codes, scale, x) < total(
        weight, nearest(weight, scale, bits), scale, x
    )


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_no_row_is_worse_than_nearest(bits: int) -> None:
    for seed in range(60):
        rows, columns = 1 + seed % 7, 2 + seed % 29
        weight, hessian = case(rows, columns, seed)
        weight *= torch.logspace(0, 1.5, columns)  # columns that are clipped
        scale = scales(weight, bits, 1.5)
        found = gptq(weight, hessian, scale, bits)
        ours = output_error(weight - decode(found.codes, scale), hessian)
        theirs = output_error(weight - decode(nearest(weight, scale, bits), scale), hessian)
        assert (ours <= theirs).all()


KINDS = ("usual", "rank 1", "zero", "dead", "indefinite", "negative", "nan", "huge")


def any_hessian(kind: str, columns: int, generator: torch.Generator) -> Tensor:
    square = torch.randn(columns, columns, generator=generator)
    hessian = {
        "usual": square.T @ square,
        "rank 1": torch.outer(square[0], square[0]),
        "zero": torch.zeros(columns, columns),
        "dead": square.T @ square,
        "indefinite": square + square.T,
        "negative": -(square.T @ square),
        "nan": square.T @ square + torch.nan,
        "huge": square.T @ square * 1e38,
    }[kind]
    if kind == "dead":
        hessian[:, 1] = hessian[1] = 0
    return hessian


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_hessian_gives_codes(kind: str) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        columns = 3 + seed
        weight = torch.randn(5, columns, generator=generator)
        hessian = any_hessian(kind, columns, generator)
        scale = scales(weight, 6, 12.85)
        found = gptq(weight, hessian, scale, 6)
        assert found.codes.dtype == torch.int8
        assert found.codes.shape == weight.shape
        assert found.codes.abs().max() <= 31
        if kind in ("negative", "nan"):
            assert found.damping is None
            assert torch.equal(found.codes, nearest(weight, scale, 6))
        if kind in ("dead", "zero"):
            assert found.damping == 0.01
            assert torch.equal(found.codes[:, 1], nearest(weight, scale, 6)[:, 1])


@pytest.mark.slow
def test_the_error_is_never_above_that_of_rounding_to_nearest() -> None:
    """Five hundred weights of all shapes, under Hessians with and without a factor."""
    for seed in range(500):
        generator = torch.Generator().manual_seed(seed)
        rows, columns, bits = 1 + seed % 9, 2 + seed % 31, 2 + seed % 7
        weight = torch.randn(rows, columns, generator=generator)
        weight *= torch.logspace(0, seed % 3, columns)  # some with columns that are clipped
        hessian = any_hessian(KINDS[seed % 8], columns, generator).double()
        scale = scales(weight, bits, CLIP[bits], (None, 4)[seed % 2])
        found = gptq(weight, hessian, scale, bits, act_order=seed % 5 > 0)
        diagonal = hessian.diagonal()
        alive = weight.masked_fill(diagonal == 0, 0.0)
        ours, theirs = (
            output_error(alive - decode(codes, scale), hessian)
            for codes in (found.codes, nearest(weight, scale, bits))
        )
        ours, theirs = ours.nan_to_num(0.0), theirs.nan_to_num(0.0)
        assert (ours <= theirs + 1e-5 * theirs.abs()).all(), seed


@pytest.mark.parametrize(("lowest", "expected"), [(-0.005, 0.01), (-0.05, 0.1), (-5.0, 10.0)])
def test_damping_rises_until_the_hessian_is_definite(lowest: float, expected: float) -> None:
    weight, _ = case(4, 16, 0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    values = torch.ones(16)
    values[0] = lowest
    values[1:] = (16 - lowest) / 15  # so that the mean of the diagonal is 1
    hessian = basis @ values.diag() @ basis.T
    found = gptq(weight, hessian, scales(weight, 6, 12.85), 6)
    assert found.damping == pytest.approx(expected)


def test_beyond_the_last_damping_it_rounds_to_nearest() -> None:
    weight, _ = case(4, 4, 0)
    hessian = torch.diag(torch.tensor([100.0, -96.0, 0.5, 0.5]))
    scale = scales(weight, 6, 12.85)
    found = gptq(weight, hessian, scale, 6, damping=0.001)
    assert found.damping is None
    assert torch.equal(found.codes, nearest(weight, scale, 6))


@pytest.mark.parametrize("group", [None, 8])
def test_matches_the_definition_with_stored_scales(group: int | None) -> None:
    """With unrounded scales in the error feedback some of the 8-bit codes differ."""
    for seed in range(5):
        weight, hessian = case(32, 48, seed)
        scale = scales(weight, 8, 4.0, group)
        codes = gptq(weight, hessian, scale, 8, act_order=False).codes
        swept = ~(codes == nearest(weight, scale, 8)).all(1)
        assert swept.sum() >= 28
        assert torch.equal(codes[swept], definition(weight, hessian, scale, 8, 0.01)[swept])


@pytest.mark.parametrize("block", [1, 7, 64, 128, 1000])
def test_blocks_do_not_change_codes(block: int) -> None:
    weight, hessian = case(32, 192, 5)
    scale = scales(weight, 5, 7.5, 32)
    expected = gptq(weight, hessian, scale, 5, block=192).codes
    assert torch.equal(gptq(weight, hessian, scale, 5, block=block).codes, expected)


def test_act_order_permutes_columns_with_their_scales_and_back() -> None:
    weight, hessian = case(16, 32, 2)
    order = hessian.diagonal().argsort(descending=True)
    scale = scales(weight, 6, 12.85, 1)  # one scale per column, so that mixing them up shows
    ordered = gptq(weight, hessian, scale, 6, act_order=True).codes
    by_hand = gptq(
        weight[:, order], hessian[order][:, order], scale[:, order], 6, act_order=False
    ).codes
    assert torch.equal(ordered[:, order], by_hand)
    assert not torch.equal(ordered, gptq(weight, hessian, scale, 6, act_order=False).codes)


def test_act_order_of_a_sorted_hessian_changes_nothing() -> None:
    weight, hessian = case(16, 32, 3)
    order = hessian.diagonal().argsort(descending=True)
    hessian = hessian[order][:, order]
    scale = scales(weight, 6, 12.85)
    on, off = (gptq(weight, hessian, scale, 6, act_order=a).codes for a in (True, False))
    assert torch.equal(on, off)


@pytest.mark.parametrize("dead", [0, 3])
def test_the_size_of_the_hessian_does_not_matter(dead: int) -> None:
    weight, hessian = case(16, 32, 8)
    hessian[:dead] = hessian[:, :dead] = 0
    scale = scales(weight, 6, 12.85)
    small, large = (gptq(weight, hessian * size, scale, 6).codes for size in (2.0**-30, 1.0))
    assert torch.equal(small, large)


def test_a_diagonal_hessian_is_rounding_to_nearest() -> None:
    weight, _ = case(16, 32, 4)
    scale = scales(weight, 4, 4.0)
    found = gptq(weight, torch.rand(32).diag() + torch.eye(32), scale, 4)
    assert torch.equal(found.codes, nearest(weight, scale, 4))


def test_inverse_factor() -> None:
    _, hessian = case(1, 40, 6)
    factor = inverse_factor(hessian, 0.01)
    identity = torch.eye(40, dtype=torch.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * identity
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor @ damped, identity, atol=1e-9)


@pytest.mark.parametrize("act_order", [True, False])
def test_inputs_that_never_occurred_are_rounded_to_nearest(act_order: bool) -> None:
    for seed in range(20):
        weight, hessian = case(16, 32, seed)
        dead = torch.zeros(32, dtype=torch.bool)
        dead[seed % 5 :: 3] = True
        hessian[dead] = hessian[:, dead] = 0
        scale = scales(weight, 2 + seed % 7, 4.0, (None, 8)[seed % 2])
        found = gptq(weight, hessian, scale, 2 + seed % 7, act_order=act_order, block=8)
        assert torch.equal(found.codes[:, dead], nearest(weight, scale, 2 + seed % 7)[:, dead])
        # What an unused input weighs changes nothing of the others.
        lighter = gptq(
            weight.masked_fill(dead, 0.0), hessian, scale, 2 + seed % 7, act_order=act_order
        )
        assert torch.equal(found.codes[:, ~dead], lighter.codes[:, ~dead])


def test_arguments_are_left_alone() -> None:
    weight, hessian = case(4, 8, 7)
    hessian[0] = hessian[:, 0] = 0
    before = weight.clone(), hessian.clone()
    gptq(weight, hessian, scales(weight, 6, 12.85), 6)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
