"""Classes: found where there is something to find, and worth what they cost."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt import trellis
from segpt.artifact import codec, context_search, contexts, stream
from segpt.artifact.contexts import Tensor
from segpt.errors import ArtifactError
from tests.artifact.weights import trellis_codes

Codes = NDArray[np.int8]


def gaussian(
    random: np.random.Generator,
    shape: tuple[int, int],
    sigma: float,
    rows: float = 0.0,
    columns: float = 0.0,
) -> tuple[Codes, NDArray[np.float64]]:
    """Rounded Gaussian codes, and the scale of each; scales vary lognormally by row and column."""
    scales = sigma * np.exp(
        rows * random.standard_normal((shape[0], 1)) + columns * random.standard_normal(shape[1])
    )
    codes = np.clip(np.round(random.standard_normal(shape) * scales), -31, 31)
    return codes.astype(np.int8), scales


def plain(codes: Codes) -> Tensor:
    """What is known of codes on a uniform grid."""
    return Tensor(1, *(np.zeros(side, np.int8) for side in codes.shape))


def choose(tensors: list[Codes]) -> context_search.Fit:
    return context_search.choose(
        tensors, [None] * len(tensors), [plain(codes) for codes in tensors]
    )


def units(found: context_search.Fit, count: int) -> list[tuple[bool, bool]]:
    """Whether each of the tensors has codes by row and by column."""
    return [(bool(mode & 3), bool(mode >> 2)) for mode in found.tables[:count]]


def size(tensors: list[Codes]) -> int:
    """Bytes of everything needed to get the codes back."""
    found = choose(tensors)
    data = stream.encode(tensors, [None] * len(tensors), found.contexts, 64)
    assert abs(8 * len(data) - found.bits) < 40 * 64 + 0.0005 * found.bits
    decoded = stream.decode(data, found.contexts, [1] * len(tensors))
    assert all(map(np.array_equal, decoded, tensors))
    return len(data) + sum(len(codec.squeeze(part).data) for part in found[1:3])


def information(codes: Codes, scales: NDArray[np.float64]) -> float:
    """Bytes that codes carry to someone who knows the scale of every column."""
    bits = 0.0
    for column, scale in zip(codes.T, scales[0], strict=True):
        values, counts = np.unique(column, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            below = -math.inf if value == -31 else (value - 0.5) / (scale * math.sqrt(2))
            above = math.inf if value == 31 else (value + 0.5) / (scale * math.sqrt(2))
            bits -= count * math.log2((math.erf(above) - math.erf(below)) / 2)
    return bits / 8


def test_a_million_weights_take_within_a_percent_of_their_information() -> None:
    codes, scales = gaussian(np.random.default_rng(0), (1024, 1024), 2.4, columns=0.2)
    assert size([codes]) < 1.01 * information(codes, scales)


def test_columns_are_found() -> None:
    random = np.random.default_rng(1)
    same, _ = gaussian(random, (512, 512), 2.4)
    codes, _ = gaussian(random, (512, 512), 2.4, columns=0.5)
    assert units(choose([same, codes]), 2) == [(False, False), (False, True)]


def test_rows_are_found() -> None:
    codes, _ = gaussian(np.random.default_rng(2), (512, 512), 2.4, rows=0.5)
    assert units(choose([codes]), 1) == [(True, False)]


def test_rows_and_columns_are_found_together() -> None:
    random = np.random.default_rng(3)
    codes, _ = gaussian(random, (512, 512), 2.4, rows=0.5, columns=0.5)
    shuffled = random.permutation(codes.ravel()).reshape(codes.shape)
    assert size([codes]) < 0.92 * size([shuffled])
    assert units(choose([codes]), 1) == [(True, True)]


def test_tensors_share_tables() -> None:
    random = np.random.default_rng(4)
    tensors = [gaussian(random, (64, 64), 2.4, columns=0.3)[0] for _ in range(16)]
    together = choose(tensors).contexts
    apart = sum(len(choose([codes]).contexts.levels) for codes in tensors)
    assert len(together.levels) < apart / 2


@pytest.mark.parametrize("code", [-127, -1, 0, 1, 127])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (20, 20)])
def test_constant_tensors_take_no_words(code: int, shape: tuple[int, int]) -> None:
    assert choose([np.full(shape, code, np.int8)]).bits < 8


def test_what_the_steps_predict_is_not_stored() -> None:
    random = np.random.default_rng(7)
    rows = random.integers(-12, 13, 400).astype(np.int8)
    columns = (random.integers(-12, 13, 300) + 60).astype(np.int8)
    scales = 40.0 * 2 ** (-(rows[:, None].astype(float) + columns - 60) / 8)
    codes = np.clip(np.round(random.standard_normal((400, 300)) * scales), -127, 127)
    tensors = [codes.astype(np.int8)]
    told = context_search.choose(tensors, [None], [Tensor(1, rows, columns)])
    untold = choose(tensors)
    assert told.classes == b""
    assert len(untold.classes) == 700
    assert told.bits < 1.002 * untold.bits


def test_grids_have_tables_of_their_own() -> None:
    random = np.random.default_rng(8)
    codes = trellis_codes(random, np.full((500, 200), 4.0), 8)
    apart = context_search.choose(
        [codes], [trellis.grids(codes, 8)], [replace(plain(codes), states=8)]
    )
    assert apart.contexts.grids == 2
    assert apart.bits < 0.995 * choose([codes]).bits


@pytest.mark.slow
@pytest.mark.parametrize("states", [1, 8])
def test_sections_come_back(states: int) -> None:
    random = np.random.default_rng(5)
    codes = [
        gaussian(random, (40, 300), 2.4, rows=1.0)[0],
        gaussian(random, (300, 40), 2.4, columns=1.0)[0],
        np.zeros((1, 7), np.int8),
        gaussian(random, (200, 200), 5.0, rows=1.0, columns=1.0)[0],
    ]
    tensors = [
        Tensor(s, *(random.integers(-120, 121, side).astype(np.int8) for side in one.shape))
        for s, one in zip((1, states, states, 1), codes, strict=True)
    ]
    grids = [
        trellis.grids(one, t.states) if t.states > 1 else None
        for one, t in zip(codes, tensors, strict=True)
    ]
    found = context_search.choose(codes, grids, tensors)
    again = contexts.read(found.classes, found.tables, tensors)
    assert np.array_equal(again.tables, found.contexts.tables)
    assert sum(again.sizes) == len(found.classes)
    data = stream.encode(codes, grids, again, 16)
    decoded = stream.decode(data, again, [t.states for t in tensors])
    assert all(map(np.array_equal, decoded, codes))


def test_sections_that_do_not_fit_are_refused() -> None:
    codes, _ = gaussian(np.random.default_rng(6), (30, 200), 2.4, columns=1.0)
    _, classes, found, _ = choose([codes])
    tensors = [plain(codes)]
    assert classes
    for wrong in (b"", classes[:-1], classes + b"\0"):
        with pytest.raises(ArtifactError, match="classes"):
            contexts.read(wrong, found, tensors)
    with pytest.raises(ArtifactError, match="classes"):
        contexts.read(classes, b"\0" + found[1:], tensors)
    far = found[:1] + b"\x01\x04" + found[3:]
    for wrong in (
        *(b"", found[:2], b"\x10" + found[1:], far, found[:-1], found + b"\0"),
        *(found[:3] + wrong for wrong in (b"", b"\0", b"\x80" * 200, b"\xff" * 200, b"\1\0")),
    ):
        with pytest.raises(ArtifactError, match="tables"):
            contexts.read(classes, wrong, tensors)


def heights(shapes: list[tuple[int, int]], lanes: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Columns of each band, and the tensor and number of rows of its pieces."""
    return [
        (band.columns, [(t, rows.stop - rows.start) for t, rows in band.pieces])
        for band in stream.bands(shapes, lanes)
    ]


def test_matrices_of_one_width_fill_lanes_together() -> None:
    shapes = [(5, 8), (3, 4), (4, 8), (1, 4), (9, 8)]
    assert heights(shapes, 8) == [
        (8, [(0, 5), (2, 3)]),
        (8, [(2, 1), (4, 7)]),
        (8, [(4, 2)]),
        (4, [(1, 3), (3, 1)]),
    ]
    assert stream.steps(shapes, 8) == 3 * 8 + 4


def test_lanes_are_as_many_as_the_number_of_steps_demands() -> None:
    assert stream.choose_lanes([(1 << 10, 64)], 1000) == 16
    assert stream.choose_lanes([(1 << 10, 64)], 256_000) == 42
    assert stream.choose_lanes([(1 << 10, 64)], 1_000_000) == 96
    assert stream.choose_lanes([(1 << 10, 64)], 3_000_000) == 100
    assert stream.choose_lanes([(1 << 17, 256)], 1000) == 128
    with pytest.raises(ArtifactError, match="too wide"):
        stream.choose_lanes([(1, stream.MOST_STEPS + 1)], 1000)
