"""Trellis-coded quantization: two interleaved grids, and a machine that says which one is next.

A code k stands for the point 2k on the even grid and for 2k - sign(k) on the odd one, in units of
the step. The parities of the codes before it drive a shift register that chooses between the
two, so that the encoder can steer towards the grid that suits the next weight: vector
quantization at the price of a scalar code (Marcellin and Fischer 1990; as "dependent
quantization" in VVC, Schwarz et al. 2019). With one state there is one grid, the point of k is k.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Machine(NamedTuple):
    """Shift register of the last bits b, the newest lowest. Per state, the grid and two successors.

    The bit that follows a code is its parity, xored with the register's bits under a mask; the
    grid of the next code is the parity of the register's bits under another.
    """

    states: int
    grid: NDArray[np.uint8]  # (states,), 0 even and 1 odd
    following: NDArray[np.uint8]  # (states, 2), by the parity of the code


# Masks (grid, feedback) with the least squared error on Gaussian samples at 2 to 4 bits.
_MASKS = {4: (1, 2), 8: (1, 6), 16: (3, 10)}
STATES = (1, *_MASKS)


def machine(states: int) -> Machine:
    """The machine with 1, 4, 8 or 16 states; state 0 is where every row begins."""
    if states == 1:
        return Machine(1, np.zeros(1, np.uint8), np.zeros((1, 2), np.uint8))
    grid, feedback = _MASKS[states]
    return shift_register(states, grid, feedback)


def shift_register(states: int, grid: int, feedback: int) -> Machine:
    """A machine by its masks."""
    numbers = range(states)
    following = [[s << 1 & states - 1 | p ^ _parity(s & feedback) for p in (0, 1)] for s in numbers]
    return Machine(
        states,
        np.array([_parity(s & grid) for s in numbers], np.uint8),
        np.array(following, np.uint8),
    )


def points(codes: NDArray[np.int8], states: int) -> NDArray[np.int16]:
    """What codes (rows, columns) stand for, in steps; each row is a path from state 0."""
    if states == 1:
        return codes.astype(np.int16)
    doubled = 2 * codes.astype(np.int16)
    return doubled - np.sign(codes).astype(np.int16) * grids(codes, states)


def grids(codes: NDArray[np.int8], states: int) -> NDArray[np.uint8]:
    """The grid that each code (rows, columns) is on."""
    m = machine(states)
    parity = np.ascontiguousarray((codes & 1).T)
    grid = np.zeros(parity.shape, np.uint8)
    following, state = m.following.ravel(), np.zeros(codes.shape[0], np.uint8)
    for j, column in enumerate(parity):
        grid[j] = m.grid[state]
        state = following[2 * state + column.view(np.uint8)]
    return grid.T


def _parity(bits: int) -> int:
    return bits.bit_count() & 1
