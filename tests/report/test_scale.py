"""Scales: everything has its place, ticks are round and told apart."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.report.scale import drawable, scale, short

NUMBERS = st.floats(-1e30, 1e30).filter(lambda v: v == 0 or abs(v) > 1e-30)
SIZES = st.floats(1e-30, 1e30)


@settings(deadline=None, derandomize=True)
@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_every_value_has_its_place(values: list[float], zero: bool) -> None:
    found = scale(values, zero=zero)
    assert all(-1e-9 <= found.at(value) <= 1 + 1e-9 for value in values)
    assert found.at(found.low) == 0
    assert found.at(found.high) == 1
    if zero:
        assert found.low <= 0 <= found.high


@settings(deadline=None, derandomize=True)
@given(st.lists(SIZES, min_size=1, max_size=20))
def test_every_size_has_its_place_among_logarithms(values: list[float]) -> None:
    found = scale(values, log=True)
    assert all(-1e-9 <= found.at(value) <= 1 + 1e-9 for value in values)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=20), st.booleans())
def test_ticks_are_few_rise_and_are_told_apart(values: list[float], log: bool) -> None:
    found = scale(values, log=log)
    assert 1 <= len(found.ticks) <= 14
    assert all(a < b for a, b in itertools.pairwise(found.ticks))
    assert found.low <= found.ticks[0] * (1 + 1e-9)
    assert found.ticks[-1] <= found.high * (1 + 1e-9)
    spread = (max(values) - min(values)) / max(values)
    if spread > 1e-3 or spread == 0:
        names = found.tick_names()
        assert len(set(names)) == len(names)
        assert max(map(len, names)) <= 9


@pytest.mark.parametrize(
    ("values", "log", "names"),
    [
        ([0.0, 8.2], False, ["0", "2", "4", "6", "8"]),
        ([1.6, 1.61], False, ["1.600", "1.602", "1.604", "1.606", "1.608", "1.610"]),
        ([90_000.0, 1_100_000.0], True, ["50k", "100k", "200k", "500k", "1M", "2M"]),
        ([1e-6, 0.3], True, ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        ([3.0], False, ["2", "3", "4"]),
        ([10.0, 1000.0], False, ["0", "200", "400", "600", "800", "1,000"]),
    ],
)
def test_ticks_read_as_people_write_them(values: list[float], log: bool, names: list[str]) -> None:
    assert scale(values, log=log).tick_names() == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.6989, "1.699"),
        (2.0, "2"),
        (998_443.0, "998.4k"),
        (1_781_015.0, "1.781M"),
        (1234.0, "1,234"),
        (0.00117, "0.00117"),
        (4e-8, "4e-08"),
        (-12_500.0, "-12.5k"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1e200])
def test_what_has_no_place(value: float | None) -> None:
    assert not drawable(value)
    assert not drawable(value, log=True)


def test_logarithms_want_what_is_above_zero() -> None:
    assert drawable(0.0)
    assert drawable(-1.0)
    assert not drawable(0.0, log=True)
    assert not drawable(-1.0, log=True)
