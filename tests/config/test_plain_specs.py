"""Specs that are stored without a kind, some of them among the fields of others."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from segpt.config.base import ADDED, INLINE, PlainSpec, canonical, decode, encode, spec
from segpt.errors import SpecError


@spec
class Place(PlainSpec):
    room: str
    floor: int | None = dataclasses.field(default=None, metadata=ADDED)


@spec
class Size(PlainSpec):
    width: float = dataclasses.field(default=1.0, metadata=ADDED)


@spec
class Chair(PlainSpec):
    name: str
    place: Place = dataclasses.field(metadata=INLINE)
    size: Size = dataclasses.field(default=Size(), metadata=INLINE)
    former: Place | None = None


@spec
class Stool(PlainSpec):
    legs: int
    place: Place | None = dataclasses.field(default=None, metadata=INLINE)


@spec
class House(PlainSpec):
    chairs: Mapping[str, Chair]


HALL = Place(room="hall", floor=2)
STORED = {"name": "a", "room": "hall", "floor": 2, "former": {"room": "loft"}}
CHAIR = Chair(name="a", place=HALL, former=Place(room="loft"))


def test_a_plain_spec_is_stored_without_its_kind_in_the_order_of_its_fields() -> None:
    assert encode(CHAIR) == STORED
    assert list(encode(CHAIR)) == list(STORED)
    assert decode(Chair, STORED) == CHAIR
    assert canonical(decode(Chair, STORED | {"width": 2.0})) == canonical(STORED | {"width": 2.0})


def test_what_may_be_none_adds_nothing() -> None:
    assert encode(Stool(legs=3)) == {"legs": 3}
    assert decode(Stool, {"legs": 3}) == Stool(legs=3)
    whole = Stool(legs=3, place=HALL)
    assert decode(Stool, encode(whole)) == whole


def test_the_values_of_a_table_are_read_as_specs() -> None:
    house = House(chairs={"b": CHAIR})
    assert encode(house) == {"chairs": {"b": STORED}}
    assert decode(House, encode(house)) == house


@pytest.mark.parametrize("key", ["colour", "kind", "place"])
def test_what_a_later_version_stores_beside_the_fields_is_passed_over(key: str) -> None:
    assert decode(Chair, STORED | {key: "red"}) == CHAIR
    assert decode(Chair, STORED | {"former": {"room": "loft", key: 1}}) == CHAIR


@pytest.mark.parametrize(
    ("cls", "table", "words"),
    [
        (Chair, STORED | {"former": []}, r"\$\.former: expected a table for place, got \[\]"),
        (Chair, STORED | {"former": "place"}, r"\$\.former: expected a table for place"),
        (Chair, STORED | {"floor": "two"}, r"\$\.floor: expected a whole number"),
        (Chair, {"name": "a"}, r"\$: missing key 'room' in place"),
        (Chair, "chair", r"\$: expected a table for chair"),
        (Chair, STORED | {"former": {"room": 3}}, r"\$\.former\.room: expected text"),
        (Stool, {"legs": 3, "floor": 1}, r"\$: missing key 'room' in place"),
        (House, {"chairs": {"b": {"name": "b"}}}, r"\$\.chairs\.b: missing key 'room' in place"),
        (House, {"chairs": {"b": 1}}, r"\$\.chairs\.b: expected a table for chair"),
        (House, {"chairs": [1]}, r"\$\.chairs: expected a table"),
    ],
)
def test_what_is_not_as_it_is_stored_is_refused_with_its_place(
    cls: type[Any], table: Any, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        decode(cls, table)
