"""The short forms of skips and of scales by visit."""

from typing import Any

import pytest

from segpt.config.base import canonical, decode, encode
from segpt.config.expand import expand
from segpt.config.layer import Layer
from segpt.config.layout import layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.parts import MixInput, Skip
from segpt.config.route import Visit
from segpt.errors import SpecError

FEED: dict[str, Any] = {"mixer": None, "feed": {"hidden": 8}}


def short(**changes: Any) -> ModelSpec:
    return expand({"vocab": 50, "width": 8, "context": 16, "depth": 12, "layer": FEED} | changes)


def sources(spec: ModelSpec) -> dict[int, int]:
    return {
        i: part.source
        for i, visit in enumerate(spec.visits)
        for part in visit.join
        if isinstance(part, Skip)
    }


def test_a_u_net_over_thirty_visits_has_fifteen_numbers() -> None:
    route = "0:3 (3:9)*4 9:"
    added = {"kind": "mirror", "form": "add", "per": "scalar"}
    spec = short(route=route, skips=added)
    assert len(spec.visits) == 30
    assert sources(spec) == {15 + i: 14 - i for i in range(15)}
    assert parameters(spec) == parameters(short(route=route)) + 15
    assert all(w.shape == (1,) for w in layout(spec) if w.name.startswith("visits."))


@pytest.mark.parametrize(
    ("depth", "wanted"),
    [
        (16, {13: 9, 14: 6, 15: 3}),
        (48, {45: 33, 46: 22, 47: 11}),
        (8, {5: 3, 6: 2, 7: 1}),
        (4, {1: 0, 2: 0, 3: 0}),
    ],
)
def test_skips_of_depth_go_back_by_quarters(depth: int, wanted: dict[int, int]) -> None:
    spec = short(depth=depth, skips="depth")
    assert sources(spec) == wanted
    assert parameters(spec) == parameters(short(depth=depth)) + 3
    blended = short(depth=depth, skips={"kind": "depth", "form": "lerp", "per": "channel"})
    assert parameters(blended) == parameters(short(depth=depth)) + 3 * 2 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skips": "depth", "depth": 3}, r"model\.skips: skips of depth need a route of at least"),
        ({"skips": {"form": "add"}}, r"model\.skips: unknown kind None; known: depth, mirror"),
        ({"skips": {"kind": "mirror", "from": 1}}, r"model\.skips: unknown key 'from' in mirror"),
        ({"skips": {"kind": "mirror", "form": "sum"}}, r"model\.skips\.form: unknown value 'sum'"),
        (
            {"layer": FEED | {"norm_scale": "visits"}},
            r"norm_scale: expected a number, got 'visits'",
        ),
    ],
)
def test_errors_name_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        short(**changes)


def test_a_scale_by_visit_counts_the_route_and_other_layers_keep_theirs() -> None:
    override = [{"layers": "1", "set": {"norm_scale": "visit"}}]
    spec = short(depth=3, route="0 (1)*2 2", layer=FEED | {"norm_scale": 0.5}, override=override)
    assert [layer.norm_scale for layer in spec.layers] == [0.5, 1.0, 0.5]
    assert [visit.norm_scale for visit in spec.visits] == [1.0, 2**-0.5, 3**-0.5, 1.0]


def test_what_was_stored_before_reads_and_writes_as_it_did() -> None:
    old = {
        "kind": "layer",
        "mixer": None,
        "feed": {"kind": "dense", "hidden": 8, "act": "relu2"},
        "wiring": "parallel",
        "norm_scale": 0.5,
        "join": [{"kind": "mix_input"}],
    }
    layer = decode(Layer, old)
    assert (layer.gain, layer.norms, layer.lanes) == ("output", "both", None)
    assert encode(layer) == old
    visit = {"kind": "visit", "layer": 0, "join": [{"kind": "skip", "source": 3}], "since": 0.0}
    assert encode(decode(Visit, visit)) == visit
    assert canonical(MixInput()) == b'{"kind":"mix_input"}'
