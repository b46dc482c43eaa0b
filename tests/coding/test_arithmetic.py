"""The coder of texts: exact, at the ideal price, and always at an end."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpt.coding import arithmetic
from segpt.coding.arithmetic import (
    ArithmeticDecoder,
    ArithmeticEncoder,
    Cumulative,
    cumulative,
    price,
)
from segpt.errors import MessageError, ScoreError

Logits = NDArray[np.float32]


def make_logits(random: np.random.Generator, rows: int, symbols: int, spread: float) -> Logits:
    return (spread * random.normal(size=(rows, symbols))).astype(np.float32)


def draw(random: np.random.Generator, logits: Logits) -> list[int]:
    """One symbol of each distribution."""
    noise = random.gumbel(size=logits.shape)
    return np.argmax(logits + noise, axis=1).tolist()


def encode(borders: Sequence[Cumulative], symbols: Sequence[int]) -> bytes:
    encoder = ArithmeticEncoder()
    for each, symbol in zip(borders, symbols, strict=True):
        encoder.write(each, symbol)
    return encoder.finish()


def decode(data: bytes, borders: Sequence[Cumulative]) -> list[int]:
    decoder = ArithmeticDecoder(data)
    symbols = [decoder.read(each) for each in borders]
    decoder.finish()
    return symbols


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(0, 300),
    st.sampled_from([1, 2, 3, 257, 2048]),
    st.sampled_from([0.0, 1.0, 8.0, 60.0]),
    st.booleans(),
)
def test_symbols_come_back(
    seed: int, count: int, symbols: int, spread: float, likely: bool
) -> None:
    random = np.random.default_rng(seed)
    logits = make_logits(random, count, symbols, spread)
    borders = [cumulative(row) for row in logits]
    chosen = draw(random, logits) if likely else random.integers(0, symbols, count).tolist()
    assert decode(encode(borders, chosen), borders) == chosen


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**40 - 2), st.integers(0, 2)), max_size=200))
def test_symbols_of_any_frequency_come_back(steps: list[tuple[int, int]]) -> None:
    """The first symbol is at the low end, the last at the high end: where carries come from."""
    borders = [np.array([0, x, x + 1, arithmetic.TOTAL], np.int64) for x, _ in steps]
    symbols = [symbol for _, symbol in steps]
    assert decode(encode(borders, symbols), borders) == symbols


def test_carries_run_through_the_bytes_that_were_written() -> None:
    """Near the middle of the range the first bytes are undecided for long."""
    half = arithmetic.TOTAL // 2
    sides = np.array([0, half - 1, half + 1, arithmetic.TOTAL], np.int64)
    narrow = np.array([0, 1, arithmetic.TOTAL - 1, arithmetic.TOTAL], np.int64)
    for middle in range(0, 60, 3):
        for last in (0, 2):
            symbols = [1] * middle + [last] * 4
            borders = [sides] * middle + [narrow] * 4
            assert decode(encode(borders, symbols), borders) == symbols


@pytest.mark.slow
@pytest.mark.parametrize("symbols", [2, 257, 2048, 65_536])
@pytest.mark.parametrize("spread", [0.0, 2.0, 12.0])
def test_the_price_is_that_of_the_distribution(symbols: int, spread: float) -> None:
    random = np.random.default_rng(symbols)
    logits = make_logits(random, 32, symbols, spread)
    shares = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    rounds = 64 if symbols < 10_000 else 8
    chosen = [draw(random, logits) for _ in range(rounds)]
    borders = [cumulative(row) for row in logits]
    data = encode(borders * rounds, [symbol for row in chosen for symbol in row])
    ideal = -sum(np.log2(shares[np.arange(32), row]).sum() for row in chosen)
    own = sum(price(b, s) for row in chosen for b, s in zip(borders, row, strict=True))
    assert own == pytest.approx(ideal, rel=1e-5, abs=0.01)
    assert -8 <= 8 * len(data) - ideal <= 0.0005 * ideal + 16


def test_near_certainty_is_nearly_free() -> None:
    logits = np.full(65_536, -40, np.float32)
    logits[7] = 0
    borders = cumulative(logits)
    assert 0 < price(borders, 7) < 1e-7
    assert price(borders, 8) == arithmetic.PRECISION
    assert len(encode([borders] * 100_000, [7] * 100_000)) <= 2


@pytest.mark.parametrize(
    "logits",
    [[0.0], [0.0, -np.inf], [3e38, -3e38], [-1e30, -1e30], [5.0, 5.0, 5.0], [-200.0, -100.0, 0.0]],
)
def test_every_symbol_has_a_place(logits: list[float]) -> None:
    borders = cumulative(np.array(logits, np.float32))
    assert borders[0] == 0
    assert borders[-1] == arithmetic.TOTAL
    assert np.diff(borders).min() >= 1


def test_a_shift_of_the_logits_changes_nothing() -> None:
    logits = np.array([1.0, 2.0, -3.5, 0.25], np.float32)
    assert np.array_equal(cumulative(logits), cumulative(logits - 64))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_distribution_is_refused(bad: float) -> None:
    with pytest.raises(ScoreError, match=f"logit {bad}"):
        cumulative(np.array([0.0, bad, 1.0], np.float32))
    with pytest.raises(ScoreError, match="logit -inf"):
        cumulative(np.full(3, -np.inf, np.float32))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.data())
def test_other_bytes_end_in_symbols_or_an_error(seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    logits = make_logits(random, 120, 257, data.draw(st.sampled_from([0.1, 6.0, 40.0])))
    borders = [cumulative(row) for row in logits]
    whole = encode(borders, draw(random, logits))
    kind = data.draw(st.sampled_from(["cut", "flip", "noise", "longer"]))
    place = data.draw(st.integers(0, max(0, len(whole) - 1)))
    match kind:
        case "cut":
            changed = whole[:place]
        case "flip":
            changed = bytes(b ^ (i == place) for i, b in enumerate(whole))
        case "noise":
            changed = random.bytes(len(whole))
        case _:
            changed = whole + random.bytes(40)
    try:
        found = decode(changed, borders)
    except MessageError:
        return
    assert len(found) == len(borders)
    assert all(0 <= symbol < 257 for symbol in found)


def test_a_stream_that_ends_early_is_noticed() -> None:
    borders = [cumulative(np.zeros(256, np.float32))] * 200
    data = encode(borders, [255 - i % 256 for i in range(200)])
    with pytest.raises(MessageError, match="truncated"):
        decode(data[:100], borders)
    with pytest.raises(MessageError, match=r"3[0-9] bytes left over"):
        decode(data + bytes(40), borders)


def test_a_place_that_no_symbol_has_is_noticed() -> None:
    borders = [np.array([0, 3, arithmetic.TOTAL], np.int64)] * 40
    with pytest.raises(MessageError, match="names no symbol"):
        decode(b"\xff" * 400, borders)


def test_nothing_takes_no_bytes() -> None:
    assert encode([], []) == b""
    assert decode(b"", []) == []
