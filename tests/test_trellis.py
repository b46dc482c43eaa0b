"""The trellis against its rule, restated one code at a time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from segpt.trellis import grids, machine, points, shift_register

STATES = (1, 4, 8, 16)
MASKS = {4: (0b1, 0b10), 8: (0b1, 0b110), 16: (0b11, 0b1010)}  # of the grid, of the feedback


def odd(bits: int) -> int:
    return bits.bit_count() % 2


def path(codes: list[int], states: int) -> tuple[list[int], list[int]]:
    """The points and the grids of one row."""
    if states == 1:
        return codes, [0] * len(codes)
    grid_mask, feedback = MASKS[states]
    register, found, where = 0, [], []
    for code in codes:
        grid = odd(register & grid_mask)
        sign = (code > 0) - (code < 0)
        found.append(2 * code - sign * grid)
        where.append(grid)
        bit = code % 2 ^ odd(register & feedback)
        register = (register * 2 + bit) % states
    return found, where


@pytest.mark.slow
@pytest.mark.parametrize("states", STATES)
@given(
    codes=arrays(
        np.int8,
        st.tuples(st.integers(0, 5), st.integers(1, 40)),
        elements=st.integers(-127, 127),
        fill=st.nothing(),
    )
)
def test_points_and_grids_follow_the_register(states: int, codes: NDArray[np.int8]) -> None:
    expected = [path([int(k) for k in row], states) for row in codes]
    found, where = points(codes, states), grids(codes, states)
    assert found.dtype == np.int16
    assert where.dtype == np.uint8
    assert found.shape == where.shape == codes.shape
    assert found.tolist() == [row[0] for row in expected]
    assert where.tolist() == [row[1] for row in expected]


@pytest.mark.parametrize("states", STATES)
def test_memory_order_does_not_matter(states: int) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (64, 6)).astype(np.int8)
    columns_first = np.asfortranarray(codes)
    wider = np.repeat(codes, 2, axis=1)[:, ::2]
    for other in (columns_first, wider):
        assert np.array_equal(points(other, states), points(codes, states))
        assert np.array_equal(grids(other, states), grids(codes, states))


@pytest.mark.parametrize("states", STATES[1:])
def test_both_grids_together_hold_every_point_and_zero_is_on_both(states: int) -> None:
    """So that no sequence of codes is invalid, and weights of nothing cost nothing."""
    m = machine(states)
    assert m.grid[0] == 0
    assert sorted(np.bincount(m.grid)) == [states // 2] * 2
    for state in range(states):
        assert set(m.following[state]) <= set(range(states))
        assert m.following[state, 0] != m.following[state, 1]
        assert m.grid[m.following].sum() == states
    assert sorted(m.following.ravel()) == sorted([*range(states)] * 2)
    zeros = np.zeros((1, 50), np.int8)
    assert not points(zeros, states).any()


def test_every_short_path_decodes_to_its_own_points() -> None:
    """Codes can be recovered from points: the trellis loses nothing."""
    for states in STATES:
        codes = np.array(list(itertools.product(range(-2, 3), repeat=4)), np.int8)
        found = points(codes, states)
        assert len(np.unique(found, axis=0)) == len(codes)


@pytest.mark.parametrize("states", STATES[1:])
def test_the_machines_are_the_registers_of_their_masks(states: int) -> None:
    found, expected = machine(states), shift_register(states, *MASKS[states])
    assert found.states == expected.states == states
    assert np.array_equal(found.grid, expected.grid)
    assert np.array_equal(found.following, expected.following)


def test_only_known_machines() -> None:
    with pytest.raises(KeyError):
        machine(2)
