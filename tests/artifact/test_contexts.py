"""Classes: found where there is something to find, and worth what they cost."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from segpt.artifact import codec, contexts, rans
from segpt.errors import ArtifactError

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


def size(tensors: list[Codes]) -> int:
    """Bytes of everything needed to get the codes back."""
    fit = contexts.choose(tensors)
    symbols = np.concatenate([codes.view(np.uint8).ravel() for codes in tensors])
    selected = fit.contexts.selected([(codes.shape[0], codes.shape[1]) for codes in tensors])
    stream = rans.encode(symbols, selected, fit.contexts.tables, 64)
    assert abs(8 * len(stream) - fit.bits) < 40 * 64 + 0.0005 * fit.bits
    return len(stream) + sum(len(codec.squeeze(part).data) for part in contexts.write(fit.contexts))


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
    chosen = contexts.choose([same, codes]).contexts
    assert [len(columns) > 1 for columns in chosen.columns] == [False, True]
    assert [len(rows) > 1 for rows in chosen.rows] == [False, False]


def test_rows_are_found() -> None:
    codes, _ = gaussian(np.random.default_rng(2), (512, 512), 2.4, rows=0.5)
    chosen = contexts.choose([codes]).contexts
    assert (len(chosen.rows[0]), len(chosen.columns[0])) == (512, 1)


def test_rows_and_columns_are_found_together() -> None:
    random = np.random.default_rng(3)
    codes, _ = gaussian(random, (512, 512), 2.4, rows=0.5, columns=0.5)
    shuffled = random.permutation(codes.ravel()).reshape(codes.shape)
    assert size([codes]) < 0.92 * size([shuffled])
    chosen = contexts.choose([codes]).contexts
    assert (len(chosen.rows[0]), len(chosen.columns[0])) == (512, 512)


def test_tensors_share_tables() -> None:
    random = np.random.default_rng(4)
    tensors = [gaussian(random, (64, 64), 2.4, columns=0.3)[0] for _ in range(16)]
    together = contexts.choose(tensors).contexts
    apart = sum(len(contexts.choose([codes]).contexts.levels) for codes in tensors)
    assert len(together.levels) < apart / 2


@pytest.mark.parametrize("code", [-127, -1, 0, 1, 127])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (20, 20)])
def test_constant_tensors_take_no_words(code: int, shape: tuple[int, int]) -> None:
    fit = contexts.choose([np.full(shape, code, np.int8)])
    assert fit.bits == 0


def test_sections_come_back() -> None:
    random = np.random.default_rng(5)
    tensors = [
        gaussian(random, (40, 300), 2.4, rows=1.0)[0],
        gaussian(random, (300, 40), 2.4, columns=1.0)[0],
        np.zeros((1, 7), np.int8),
        gaussian(random, (200, 200), 5.0, rows=1.0, columns=1.0)[0],
    ]
    shapes = [(codes.shape[0], codes.shape[1]) for codes in tensors]
    chosen = contexts.choose(tensors).contexts
    written = contexts.write(chosen)
    again = contexts.read(*written, shapes)
    assert contexts.write(again) == written
    assert np.array_equal(again.tables, chosen.tables)
    assert np.array_equal(again.selected(shapes), chosen.selected(shapes))
    assert len(written[0]) == sum(chosen.sizes)


def test_sections_that_do_not_fit_are_refused() -> None:
    codes, _ = gaussian(np.random.default_rng(6), (30, 200), 2.4, columns=1.0)
    classes, found = contexts.write(contexts.choose([codes]).contexts)
    shapes = [(30, 200)]
    for wrong in (b"", classes[:-1], classes + b"\0", bytes([4]) + classes[1:]):
        with pytest.raises(ArtifactError, match="classes"):
            contexts.read(wrong, found, shapes)
    for wrong in (b"", b"\0", found[:-1], found[: found[0]], b"\xff" * 256, b"\1\0" + found[2:]):
        with pytest.raises(ArtifactError, match="tables"):
            contexts.read(classes, wrong, shapes)
