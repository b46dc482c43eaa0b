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
@given(st.integers(0, 2**32), st.integers(0, 5))
def test_levels_come_back(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, (count, 256)).astype(np.uint8)
    for row in levels:
        beyond = int(random.integers(1, 129))
        row[beyond : 257 - beyond] = 0
        row[0] |= 1
    assert np.array_equal(tables.read(tables.write(levels), count), levels)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.4, 6.3, 40.0])
def test_tables_are_small_and_close_to_the_counts(sigma: float) -> None:
    counts = gaussian(sigma, 100_000)
    levels = tables.levels(counts)
    shares = counts[counts > 0] / counts.sum()
    ideal = -(shares * np.log2(shares)).sum() * counts.sum()
    paid = (counts * tables.costs(tables.frequencies(levels))).sum() / tables.UNIT
    assert paid < ideal + 0.0006 * counts.sum()
    assert len(tables.write(levels)) <= 2 + 2 * np.flatnonzero(counts[0, :128]).max() + 2


def test_entropy_counts_bits() -> None:
    assert tables.entropy(np.array([0, 8, 8])) == 16 * tables.UNIT
    assert tables.entropy(np.array([5, 0])) == 0


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
        tables.read(b"\0\0", 1)
