"""Weights to pack: codes as quantizers make them, with steps of all kinds."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.values import Stepped


def trellis_codes(
    random: np.random.Generator, scales: NDArray[np.float64], states: int
) -> NDArray[np.int8]:
    """Gaussian weights with ``scales`` (rows, columns) in steps, each to its nearest point."""
    m = trellis.machine(states)
    codes = np.empty(scales.shape, np.int8)
    state = np.zeros(len(scales), np.intp)
    for j, column in enumerate(scales.T):
        wanted = random.standard_normal(len(scales)) * column
        if states == 1:
            nearest = np.abs(wanted).round()
        else:
            odd = m.grid[state]
            nearest = np.floor((np.abs(wanted) + odd) / 2 + 0.5)
            nearest *= (odd == 0) | (np.abs(wanted) >= 0.5)
        codes[:, j] = np.sign(wanted) * nearest.clip(0, 127)
        state = m.following[state, codes[:, j] & 1].astype(np.intp)
    return codes


def make_stepped(
    random: np.random.Generator,
    shape: tuple[int, int],
    states: int,
    sigma: float = 4.0,
    spread: float = 0.15,
    explained: float = 0.8,
) -> Stepped:
    """A stepped weight whose codes vary by column.

    ``sigma`` is the standard deviation of the points, ``spread`` how much its logarithm varies
    by column, of which the steps explain the fraction ``explained``.
    """
    rows, columns = shape
    exponents = np.round(random.standard_normal(columns) * spread * explained * 8 / np.log(2))
    others = random.standard_normal(columns) * spread * np.sqrt(1 - explained**2)
    scales = sigma * np.exp(others) * 2.0 ** (-exponents / 8)
    codes = trellis_codes(random, np.broadcast_to(scales, shape), states)
    step = float(np.float32(0.1 / sigma))
    return Stepped(states, codes, step, np.zeros(rows, np.int8), exponents.astype(np.int8))


def with_rows(random: np.random.Generator, weight: Stepped, parts: int) -> Stepped:
    """The weight with steps that differ by row, a centre (1) and rows that share values (2)."""
    columns = weight.shape[1]
    rows = random.integers(-9, 10, weight.shape[0]).astype(np.int8)
    weight = replace(weight, rows=rows)
    if parts & 1:
        weight = replace(weight, centre=random.standard_normal(columns).astype(np.float16))
    if parts & 2 and len(rows) > 1:
        stored = random.random(len(rows)) < 0.7
        stored[:2] = True, False
        shared = random.standard_normal(columns).astype(np.float16)
        codes = weight.codes[stored]
        weight = replace(weight, codes=codes, rows=rows[stored], stored=stored, shared=shared)
    return weight
