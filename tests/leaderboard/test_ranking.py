"""Ranks, states, the Pareto front, and when a record advances its track."""

import dataclasses
import itertools
import random
from typing import Any

import pytest

from segpt.leaderboard.entry import Claim, Entry, Record, Run, figure
from segpt.leaderboard.ranking import advance, standings, state_of, total_of, values_of
from segpt.leaderboard.track import Track
from tests.leaderboard.entries import (
    LARGE,
    SMALL,
    TOKENS,
    baseline,
    chained,
    claim,
    line,
    record,
    verification,
)

STRICT = dataclasses.replace(LARGE, seeds=3, margin=0.01, significance=0.01)


def runs_of(*nats: float) -> tuple[Run, ...]:
    return tuple(
        Run(
            artifact=f"{seed:064x}",
            bytes=900_000 + seed,
            seed=seed,
            scores=(line(value, model=f"{seed:064x}", seed=seed),),
        )
        for seed, value in enumerate(nats, 1)
    )


def several(name: str, *nats: float, **changes: Any) -> Record:
    runs = runs_of(*nats)
    return record(name, runs=runs, bpb=figure(runs).bpb, **changes)


def names(track: Track, *entries: Entry) -> list[str]:
    return [row.entry.name for row in standings([track], chained(*entries)[0])[track.name]]


def test_lower_is_better_but_for_core_and_ties_keep_the_order_of_the_chain() -> None:
    entries = [claim(name, value) for name, value in (("b", 1.2), ("a", 1.1), ("c", 1.1))]
    assert names(LARGE, *entries) == ["a", "c", "b"]
    core = Track(name="large", about="", metric="core")
    assert names(core, *(dataclasses.replace(e, value=e.value - 1) for e in entries)) == [
        "b",
        "a",
        "c",
    ]


def test_every_track_has_its_rows_whatever_the_order_of_the_links() -> None:
    links, _ = chained(record(), claim("t", 7e8, "tokens"), baseline(), claim("x", 1.0, "gone"))
    found = standings([LARGE, SMALL, TOKENS], links)
    assert {name: len(rows) for name, rows in found.items()} == {
        "large": 2,
        "small": 0,
        "tokens": 1,
    }
    random.Random(3).shuffle(links)
    assert standings([LARGE, SMALL, TOKENS], links) == found
    assert [row.rank for row in found["large"]] == [1, 2]


def test_totals_count_the_artifact_where_it_is_known() -> None:
    first = record()
    assert total_of(first) == first.bpb + 8 * 987_654 / 5000
    coded = first.runs[0].scores[0].bpb * 5000 / 8
    assert total_of(first) == pytest.approx(8 * (987_654 + coded) / 5000)
    assert total_of(baseline()) == baseline().value == 8 * 1500 / 5000
    assert total_of(claim(bytes=900)) is None


def test_the_state_is_the_best_that_was_found() -> None:
    first = record()
    checked = verification(first)
    reproduced = verification(first, "made-anew", state="reproduced", artifact="b" * 64)
    for found, state in (
        ((), "claimed"),
        ((checked,), "checked"),
        ((reproduced, checked), "reproduced"),
    ):
        assert state_of(found) == state
        (row,) = standings([LARGE], chained(first, *found)[0])["large"]
        assert row.state == state
        assert row.verifications == found


def test_the_front_is_of_those_that_nothing_else_dominates() -> None:
    sizes_and_values = [(100, 1.5), (200, 1.4), (200, 1.45), (300, 1.4), (50, 2.0), (60, 2.0)]
    entries = [
        claim(f"e{i}", value, bytes=size) for i, (size, value) in enumerate(sizes_and_values)
    ]
    links, _ = chained(*entries, claim("unsized", 1.0), baseline(compressed=1))
    rows = standings([LARGE], links)["large"]
    assert {row.entry.name for row in rows if row.front} == {"e0", "e1", "e4"}


def test_the_front_holds_what_a_direct_comparison_finds() -> None:
    generator = random.Random(5)
    entries = [
        claim(f"e{i}", 1 + generator.randrange(6) / 10, bytes=generator.randrange(1, 8))
        for i in range(40)
    ]
    rows = standings([LARGE], chained(*entries)[0])["large"]
    for row, other in itertools.product(rows, rows):
        assert row.bytes is not None
        assert other.bytes is not None
        smaller = other.bytes < row.bytes and other.value <= row.value
        better = other.bytes <= row.bytes and other.value < row.value
        assert not (row.front and (smaller or better))
    for row in rows:
        if not row.front:
            assert any(
                other.front and other.bytes <= row.bytes and other.value <= row.value  # type: ignore[operator]
                for other in rows
            )


