"""Layer selections and visiting orders."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpt.config.route import indices, parse_route
from segpt.errors import SpecError

GOLF = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]


def layers(route: str, depth: int) -> list[int]:
    return [layer for layer, _ in parse_route(route, depth)]


def test_selections_are_python_slices() -> None:
    assert indices("3", 11) == [3]
    assert indices("-1", 11) == [10]
    assert indices("7:", 11) == [7, 8, 9, 10]
    assert indices("::2", 5) == [0, 2, 4]
    assert indices("::-1", 3) == [2, 1, 0]
    assert indices("0,4,-1", 11) == [0, 4, 10]
    assert indices("0,1:3", 11) == [0, 1, 2]
    assert indices("7:", 3) == []


@pytest.mark.parametrize("selection", ["", "0,", "11", "-12", "a", "1:2:3:4", "::0", "1.5", "0 1"])
def test_bad_selections_are_named(selection: str) -> None:
    with pytest.raises(SpecError, match=r"cannot read .* as a selection of 11 layers; write an"):
        indices(selection, 11)


@settings(derandomize=True)
@given(st.integers(1, 9), st.none() | st.integers(-12, 12), st.none() | st.integers(-12, 12))
def test_any_slice_selects_what_python_selects(
    depth: int, start: int | None, stop: int | None
) -> None:
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    assert indices(text, depth) == list(range(depth))[start:stop]


def test_loops_repeat_in_place() -> None:
    assert layers("0:3 (3:6)*3 6:", 11) == GOLF
    assert layers("(0:3)*8", 3) == [0, 1, 2] * 8
    assert layers(":", 4) == [0, 1, 2, 3]
    assert layers("0 1*2 2,1", 3) == [0, 1, 1, 2, 1]
    assert layers(": 0:2*0", 2) == [0, 1]


def test_late_passes_join_together_or_one_by_one() -> None:
    visits = parse_route("0:3 (3:6)*3@0.35 6:", 11)
    assert [layer for layer, _ in visits] == GOLF
    assert [since for _, since in visits] == [0.0] * 6 + [0.35] * 6 + [0.0] * 5

    visits = parse_route("(0:2)*3@0.5,0.65", 2)
    assert visits == [(0, 0.0), (1, 0.0), (0, 0.5), (1, 0.5), (0, 0.65), (1, 0.65)]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("", "route '' never visits layer 0 from the start"),
        ("0:2", "never visits layer 2 from the start"),
        ("0:2 (0:2)*0 1", "never visits layer 2 from the start"),
        ("(0:3", r"cannot read '\(0:3' in route '\(0:3'; write e.g. '\(3:6\)\*3'"),
        ("0:3)*2", r"cannot read '0:3\)\*2'"),
        ("((0:3))", "cannot read"),
        ("(0:3)*2*2", "cannot read"),
        ("(0:3)*-1", "cannot read"),
        ("(0:3)*" + "9" * 5000, "cannot read"),
        ("0:3 x", "cannot read 'x' as a selection of 3 layers"),
        ("0:3 3", "cannot read '3' as a selection of 3 layers"),
        ("(0:3)*9999999", "makes more than 4096 visits"),
        ("(0:3)*2@", "cannot read"),
        ("(0:3)*2@.", "cannot read the numbers after '@'"),
        ("(0:3)*3@0.5,", "cannot read the numbers after '@'"),
        ("(0:3)*4@0.5,0.6", "has 3 extra passes; give one '@' number for all of them, or one"),
        ("(0:3)*3@0.6,0.5", "in rising order"),
        ("(0:3)@0.5", "has no extra pass to join at '@'"),
        ("(0:3)*1@0.5", "has no extra pass to join at '@'"),
        ("(0:3)*0@0.5", "has no extra pass to join at '@'"),
    ],
)
def test_bad_routes_are_named(route: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_route(route, 3)


@settings(max_examples=300, derandomize=True)
@given(st.text("0123456789:,-+*@.() \t_x٣", max_size=12), st.integers(1, 4))
def test_any_text_is_a_route_or_a_spec_error(route: str, depth: int) -> None:
    try:
        visits = parse_route(route, depth)
    except SpecError:
        return
    assert {layer for layer, since in visits if since == 0} == set(range(depth))
    assert all(since >= 0 for _, since in visits)
