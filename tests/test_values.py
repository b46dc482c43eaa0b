"""Weights in designed steps: exact arithmetic, equality and names."""

import dataclasses
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpt import trellis
from segpt.config.expand import expand
from segpt.values import OCTAVE, Float16Weight, Quantized, Tokenizer, TrellisWeight
from tests.artifact.weights import stepped


def rounded(exact: Fraction) -> Fraction:
    """The nearest float32, ties to even."""
    if exact == 0:
        return exact
    size, exponent = abs(exact), 0
    while size >= 1 << 24:
        size, exponent = size / 2, exponent + 1
    while size < 1 << 23:
        size, exponent = size * 2, exponent - 1
    return round(size) * Fraction(2) ** exponent * (1 if exact > 0 else -1)


def by_hand(coded: TrellisWeight, row: int, column: int) -> Fraction:
    """One stored weight, every operation exact and then rounded once."""
    octaves, eighth = divmod(int(coded.rows[row]) + int(coded.columns[column]), 8)
    size = rounded(Fraction(coded.step) * Fraction(float(OCTAVE[eighth])))
    size *= Fraction(2) ** octaves
    point = int(trellis.points(coded.codes, coded.states)[row, column])
    product = rounded(point * size)
    if coded.centre is None:
        return product
    return rounded(product + Fraction(float(coded.centre[column])))


@pytest.mark.parametrize("states", [1, 4, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_decoding_rounds_once_per_operation(states: int, seed: int) -> None:
    coded = stepped(seed, states)
    found = coded.decoded()
    assert found.dtype == np.float32
    assert found.shape == coded.shape == (5, 7)
    assert coded.stored is not None
    assert coded.shared is not None
    assert np.array_equal(found[2], coded.shared.astype(np.float32))
    for row, value in enumerate(found[coded.stored]):
        for column, weight in enumerate(value):
            assert Fraction(float(weight)) == by_hand(coded, row, column)
    for name in ("centre", "stored"):
        gone: dict[str, Any] = {name: None} | ({"shared": None} if name == "stored" else {})
        other = dataclasses.replace(coded, **gone)
        whole = other.decoded()[other.stored if other.stored is not None else slice(None)]
        for row, value in enumerate(whole):
            for column, weight in enumerate(value):
                assert Fraction(float(weight)) == by_hand(other, row, column)


def test_octaves_are_rounded_correctly() -> None:
    with localcontext() as context:
        context.prec = 50
        exact = [Fraction(Decimal(2) ** (Decimal(k) / 8)) for k in range(8)]
    assert OCTAVE.dtype == np.float32
    assert [Fraction(float(value)) for value in OCTAVE] == [rounded(value) for value in exact]


@given(
    step=st.floats(2.0**-60, 2.0**40, width=32),
    row=st.integers(-120, 120),
    column=st.integers(-120, 120),
)
def test_steps_double_every_eight_exponents(step: float, row: int, column: int) -> None:
    coded = TrellisWeight(
        1,
        np.ones((1, 1), np.int8),
        step,
        np.array([row], np.int8),
        np.array([column], np.int8),
    )
    size = float(coded.steps()[0, 0])
    assert size == pytest.approx(step * 2 ** ((row + column) / 8), rel=2e-7)
    assert size == float(coded.decoded()[0, 0])


def test_a_weight_with_no_stored_rows_is_its_shared_row() -> None:
    none = stepped(0, 8, codes=np.empty((0, 7), np.int8), rows=np.empty(0, np.int8))
    none = dataclasses.replace(none, stored=np.zeros(5, np.bool_))
    assert none.shared is not None
    assert np.array_equal(none.decoded(), np.tile(none.shared.astype(np.float32), (5, 1)))


def quantized(coded: TrellisWeight) -> Quantized:
    layer = {"mixer": None, "feed": {"hidden": 4}}
    spec = expand({"vocab": 5, "width": 7, "context": 4, "depth": 1, "layer": layer})
    return Quantized(spec, {"table": coded}, Tokenizer("bytes", 5), {})


CHANGES: dict[str, Any] = {
    "states": 4,
    "codes": np.ones((4, 7), np.int8),
    "step": 0.5,
    "rows": np.ones(4, np.int8),
    "columns": np.ones(7, np.int8),
    "centre": np.ones(7, np.float16),
    "shared": np.ones(7, np.float16),
    "stored": np.array([False, True, True, True, True]),
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_tells_weights_apart(field: str) -> None:
    one, same = stepped(0, 8), stepped(0, 8)
    other = dataclasses.replace(one, **{field: CHANGES[field]})
    assert one == same
    assert one != other
    assert quantized(one).fingerprint == quantized(same).fingerprint
    assert quantized(one).fingerprint != quantized(other).fingerprint


@pytest.mark.parametrize("field", ["centre", "stored"])
def test_what_is_absent_tells_weights_apart(field: str) -> None:
    one = stepped(0, 8)
    gone: dict[str, Any] = {field: None} | ({"shared": None} if field == "stored" else {})
    other = dataclasses.replace(one, **gone)
    assert one != other
    assert list(other.arrays()) == [name for name in one.arrays() if name not in gone]
    assert quantized(one).fingerprint != quantized(other).fingerprint


def test_the_same_numbers_in_another_form_are_not_equal() -> None:
    one = stepped(0, 1, centre=np.zeros(7, np.float16))
    negative = dataclasses.replace(one, centre=-np.zeros(7, np.float16))
    assert one != negative
    assert one != Float16Weight(one.decoded().astype(np.float16))
    square = stepped(0, 1, codes=np.ones((4, 7), np.int8))
    assert square != dataclasses.replace(square, codes=np.ones((7, 4), np.int8))