def test_the_first_entry_advances_its_track() -> None:
    found = advance(LARGE, record(), [])
    assert found == (True, None, None, None, "the first entry of large")


@pytest.mark.parametrize(
    ("value", "margin", "made", "words"),
    [
        (1.80, 0.0, True, "better than said by 0.0688"),
        (1.74, 0.01, False, "it is better by 0.0088, where large asks for 0.01"),
        (1.7321, 0.0, True, "better than said by 0.0009"),
        (1.70, 0.0, False, "it is worse by 0.0312"),
    ],
)
def test_a_track_of_one_seed_compares_the_margin(
    value: float, margin: float, made: bool, words: str
) -> None:
    track = dataclasses.replace(LARGE, margin=margin)
    found = advance(track, record(), [claim(value=value), claim("worse", 3.0)])
    assert (found.made, found.reason) == (made, words)
    assert found.before == "said"
    assert found.p is None
    assert found.gain == pytest.approx(value - record().bpb)


def test_the_same_figure_is_no_advance() -> None:
    found = advance(LARGE, record("again"), [record()])
    assert (found.made, found.reason) == (False, "it is no better")


def test_baselines_and_claims_are_to_be_beaten_too() -> None:
    links, _ = chained(baseline(compressed=1000), record())
    (row,) = [r for r in standings([LARGE], links)["large"] if isinstance(r.entry, Record)]
    assert row.advance is not None
    assert (row.advance.made, row.advance.before) == (False, "xz")
    assert all(r.advance is None for r in standings([LARGE], links)["large"] if r != row)


def test_only_what_came_before_counts() -> None:
    links, _ = chained(record("first", 6000.0), record("second", 5000.0))
    first, second = sorted(standings([LARGE], links)["large"], key=lambda row: row.link.number)
    assert first.advance is not None
    assert second.advance is not None
    assert first.advance.made
    assert second.advance.made
    assert (first.rank, second.rank) == (2, 1)


def test_too_few_seeds_do_not_advance_a_track() -> None:
    found = advance(STRICT, several("two", 5000.0, 5001.0), [])
    assert not found.made
    assert found.reason == "it rests on 2 of the 3 runs that large asks for"


@pytest.mark.parametrize(
    ("nats", "made"), [((5900, 5901, 5899), True), ((5500, 6100, 5700), False)]
)
def test_spread_that_explains_a_gain_is_found(nats: tuple[float, ...], made: bool) -> None:
    before = several("before", 6000.0, 6001.0, 5999.0)
    found = advance(STRICT, several("after", *nats), [before])
    assert found.made == made
    assert found.p is not None
    assert (found.p < 0.01) == made
    assert ("p = " in found.reason) or not made


def test_welch_tests_a_gain_of_more_than_the_margin() -> None:
    """A gain of just the margin, however certain, leaves p at a half."""
    before = several("before", 6000.0, 6001.0, 5999.0)
    less = STRICT.margin * 0.6931471805599453 * 5000
    same = several("after", *(value - less for value in (6000.0, 6001.0, 5999.0)))
    found = advance(dataclasses.replace(STRICT, margin=STRICT.margin - 1e-12), same, [before])
    assert found.p == pytest.approx(0.5, abs=1e-6)
    assert not found.made


def test_a_single_figure_is_tested_against_the_runs() -> None:
    """One-sample t: mean 1.70, sd 0.01 of three, 0.03 beyond a margin of 0.01: t = 3.4641."""
    nats = [value * 0.6931471805599453 * 5000 for value in (1.69, 1.70, 1.71)]
    found = advance(STRICT, several("after", *nats), [claim(value=1.73)])
    assert found.p == pytest.approx(0.0370899, abs=1e-6)
    assert not found.made
    several_values = claim(value=1.73, values=(1.729, 1.73, 1.731))
    assert advance(STRICT, several("after", *nats), [several_values]).p != found.p


def test_higher_is_better_where_the_metric_says_so() -> None:
    core = Track(name="large", about="", metric="core")
    found = advance(core, record(), [claim(value=0.3)])
    assert found.made
    assert found.gain == pytest.approx(record().bpb - 0.3)


def test_values_are_of_runs() -> None:
    assert values_of(several("s", 5000.0, 6000.0)) == (line(5000.0).bpb, line(6000.0).bpb)
    assert values_of(claim(value=1.5)) == (1.5,)
    one: Claim = claim(value=1.5, values=(1.4, 1.6))
    assert values_of(one) == (1.4, 1.6)
    assert values_of(baseline()) == (2.4,)
