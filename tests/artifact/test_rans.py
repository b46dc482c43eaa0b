"""The entropy coder: exact, tight, and shut against anything it did not write."""

import contextlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segpt import trellis
from segpt.artifact import loops, rans
from segpt.errors import ArtifactError

Bytes = NDArray[np.uint8]
Tables = NDArray[np.uint16]
Integers = NDArray[np.int64]


def make_tables(random: np.random.Generator, count: int) -> Tables:
    """Random tables: some flat, some with a single symbol, most with a few of all sizes."""
    tables = np.zeros((count, rans.SYMBOLS), np.int64)
    for table in tables:
        used = random.permutation(rans.SYMBOLS)[: random.choice([1, 2, 5, 256])]
        table[used] = 1 + random.multinomial(rans.TOTAL - len(used), random.dirichlet(0.1 + used))
    return tables.astype(np.uint16)


def draw(random: np.random.Generator, count: int, tables: Tables) -> tuple[Bytes, Bytes]:
    """Symbols that follow the tables of random classes."""
    classes = random.integers(0, len(tables), count).astype(np.uint8)
    slots = random.integers(0, rans.TOTAL, count)
    symbols = np.empty(count, np.uint8)
    for name, table in enumerate(tables):
        of_class = classes == name
        symbols[of_class] = np.repeat(np.arange(rans.SYMBOLS, dtype=np.uint8), table)[
            slots[of_class]
        ]
    return symbols, classes


def pieces(values: Bytes, lanes: int) -> Iterator[Integers]:
    """Whole steps in two pieces, then what is left as one narrower step."""
    whole = len(values) // lanes * lanes
    for begin, end in pairwise([0, whole // lanes // 2 * lanes, whole]):
        yield values[begin:end].astype(np.int64).reshape(-1, lanes)
    yield values[None, whole:].astype(np.int64)


def encode(symbols: Bytes, classes: Bytes, tables: Tables, lanes: int) -> bytes:
    encoder = rans.RansEncoder(tables, lanes)
    both = zip(pieces(symbols, lanes), pieces(classes, lanes), strict=True)
    for symbol, table in reversed(list(both)):
        encoder.write(table * rans.SYMBOLS + symbol)
    return encoder.finish()


def decode(data: bytes, classes: Bytes, tables: Tables, lanes: int) -> Bytes:
    decoder = rans.RansDecoder(data, tables, lanes)
    found = [decoder.read(table << loops.PRECISION) for table in pieces(classes, lanes)]
    decoder.finish()
    return np.concatenate([symbols.ravel() for symbols in found])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 700), st.sampled_from([1, 2, 3, 16, 127, 512]))
def test_symbols_come_back(seed: int, count: int, lanes: int) -> None:
    random = np.random.default_rng(seed)
    tables = make_tables(random, 4)
    symbols, classes = draw(random, count, tables)
    data = encode(symbols, classes, tables, lanes)
    assert np.array_equal(decode(data, classes, tables, lanes), symbols)


def test_long_streams_cross_blocks() -> None:
    random = np.random.default_rng(1)
    tables = make_tables(random, 3)
    symbols, classes = draw(random, 200_001, tables)
    data = encode(symbols, classes, tables, 33)
    assert np.array_equal(decode(data, classes, tables, 33), symbols)


def test_length_is_the_ideal_code_length_and_four_bytes_per_lane() -> None:
    random = np.random.default_rng(2)
    tables = make_tables(random, 8)
    symbols, classes = draw(random, 300_000, tables)
    ideal = -np.log2(tables[classes, symbols] / rans.TOTAL).sum() / 8
    for lanes in (16, 256):
        size = len(encode(symbols, classes, tables, lanes))
        assert ideal < size < 1.0005 * ideal + 4 * lanes


