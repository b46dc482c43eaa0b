"""Optimizers, schedules and averages as data: what they refuse, and what stored ones still say."""

import dataclasses
import typing
from typing import Any

import pytest

from segpt.config.base import decode, encode
from segpt.config.layout import Place, Role
from segpt.config.optimizer import Adam, FollowRate, Linear, Muon, Neurons, Optimizer, Override
from segpt.config.schedule import Schedule, Steps
from segpt.config.train import Average
from segpt.errors import SpecError


def test_a_recipe_says_what_it_means() -> None:
    table = {
        "matrix": {
            "kind": "muon",
            "coefficients": "seven",
            "iterations": 7,
            "neurons": {"axis": "auto"},
            "joint": ["query", "key", "value"],
            "momentum_warmup": {"kind": "steps", "count": 300},
            "decay_schedule": {"kind": "linear", "start": 1, "end": 0.5, "since": 0.7},
        },
        "table": {"decay_schedule": "follow_rate", "decay_mode": "fixed", "cautious": True},
        "overrides": [{"role": "matrix", "place": "feed", "decay_times": 2}],
    }
    expected = Optimizer(
        matrix=Muon(
            coefficients="seven",
            iterations=7,
            neurons=Neurons(axis="auto"),
            joint=("query", "key", "value"),
            momentum_warmup=Steps(count=300),
            decay_schedule=Linear(start=1.0, end=0.5, since=0.7),
        ),
        table=Adam(decay_schedule=FollowRate(), decay_mode="fixed", cautious=True),
        overrides=(Override(role="matrix", place="feed", decay_times=2.0),),
    )
    assert decode(Optimizer, table) == expected
    assert decode(Optimizer, encode(expected)) == expected


def test_tables_without_a_kind_are_those_of_adam() -> None:
    for role in ("table", "head", "vector"):
        expected = dataclasses.replace(Optimizer(), **{role: Adam(rate=0.5)})  # type: ignore[arg-type]
        for table in ({"rate": 0.5}, {"kind": "adam", "rate": 0.5}):
            assert decode(Optimizer, {role: table}) == expected
        assert decode(Optimizer, {role: "adamw"}) == Optimizer()
        with pytest.raises(SpecError, match=f"Muon is for matrices, and {role} is none"):
            decode(Optimizer, {role: "muon"})
        with pytest.raises(SpecError, match=rf"\$\.{role}: unknown key 'rat' in adam"):
            decode(Optimizer, {role: {"rat": 0.5}})
    with pytest.raises(SpecError, match=r"\$\.matrix: unknown kind None"):
        decode(Optimizer, {"matrix": {"rate": 0.5}})


def test_shapes_of_a_warm_down_are_stored_as_words() -> None:
    for word in ("linear", "cosine", "sqrt"):
        schedule = decode(Schedule, {"shape": word})
        assert encode(schedule)["shape"] == word
        assert decode(Schedule, {"shape": {"kind": word}}) == schedule
    with pytest.raises(SpecError, match=r"\$\.shape: unknown kind 'cosin'; did you mean 'cosine'"):
        decode(Schedule, {"shape": "cosin"})
    with pytest.raises(SpecError, match=r"\$\.shape: unknown key 'power' in cosine"):
        decode(Schedule, {"shape": {"kind": "cosine", "power": 2}})


def test_what_was_stored_keeps_its_bytes() -> None:
    assert set(encode(Optimizer())) == {"kind", "matrix", "table", "head", "vector"}
    betas = {"beta1", "beta2", "eps"}
    assert set(encode(Adam())) == {"kind", "rate", "decay"} | betas
    assert "neurons" not in encode(Muon())
    assert set(encode(Schedule())) == {"kind", "warmup", "warmdown", "floor", "shape"}
    assert encode(Average()) == {"kind": "average", "decay": 0.9965}


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Muon, {"rate": None}, "rate: expected a number, got None"),
        (Adam, {"decay": None}, "decay: expected a number, got None"),
        (Muon, {"coefficients": "seven"}, "converge in iterations: 7, not 5"),
        (Muon, {"coefficients": "five", "iterations": 6}, "five iterations are 1 to 5"),
        (Muon, {"both_until": 1.5}, "both_until is a fraction"),
        (Muon, {"joint": ["query"]}, "joint names different matrices, at least two"),
        (Muon, {"joint": ["key", "key"]}, "joint names different matrices"),
        (Muon, {"joint": ["query", "keys"]}, "unknown value 'keys'"),
        (Muon, {"momentum_warmup": {"kind": "steps", "count": -1}}, "momentum_warmup"),
        (Neurons, {"beta2": 1.0}, "beta2 lies in"),
        (Linear, {"start": 1.0, "end": 0.5, "since": 1.0}, "since a fraction of the run below 1"),
        (Linear, {"start": -1.0, "end": 0.5}, "not negative"),
        (FollowRate, {"least": 2.0}, "the least factor"),
        (Override, {"decay_times": 2.0}, "names a role, a place or a part"),
        (Override, {"place": "feed", "rule": "muon"}, "needs role: matrix"),
        (Override, {"place": "feed", "decay_times": -1.0}, "not negative"),
        (Override, {"place": "feet"}, "unknown value 'feet'; did you mean 'feed'"),
        (Average, {"since": 1.0}, "average.since is a fraction"),
        (Average, {"decay": 1.0}, "average.decay is below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(cls: type, fields: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        decode(cls, fields)


def test_overrides_can_name_every_role_and_place() -> None:
    hints = typing.get_type_hints(Override)
    for name, members in (("role", Role), ("place", Place)):
        known = typing.get_args(typing.get_args(hints[name])[0])
        assert set(known) == {member.value for member in members}
