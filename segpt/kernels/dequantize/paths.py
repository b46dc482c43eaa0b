"""The grid of a code without the path before it: what a machine does is linear in parities.

The register of a machine (:mod:`segpt.trellis`) is a vector of bits, and each step multiplies it by
a matrix and adds the parity of a code. So the grid of code t is the sum modulo 2 of the parities of
those codes before it from which an impulse gets there. An impulse comes back every few steps, the
period T, so that it is enough to know, for each remainder of T, the sum of the parities at places
with that remainder: T bits, which a scan adds up. A mask says which of them count for code t.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.errors import SegptError

_LONGEST = 30  # bits that a scan adds up


@cache
def masks(states: int) -> NDArray[np.int32]:
    """Which remainders count for a code at each of them, (period,).

    Raises:
        SegptError: if the register has no short period.
    """
    response = _response(states)
    period = len(response)
    return np.array(
        [
            sum(int(response[(at - before - 1) % period]) << before for before in range(period))
            for at in range(period)
        ],
        np.int32,
    )


def _response(states: int) -> list[int]:
    """The grids after a code of odd parity among even ones, from state 0, for one period."""
    machine = trellis.machine(states)
    first = state = int(machine.following[0, 1])
    grids: list[int] = []
    while len(grids) < _LONGEST:
        grids.append(int(machine.grid[state]))
        state = int(machine.following[state, 0])
        if state == first:
            return grids
    raise SegptError(f"a machine with {states} states has no period of at most {_LONGEST}")