@pytest.mark.parametrize("states", [1, 4, 8, 16])
def test_the_grid_of_a_symbol_follows_from_the_parities_before_it(states: int) -> None:
    random = np.random.default_rng(states)
    tables = np.array([random.permutation(np.arange(256) % 120) for _ in range(6)])
    tables[:, 0] += rans.TOTAL - tables.sum(axis=1)
    tables += 1
    tables[:, 0] -= rans.SYMBOLS
    codes = random.integers(-128, 128, (40, 30)).astype(np.int8)  # lanes are rows
    grids = trellis.grids(codes, states)
    pairs = random.integers(0, 3, codes.shape)
    encoder = rans.RansEncoder(tables.astype(np.uint16), 40)
    keys = (2 * pairs + grids) * rans.SYMBOLS + codes.view(np.uint8)
    encoder.write(keys.T)
    m = trellis.machine(states)
    walk = rans.Walk({2: (np.array([0, 1], "u1"), np.zeros((2, 2), "u1")), states: m[1:]})
    paths = np.full(40, walk.starts[states])
    decoder = rans.RansDecoder(encoder.finish(), tables.astype(np.uint16), 40)
    halves = [
        decoder.read(2 * pairs.T[part] << loops.PRECISION, walk, paths)
        for part in (slice(13), slice(13, None))
    ]
    decoder.finish()
    assert np.array_equal(np.concatenate(halves).T.view(np.int8), codes)


def test_symbols_that_are_certain_take_no_words() -> None:
    tables = np.zeros((1, rans.SYMBOLS), np.uint16)
    tables[0, 7] = rans.TOTAL
    symbols, classes = np.full(10_000, 7, np.uint8), np.zeros(10_000, np.uint8)
    data = encode(symbols, classes, tables, 16)
    assert len(data) == 4 * 16
    assert np.array_equal(decode(data, classes, tables, 16), symbols)


def test_symbols_without_a_place_are_refused() -> None:
    tables = np.zeros((1, rans.SYMBOLS), np.uint16)
    tables[0, 7] = rans.TOTAL
    with pytest.raises(ArtifactError, match="no place"):
        encode(np.array([8], np.uint8), np.zeros(1, np.uint8), tables, 16)


@pytest.fixture
def stream() -> tuple[bytes, Bytes, Tables]:
    random = np.random.default_rng(3)
    tables = make_tables(random, 2)
    symbols, classes = draw(random, 500, tables)
    return encode(symbols, classes, tables, 16), classes, tables


def test_every_truncation_is_refused(stream: tuple[bytes, Bytes, Tables]) -> None:
    data, classes, tables = stream
    for size in range(len(data)):
        with pytest.raises(ArtifactError):
            decode(data[:size], classes, tables, 16)


def test_bytes_left_over_are_refused(stream: tuple[bytes, Bytes, Tables]) -> None:
    data, classes, tables = stream
    with pytest.raises(ArtifactError, match="left over"):
        decode(data + b"\0\0", classes, tables, 16)
    with pytest.raises(ArtifactError, match="lanes and words"):
        decode(data + b"\0", classes, tables, 16)


def test_streams_of_other_contents_are_refused(stream: tuple[bytes, Bytes, Tables]) -> None:
    data, classes, tables = stream
    with pytest.raises(ArtifactError):
        decode(data, classes[:-1], tables, 16)
    with pytest.raises(ArtifactError):
        decode(data, np.concatenate([classes, classes[:1]]), tables, 16)
    with pytest.raises(ArtifactError):
        decode(data, classes, tables, 8)
    with pytest.raises(ArtifactError, match="starts in a state"):
        decode(b"\xff\xff\0\0" + data[4:], classes, tables, 16)


def test_every_flipped_bit_is_noticed(stream: tuple[bytes, Bytes, Tables]) -> None:
    data, classes, tables = stream
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ArtifactError):
            decode(bytes(flipped), classes, tables, 16)


def test_random_bytes_end_in_an_error_or_the_right_count() -> None:
    random = np.random.default_rng(4)
    tables = make_tables(random, 3)
    for _ in range(2000):
        classes = random.integers(0, 3, random.integers(0, 60)).astype(np.uint8)
        data = random.bytes(int(random.integers(0, 200)))
        lanes = int(random.integers(1, 20))
        with contextlib.suppress(ArtifactError):
            assert len(decode(data, classes, tables, lanes)) == len(classes)
