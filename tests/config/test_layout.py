"""Weights and parameter counts without building anything."""

from collections import Counter

import pytest

from segpt.config.layout import Place, Role, layout, parameters
from segpt.config.model import ModelSpec
from segpt.config.recipe import read_recipe


def by_role(spec: ModelSpec) -> dict[Role, int]:
    sizes: Counter[Role] = Counter()
    for weight in layout(spec):
        sizes[weight.role] += weight.size
    return dict(sizes)


def test_parameters_of_golf16() -> None:
    spec = read_recipe("golf16").model
    assert parameters(spec) == 35_944_536
    attention = 512 * 512 + 2 * 256 * 512 + 512 * 512
    assert by_role(spec) == {
        Role.TABLE: 8192 * 512,
        Role.MATRIX: 11 * (attention + 2 * 512 * 2048),
        Role.VECTOR: 11 * (2 * 512 + 2 * 512 + 8) + 8 * 2 * 512,
    }


def test_parameters_of_seed004() -> None:
    spec = read_recipe("seed004").model
    assert parameters(spec) == 25_175_076
    assert by_role(spec) == {
        Role.TABLE: 8192 * 768,
        Role.MATRIX: 3 * (2 * 768 * 768 + 2 * 256 * 768 + 2 * 768 * 3072),
        Role.VECTOR: 3 * (2 * 768 + 2 * 768 + 12),
    }
    assert sum(weight.size for weight in layout(spec) if weight.layer == 0) == 6_294_540


def test_an_untied_head_is_one_more_table() -> None:
    bare = ["model.embed=[token]", "model.value_tables=0", "model.layer.mixer.value=[]"]
    spec = read_recipe("demo", ["model.head.tied=false", *bare]).model
    assert by_role(spec)[Role.HEAD] == by_role(spec)[Role.TABLE] == spec.vocab * spec.width
    assert layout(spec)[-1].name == "head.matrix"


@pytest.mark.parametrize(("projection", "extra"), [(True, 5 + 192), (False, 5)])
def test_a_fast_weight_brings_taps_and_a_projection(projection: bool, extra: int) -> None:
    setting = f"model.layer.feed.fast={{chunk: 32, projection: {projection}}}"
    plain, fast = read_recipe("demo").model, read_recipe("demo", [setting]).model
    assert parameters(fast) == parameters(plain) + 3 * extra * 192
    found = {w.name: w for w in layout(fast)}
    taps = found["layers.1.feed.body.fast.taps"]
    assert (taps.role, taps.shape, taps.layer) == (Role.VECTOR, (5, 192), 1)
    matrix = found.get("layers.1.feed.body.fast.projection")
    assert (None if matrix is None else matrix.role) == (Role.MATRIX if projection else None)


@pytest.mark.parametrize(("name", "layer", "uses"), [("golf16", 3, 3), ("golf16", 2, 1)])
def test_uses_count_the_visits(name: str, layer: int, uses: int) -> None:
    weights = layout(read_recipe(name).model)
    assert {w.uses for w in weights if w.name.startswith(f"layers.{layer}.")} == {uses}
    assert {w.uses for w in weights if w.name.startswith("visits.")} == {1}
    assert {w.layer for w in weights if w.name.startswith("visits.15.")} == {9}
    assert weights[0] == ("table", Role.TABLE, (8192, 512), None, 1, Place.EMBED)


def test_names_are_unique_and_in_order() -> None:
    names = [weight.name for weight in layout(read_recipe("golf16").model)]
    assert len(set(names)) == len(names)
    places = [name.split(".")[0] for name in names]
    assert places == sorted(places, key=["table", "layers", "visits", "head"].index)
