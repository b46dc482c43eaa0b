"""From the short form of a model to the full one, and from the full one to what runs so far."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segpt.config.expand import expand
from segpt.config.layer import Dense
from segpt.config.layout import layout
from segpt.config.model import ModelSpec, joined_visits
from segpt.config.parts import MixInput, Skip, Token
from segpt.config.recipe import read_recipe
from segpt.errors import SpecError

SHORT: dict[str, Any] = {
    "vocab": 10,
    "width": 16,
    "context": 8,
    "depth": 5,
    "layer": {
        "mixer": {"heads": 2, "kv_heads": 1, "head_dim": 8, "query_key": ["norm"]},
        "feed": {"kind": "dense", "hidden": 32, "act": "silu"},
    },
}
GOLF_ORDER = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
GOLF_SKIPS = {8: 7, 9: 6, 10: 5, 11: 4, 12: 3, 13: 2, 14: 1, 15: 0}


def short(**changes: object) -> dict[str, Any]:
    return copy.deepcopy(SHORT) | changes


def skips(spec: ModelSpec) -> dict[int, int]:
    return {
        i: part.source
        for i, visit in enumerate(spec.visits)
        for part in visit.join
        if isinstance(part, Skip)
    }


def test_the_visits_of_golf16() -> None:
    spec = read_recipe("golf16").model
    assert len(spec.visits) == 17
    assert [visit.layer for visit in spec.visits] == GOLF_ORDER
    assert skips(spec) == GOLF_SKIPS
    assert [i for i, visit in enumerate(spec.visits) if visit.since == 0.35] == list(range(6, 12))
    assert [layer.wiring for layer in spec.layers] == ["serial"] * 7 + ["parallel"] * 4
    assert [layer.norm_scale for layer in spec.layers] == [(i + 1) ** -0.5 for i in range(11)]


def test_the_visits_of_seed004() -> None:
    spec = read_recipe("seed004").model
    assert [visit.layer for visit in spec.visits] == [0, 1, 2] * 8
    assert skips(spec) == {}
    assert {layer.wiring for layer in spec.layers} == {"parallel"}


def test_settling_golf16_before_the_loop_joins() -> None:
    spec = read_recipe("golf16").model
    small, kept = joined_visits(spec, 0.2)
    assert [visit.layer for visit in small.visits] == list(range(11))
    assert kept == {i: i for i in range(6)} | {i: i - 6 for i in range(12, 17)}
    # of the eight skips those of the loop are gone; 12 to 15 receive 3, 2, 1 and 0 as before
    assert skips(small) == {6: 3, 7: 2, 8: 1, 9: 0}
    assert small.layers == spec.layers
    assert {visit.since for visit in small.visits} == {0.0}
    assert joined_visits(small, 0.0) == (small, {i: i for i in range(11)})

    whole, kept = joined_visits(spec, 0.35)
    assert [visit.layer for visit in whole.visits] == GOLF_ORDER
    assert skips(whole) == GOLF_SKIPS
    assert kept == {i: i for i in range(17)}


def test_settling_drops_skips_from_visits_that_have_not_joined() -> None:
    spec = expand(short(depth=3, route="0 (1)*2@0.5 2", skips="mirror"))
    assert skips(spec) == {2: 1, 3: 0}
    late = expand(short(depth=2, route="(0)*2@0.5 1", join=["mix_input"], skips="mirror"))
    assert skips(late) == {1: 0}
    small, kept = joined_visits(late, 0.0)
    assert kept == {0: 0, 2: 1}
    assert [visit.join for visit in small.visits] == [(MixInput(),), (MixInput(),)]


@pytest.mark.slow
@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), progress=st.sampled_from([0.0, 0.2, 0.35, 1.0]))
def test_settled_models_keep_names_of_layers_and_parts(
    data: st.DataObject, progress: float, random_model: st.SearchStrategy[ModelSpec]
) -> None:
    spec = data.draw(random_model)
    small, kept = joined_visits(spec, progress)
    assert list(kept) == list(spec.active(progress))
    assert list(kept.values()) == list(range(len(small.visits)))
    for old, new in kept.items():
        assert small.visits[new].layer == spec.visits[old].layer
        sources = [p.source for p in spec.visits[old].join if isinstance(p, Skip)]
        wanted = [kept[source] for source in sources if source in kept]
        assert [p.source for p in small.visits[new].join if isinstance(p, Skip)] == wanted
    settled = {weight.name for weight in layout(small) if weight.name.startswith("layers")}
    assert settled == {weight.name for weight in layout(spec) if weight.name.startswith("layers")}


def test_defaults_of_the_short_form() -> None:
    spec = expand(SHORT)
    assert spec.embed == (Token(),)
    assert [visit.layer for visit in spec.visits] == [0, 1, 2, 3, 4]
    assert all(visit.join == () and visit.since == 0 for visit in spec.visits)
    assert all(layer == spec.layers[0] for layer in spec.layers)
    assert expand(SHORT) == spec


def test_overrides_patch_their_slice_in_turn() -> None:
    spec = expand(
        short(
            override=[
                {"layers": "3:", "set": {"wiring": "parallel", "feed": {"hidden": 64}}},
                {"layers": "-1", "set": {"feed": None, "mixer": {"output": ["exclude_self"]}}},
                {"layers": "0,2", "set": {"mixer": None}},
                {"layers": 1, "set": {"join": ["mix_input"]}},
            ]
        )
    )
    assert [layer.wiring for layer in spec.layers] == ["serial"] * 3 + ["parallel"] * 2
    assert [layer.mixer is None for layer in spec.layers] == [True, False, True, False, False]
    assert [layer.feed for layer in spec.layers] == [
        *[Dense(hidden=32, act="silu")] * 3,
        Dense(hidden=64, act="silu"),
        None,
    ]
    mixer = spec.layers[4].mixer
    assert mixer is not None
    assert len(mixer.output) == len(mixer.query_key) == 1
    assert [len(layer.join) for layer in spec.layers] == [0, 1, 0, 0, 0]


def test_depth_scaled_norms_and_fixed_ones() -> None:
    layer = SHORT["layer"] | {"norm_scale": "depth"}
    override = [{"layers": "2", "set": {"norm_scale": 0.75}}]
    spec = expand(short(layer=layer, override=override))
    scales = [layer.norm_scale for layer in spec.layers]
    assert scales == [1.0, 2**-0.5, 0.75, 0.5, 5**-0.5]


def test_expanding_leaves_the_short_form_alone() -> None:
    recipe = short(skips="mirror", route="(:)*2", override=[{"layers": ":", "set": {"feed": None}}])
    before = copy.deepcopy(recipe)
    expand(recipe)
    assert recipe == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rout": ":"}, r"\$\.model: unknown key 'rout'; did you mean 'route'\?"),
        ({"overrides": []}, r"\$\.model: unknown key 'overrides'; did you mean 'override'\?"),
        ({"visits": []}, r"\$\.model: unknown key 'visits'"),
        ({7: 1}, r"\$\.model: unknown key '7'"),
        ({"depth": True}, r"\$\.model\.depth: expected a number of layers from 1 to 1024"),
        ({"depth": 0}, r"\$\.model\.depth: expected"),
        ({"depth": 2000}, r"\$\.model\.depth: expected"),
        ({"depth": "5"}, r"\$\.model\.depth: expected"),
        ({"layer": None}, r"\$\.model\.layer: expected a table"),
        ({"override": None}, r"\$\.model\.override: expected a list"),
        ({"override": {"layers": "0"}}, r"\$\.model\.override: expected a list"),
        ({"override": [3]}, r"\$\.model\.override\[0\]: expected the keys 'layers' and 'set'"),
        ({"override": [{"layers": "0"}]}, r"\$\.model\.override\[0\]: expected the keys"),
        ({"override": [{"layers": "0", "set": 3}]}, r"override\[0\]\.set: expected a table"),
        ({"override": [{"layers": "9", "set": {}}]}, r"override\[0\]\.layers: cannot read '9'"),
        ({"override": [{"layers": ":", "set": {"feeed": None}}]}, r"layers\[0\]: unknown key 'fee"),
        ({"route": "0:4"}, r"\$\.model\.route: route '0:4' never visits layer 4"),
        ({"route": None}, r"\$\.model\.route: cannot read 'None'"),
        ({"route": "(:)*2@1.5"}, r"visits\[5\]\.since is a fraction of training, got 1\.5"),
        ({"skips": "mirrors"}, r"\$\.model\.skips: unknown kind 'mirrors'; did you mean 'mirror'"),
        ({"join": "mix_input"}, r"\$\.model\.join: expected a list"),
        ({"join": ["mix"]}, r"\$\.model\.visits\[0\]\.join\[0\]: unknown kind 'mix'; did you mean"),
        ({"head": {"tide": True}}, r"\$\.model\.head: unknown key 'tide' in head; did you mean"),
    ],
)
def test_errors_name_the_path_in_the_recipe(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        expand(short() | changes)


@pytest.mark.parametrize("name", ["depth", "layer", "vocab", "width", "context"])
def test_missing_keys_are_named(name: str) -> None:
    recipe = short()
    del recipe[name]
    with pytest.raises(SpecError, match=rf"\$\.model: missing key '{name}'"):
        expand(recipe)
