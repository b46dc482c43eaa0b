"""Frequency tables: any bytes make a valid one, and the ones we write cost next to nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpt.artifact import rans, tables
from segpt.errors import ArtifactError


def gaussian(sigma: float, count: int) -> NDArray[np.int64]:
    random = np.random.default_rng(0)
    codes = np.clip(np.round(random.standard_normal(count) * sigma), -127, 127).astype(np.int8)
    return np.bincount(codes.view(np.uint8), minlength=256)[None, :]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 255), st.floats(0, 1))
def test_any_levels_make_a_table(seed: int, largest: int, used: float) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(0, largest + 1, (1, 256)).astype(np.uint8)
    levels[random.random((1, 256)) > used] = 0
    levels[0, [0, 128]] = 1, 0
    found = tables.frequencies(levels)
    assert found.sum() == rans.TOTAL
    assert np.array_equal(found > 0, levels > 0)


def test_the_most_frequent_symbol_can_pay_for_all_rare_ones() -> None:
    levels = np.full((255, 256), 255, np.uint8)
    for rare, row in enumerate(levels):
        row[1 : rare + 1] = 1
        row[128] = 0
    found = tables.frequencies(levels)
    assert (found.sum(axis=1) == rans.TOTAL).all()
    assert np.array_equal(found > 0, levels > 0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 5), st.sampled_from([1, 2]), st.booleans())
def test_levels_come_back(seed: int, count: int, stride: int, symmetric: bool) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, (count, 256)).astype(np.uint8)
    for row in levels:
        beyond = int(random.integers(1, 129))
        row[beyond : 257 - beyond] = 0
        row[0] |= 1
        if symmetric:
            row[:128:-1] = row[1:128]
    data = tables.write(levels, stride)
    assert np.array_equal(tables.read(data, count, stride), levels)
    assert tables.write(tables.read(data, count, stride), stride) == data
    found, end = tables.read_some(data + b"more", count, stride)
    assert np.array_equal(found, levels)
    assert end == len(data)


def test_symmetric_tables_take_half_the_bytes() -> None:
    levels = tables.levels(gaussian(3.0, 10_000) + gaussian(3.0, 10_000)[:, -np.arange(256)])
    reach = int(np.flatnonzero(levels[0, :128]).max())
    assert len(tables.write(levels)) == 2 + reach + 1
    levels[0, 1] += 1
    assert len(tables.write(levels)) == 2 + 2 * reach + 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.4, 6.3, 40.0])
def test_tables_are_small_and_close_to_the_counts(sigma: float) -> None:
    counts = gaussian(sigma, 100_000)
    levels = tables.levels(counts)
    shares = counts[counts > 0] / counts.sum()
    ideal = -(shares * np.log2(shares)).sum() * counts.sum()
    paid = (counts * tables.costs(tables.frequencies(levels))).sum() / tables.UNIT
    assert paid < ideal + 0.0006 * counts.sum()
    assert len(tables.write(levels)) <= 3 + 2 * np.flatnonzero(counts[0, :128]).max() + 2


def test_prices_are_those_of_the_counts_by_themselves() -> None:
    assert tables.prices(np.array([0, 8, 8]))[1:].tolist() == [tables.UNIT] * 2
    assert tables.prices(np.array([5, 0])).tolist() == [0, 14 * tables.UNIT]


def test_damaged_tables_are_refused() -> None:
    data = tables.write(tables.levels(gaussian(3.0, 1000)))
    for size in range(len(data)):
        with pytest.raises(ArtifactError):
            tables.read(data[:size], 1)
    with pytest.raises(ArtifactError, match="length"):
        tables.read(data + b"\0", 1)
    with pytest.raises(ArtifactError, match="beyond 127"):
        tables.read(bytes([128]) + data[1:], 1)
    with pytest.raises(ArtifactError, match="no symbol"):
        tables.read(b"\0\0\0", 1)
    with pytest.raises(ArtifactError, match="lopsided"):
        tables.read(b"\0\2\1", 1)
    with pytest.raises(ArtifactError, match="length"):
        tables.read(b"\0\1\1\0", 1)
