"""Weights to pack: codes as quantizers make them, with steps of all kinds."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpt import trellis
from segpt.values import TrellisWeight


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
) -> TrellisWeight:
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
    return TrellisWeight(states, codes, step, np.zeros(rows, np.int8), exponents.astype(np.int8))


def with_rows(random: np.random.Generator, weight: TrellisWeight, parts: int) -> TrellisWeight:
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


def stepped(seed: int, states: int = 8, **changes: Any) -> TrellisWeight:
    """Five rows of seven, four of them stored, all fields at random."""
    draw = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "states": states,
        "codes": draw.integers(-127, 128, (4, 7)).astype(np.int8),
        "step": float(np.float32(draw.uniform(1e-4, 1e-2))),
        "rows": draw.integers(-120, 121, 4).astype(np.int8),
        "columns": draw.integers(-120, 121, 7).astype(np.int8),
        "centre": draw.normal(size=7).astype(np.float16),
        "stored": np.array([True, True, False, True, True]),
        "shared": draw.normal(size=7).astype(np.float16),
    }
    return TrellisWeight(**fields | changes)
