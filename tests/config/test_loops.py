"""Where a route repeats itself, and what runs when that is done more or less often."""

import dataclasses

import pytest

from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.recipe import read_recipe
from segpt.config.route import MOST_VISITS, Loop
from segpt.config.schedule import Steps
from segpt.config.train import Loops, TrainSpec
from segpt.errors import SpecError


def routed(route: str, depth: int, **more: object) -> ModelSpec:
    layer = {"mixer": None, "feed": {"hidden": 8}}
    plain = {"vocab": 8, "width": 8, "context": 8, "depth": depth, "layer": layer, "route": route}
    return expand(plain | more)


@pytest.mark.parametrize(
    ("route", "depth", "loop"),
    [
        (":", 3, None),
        ("0 1 0 2 1", 3, None),
        ("0 (1)*3 2", 3, Loop(1, 1, 3)),
        ("0 1 1 2", 3, Loop(1, 1, 2)),
        ("(:)*4", 3, Loop(0, 3, 4)),
        ("0 (1:3)*2 3", 4, Loop(1, 2, 2)),
        ("(0)*4", 1, Loop(0, 1, 4)),  # not two passes of two visits
        ("(0)*2 (1:3)*2 3", 4, Loop(2, 2, 2)),  # the longest
        ("(0)*3 (1)*3", 2, Loop(0, 1, 3)),  # the first of equally long ones
        ("0 1 (2:5)*3@0.35 5", 6, Loop(2, 3, 3)),
        ("0 1 0", 2, None),
        ("0 1 0 1 0", 2, Loop(0, 2, 2)),
    ],
)
def test_the_loop_of_a_route(route: str, depth: int, loop: Loop | None) -> None:
    assert routed(route, depth).loop == loop


@pytest.mark.slow
def test_the_longest_route_is_searched_in_no_time() -> None:
    assert routed(f"0 1 (2)*{MOST_VISITS - 2}", 3).loop == Loop(2, 1, MOST_VISITS - 2)


@pytest.mark.parametrize(
    ("loops", "visits"),
    [
        (1, (0, 1, 2, 7)),
        (2, (0, 1, 2, 3, 4, 7)),
        (3, (0, 1, 2, 3, 4, 5, 6, 7)),
        (5, (0, 1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 7)),
    ],
)
def test_fewer_loops_drop_the_last_pass_and_more_repeat_it(
    loops: int, visits: tuple[int, ...]
) -> None:
    spec = routed("0 (1:3)*3 3", 4)
    assert spec.looped(loops) == visits
    order = [spec.visits[i].layer for i in visits]
    assert order == [0, *[1, 2] * loops, 3]


@pytest.mark.parametrize(
    ("progress", "loops", "visits"),
    [
        (0.0, 1, (0, 1, 4)),
        (0.0, 3, (0, 1, 1, 1, 4)),
        (0.5, 1, (0, 1, 4)),
        (0.5, 2, (0, 1, 2, 4)),
        (0.5, 4, (0, 1, 2, 2, 2, 4)),
        (0.8, 4, (0, 1, 2, 3, 3, 4)),
    ],
)
def test_passes_that_have_not_joined_do_not_run(
    progress: float, loops: int, visits: tuple[int, ...]
) -> None:
    assert routed("0 (1)*3@0.4,0.8 2", 3).looped(loops, progress) == visits


@pytest.mark.parametrize("name", ["golf16", "seed004"])
def test_the_count_of_the_route_changes_nothing(name: str) -> None:
    spec = read_recipe(name).model
    assert spec.loop is not None
    for progress in (0.0, 0.4, 1.0):
        joined = len(set(spec.passes(MOST_VISITS // spec.loop.size, progress)))
        assert spec.looped(joined, progress) == spec.active(progress)


def test_without_a_loop_there_is_nothing_to_repeat() -> None:
    with pytest.raises(SpecError, match=r"never repeats layers.* --set model.route='0 \(1\)\*3 2'"):
        routed(":", 3).looped(2)


@pytest.mark.parametrize("loops", [-1, 0, MOST_VISITS])
def test_counts_out_of_range_are_refused(loops: int) -> None:
    with pytest.raises(SpecError, match=f"a loop of 2 visits cannot run {loops} times"):
        routed("(0:2)*2", 2).looped(loops)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"least": 0, "most": 3}, "loops run from 1 time up; got 0 to 3"),
        ({"least": 4, "most": 3}, "loops run from 1 time up; got 4 to 3"),
        ({"most": 3, "mean": 1.0}, "the mean of loops lies above 1 and not above 3, got 1.0"),
        ({"most": 3, "mean": 3.5}, "the mean of loops lies above 1 and not above 3, got 3.5"),
        ({"most": 3, "spread": -0.1}, "spread is not negative"),
        ({"most": 3, "back": 0}, "back is at least one pass, got 0"),
    ],
)
def test_draws_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        decode(Loops, fields)


def test_runs_that_draw_nothing_keep_their_fingerprint() -> None:
    plain = TrainSpec(length=Steps(count=1), batch=1)
    assert "loops" not in encode(plain)
    drawing = dataclasses.replace(plain, loops=Loops(most=6, mean=3.0, back=2))
    for how in (plain, drawing):
        assert decode(TrainSpec, encode(how)) == how


def test_settings_reach_draws() -> None:
    settings = ["model.route='0 (1)*3 2'", "train.loops.most=6", "train.loops.mean=3"]
    assert read_recipe("demo", settings).train.loops == Loops(most=6, mean=3.0)
