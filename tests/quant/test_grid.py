"""Grids: their width, their symmetry, and that what is stored is what was used."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segpt.errors import CheckpointError
from segpt.quant.grid import decode, largest_code, nearest, scales, to_grid
from segpt.values import UniformWeight


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def rounded(weight: Tensor, bits: int, k: float, group: int | None = None) -> UniformWeight:
    scale = scales(weight, bits, k, group)
    return to_grid(nearest(weight, scale, bits), scale, bits)


def entropy(grid: UniformWeight) -> float:
    _, counts = np.unique(grid.codes, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def relative_error(weight: Tensor, grid: UniformWeight) -> float:
    change = weight.numpy() - grid.decoded()
    return float((change**2).sum() / (weight.numpy() ** 2).sum())


@pytest.mark.parametrize(
    ("bits", "k", "rate", "error"),
    [(6, 12.85, 3.33, 0.0143), (6, 2.5, 5.63, 0.0029), (8, 20.0, 4.72, 0.0021)],
)
def test_rate_and_distortion_of_gaussian_rows(
    bits: int, k: float, rate: float, error: float
) -> None:
    weight = gaussian(256, 1024)
    grid = rounded(weight, bits, k)
    assert entropy(grid) == pytest.approx(rate, abs=0.03)
    assert relative_error(weight, grid) == pytest.approx(error, rel=0.04)


def test_scale_is_k_deviations_over_the_largest_code() -> None:
    weight = gaussian(4, 4096)
    expected = 12.85 * weight.std(1, correction=0) / 31
    assert torch.allclose(scales(weight, 6, 12.85)[:, 0].float(), expected, rtol=1e-3)


def test_nothing_is_clipped_at_wide_k_and_the_tail_is_at_narrow_k() -> None:
    weight = gaussian(64, 1024)
    wide = torch.from_numpy(rounded(weight, 6, 12.85).codes.astype(np.int32))
    assert wide.abs().max() < 31
    narrow = torch.from_numpy(rounded(weight, 6, 2.5).codes.astype(np.int32))
    assert (narrow.abs() == 31).float().mean() == pytest.approx(0.0124 + 0.0007, abs=0.002)


def test_grid_is_symmetric_and_not_centred_on_the_row() -> None:
    row = 1.0 + 0.1 * gaussian(1, 512)
    scale = scales(row, 8, 4.0)
    codes = nearest(row, scale, 8)
    assert (decode(codes, scale) - row).abs().max() <= scale.float() / 2
    assert torch.equal(scales(-row, 8, 4.0), scale)
    assert torch.equal(nearest(-row, scale, 8), -codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_bound_the_codes(bits: int) -> None:
    grid = rounded(gaussian(64, 256), bits, 1.0)
    assert grid.bits == bits
    assert len(np.unique(grid.codes)) == 2**bits - 1
    assert np.abs(grid.codes.astype(np.int32)).max() == largest_code(bits) == 2 ** (bits - 1) - 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    bits=st.integers(2, 8),
    group=st.none() | st.integers(1, 50),
    size=st.floats(1e-6, 1e3),
    seed=st.integers(0, 1000),
)
def test_stored_grid_decodes_to_the_rounded_weight(
    rows: int, columns: int, bits: int, group: int | None, size: float, seed: int
) -> None:
    weight = gaussian(rows, columns, seed) * size
    scale = scales(weight, bits, 8.0, group)
    codes = nearest(weight, scale, bits)
    decoded = to_grid(codes, scale, bits).decoded()
    assert np.array_equal(decoded.view(np.uint32), decode(codes, scale).numpy().view(np.uint32))
    assert scale.dtype == torch.float16
    assert float(scale.min()) >= 2.0**-14
    assert codes.dtype == torch.int8


def test_codes_are_made_with_the_stored_scale() -> None:
    """The float32 scale differs from the float16 one, and so would a few codes."""
    weight = gaussian(64, 1024, seed=3)
    scale = scales(weight, 8, 4.0)
    exact = 4.0 / 127 * weight.square().mean(1, keepdim=True).sqrt()
    codes = nearest(weight, scale, 8)
    assert not torch.equal((weight / exact).round().clamp(-127, 127).to(torch.int8), codes)
    error = (decode(codes, scale) - weight).abs()
    inside = weight.abs() < 127 * scale.float()
    assert (error <= scale.float() * 0.5001)[inside].all()


@pytest.mark.parametrize("bits", [6, 8])
def test_small_rows_survive(bits: int) -> None:
    weight = torch.cat([gaussian(1, 256) * 1e-3, torch.full((1, 256), 1e-3), gaussian(1, 256)])
    grid = rounded(weight, bits, {6: 12.85, 8: 20.0}[bits])
    for row in range(2):
        change = weight[row].numpy() - grid.decoded()[row]
        assert (change**2).sum() < 0.05 * float(weight[row].square().sum())


def test_zero_rows_encode_zeros_with_a_normal_scale() -> None:
    grid = rounded(torch.zeros(2, 8), 6, 12.85)
    assert not grid.codes.any()
    assert (grid.scales >= np.finfo(np.float16).tiny).all()


@pytest.mark.parametrize("value", [1e7, 1e30, float("inf"), float("nan")])
def test_a_scale_that_float16_cannot_hold_is_refused(value: float) -> None:
    weight = torch.ones(3, 8)
    weight[1] = value
    with pytest.raises(CheckpointError, match="row 1"):
        scales(weight, 6, 12.85)


@pytest.mark.parametrize(
    ("columns", "group", "spans"), [(10, 4, 3), (10, 6, 2), (9, 1, 9), (5, 8, 1)]
)
def test_groups_have_scales_of_their_own(columns: int, group: int, spans: int) -> None:
    weight = gaussian(3, columns) * torch.linspace(1, 9, columns)
    scale = scales(weight, 6, 12.85, group)
    assert scale.shape == (3, spans)
    width = -(-columns // spans)
    assert width <= group
    for span in range(spans):
        own = scales(weight[:, span * width : (span + 1) * width], 6, 12.85)
        assert torch.equal(scale[:, span : span + 1], own)


def test_the_grid_of_a_group_ends_at_its_furthest_weight() -> None:
    """At 4 deviations it would end at about twice that, and half of the codes stay unused."""
    weight = torch.randn(64, 320, generator=torch.Generator().manual_seed(0))
    furthest = weight.view(64, 10, 32).abs().amax(2)
    scale = scales(weight, 4, 4.0, 32)
    assert torch.allclose(7 * scale.float(), furthest, rtol=1e-3)
    narrow = weight.clone()
    narrow[:, ::32] = 20.0  # far beyond 4 deviations of its group: that is clipped as ever
    assert (7 * scales(narrow, 4, 2.0, 32).float() < 10.0).all()
    by_deviation = scales(weight.view(640, 32), 4, 4.0).view(64, 10)
    errors = [
        (weight - decode(nearest(weight, scale, 4), scale)).square().mean()
        for scale in (scale, by_deviation)
    ]
    assert errors[0] < 0.4 * errors[1]
