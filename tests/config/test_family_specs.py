"""What the shapes of other families may not say, and that stored specs stay as they are."""

from typing import Any

import pytest

from segpt.config.base import decode, encode
from segpt.config.expand import expand
from segpt.config.model import ModelSpec
from segpt.config.parts import Llama3Scaling, Norm, Rope
from segpt.errors import SpecError

TOKEN = {"kind": "token", "norm": False}


def recipe(**changes: Any) -> dict[str, Any]:
    mixer = {"heads": 2, "kv_heads": 1, "head_dim": 8, "query_key": ["norm"]}
    layer = {"gain": "input", "mixer": mixer, "feed": {"hidden": 8}}
    return {"vocab": 9, "width": 8, "context": 16, "depth": 1, "layer": layer} | changes


def with_layer(**changes: Any) -> dict[str, Any]:
    plain = recipe()
    return plain | {"layer": plain["layer"] | changes}


def with_rope(**rope: Any) -> dict[str, Any]:
    mixer = recipe()["layer"]["mixer"]
    return with_layer(mixer=mixer | {"query_key": [{"kind": "rope", "dims": 8} | rope]})


REFUSED = {
    "an eps of zero": (recipe(norm_eps=0.0), "norm_eps is a small number above zero"),
    "a large eps": (recipe(norm_eps=1.0), "norm_eps is a small number above zero"),
    "an unknown norm": (recipe(norm="batch"), "known: layer, rms"),
    "too few positions": (
        recipe(embed=[TOKEN, {"kind": "position", "count": 15}]),
        "15 positions for a context of 16",
    ),
    "no positions": (recipe(embed=[TOKEN, {"kind": "position", "count": 0}]), "a row at least"),
    "positions first": (recipe(embed=[{"kind": "position", "count": 16}]), "begins with token"),
    "a shift without a gain": (with_layer(gain="output", shift=True), "set gain to input"),
    "a shift of the head alone": (recipe(head={"shift": True}), "set head.gain to true"),
    "a scale of zero": (recipe(embed=[TOKEN | {"scale": 0}]), "the scale of tokens is positive"),
    "an unknown bias": (
        with_layer(mixer={"heads": 1, "kv_heads": 1, "head_dim": 8, "bias": "out"}),
        "known: all, none, qkv",
    ),
    "scaling that speeds up": (with_rope(scaling={"factor": 0.5}), "a factor of 1 or more"),
    "scaling upside down": (with_rope(scaling={"low": 4.0, "high": 1.0}), "low below high"),
    "scaling of half": (with_rope(rates="half", scaling={}), "set rates to all"),
    "scaling of nothing": (with_rope(scaling={"context": 0}), "the context of rope scaling"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    wrong, message = REFUSED[name]
    with pytest.raises(SpecError, match=message):
        expand(wrong)


def test_what_is_not_asked_for_is_not_stored() -> None:
    stored = encode(expand(recipe()))
    assert not {"norm", "norm_eps"} & stored.keys()
    assert "shift" not in stored["layers"][0]
    assert "shift" not in stored["head"]
    assert "bias" not in stored["layers"][0]["mixer"]
    assert "bias" not in stored["layers"][0]["feed"]
    assert stored["layers"][0]["mixer"]["query_key"] == [{"kind": "norm"}]
    assert stored["embed"] == [{"kind": "token"}]
    assert encode(Rope(dims=4)) == {"kind": "rope", "dims": 4, "base": 10_000.0, "turn": "right"}


def test_what_is_asked_for_is_read_back() -> None:
    spec = expand(
        with_rope(scaling={"factor": 4.0, "context": 32})
        | {
            "norm": "layer",
            "norm_eps": 1e-5,
            "embed": [TOKEN | {"scale": 2.0}, {"kind": "position", "count": 20}],
        }
    )
    mixer = spec.layers[0].mixer
    assert mixer is not None
    scaling = Llama3Scaling(factor=4.0, low=1.0, high=4.0, context=32)
    assert mixer.query_key == (Rope(dims=8, scaling=scaling),)
    assert decode(ModelSpec, encode(spec)) == spec
    assert spec.positions == 20
    assert decode(Norm, {"gain": True}) == Norm(gain=True)
    assert expand(recipe()).positions is None
